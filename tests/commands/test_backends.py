"""An inference back end from another distribution is found by its entry point and generates a run's predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]

ECHO = '''
"""A back end that repeats the last word of each prompt."""

from pathlib import Path

from harness.errors import ModelError
from harness.inference import InferenceBackend, ModelIdentity

REQUESTS = []


class Echo(InferenceBackend):
    styles = ("plain",)

    def __init__(self, arguments):
        self.arguments = arguments

    @classmethod
    def identify(cls, arguments):
        return ModelIdentity(label=f"echo {arguments}", fingerprint=f"echo:{arguments}")

    @classmethod
    def portable(cls, arguments):
        return str(Path(arguments).resolve()) if Path(arguments).exists() else arguments

    def predict(self, requests):
        REQUESTS.extend(requests)
        if self.arguments == "broken":
            raise ModelError("echo: the server is gone. Start it and run the same command again")
        return [request.prompt.split()[-1] for request in requests]


class NoBackend:
    pass
'''


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a distribution with two entry points in the group harness.backends, one of them wrong."""
    site = tmp_path / "site"
    info = site / "echo_backend-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "echo_backend.py").write_text(ECHO)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-backend\nVersion: 1.0\n")
    points = "[harness.backends]\necho = echo_backend:Echo\nwrong = echo_backend:NoBackend\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(site)
    import echo_backend  # type: ignore[import-not-found]

    yield echo_backend
    del sys.modules["echo_backend"]


@pytest.fixture
def backend_run(harness: Command, tmp_path: Path) -> Command:
    def call(backend: str, *arguments: Any) -> Any:
        quick = ["--suite", "toys", "--method", "no_finetune", "--out", tmp_path / "runs", "--set", "eval.per_task=3"]
        return harness("run", *quick, "--backend", backend, *arguments)

    return call


def test_a_back_end_of_another_distribution_generates_the_predictions(
    echo: Any, backend_run: Command, tmp_path: Path
) -> None:
    value = backend_run("echo:loudly", "--json").json
    spec = value["record"]["spec"]
    assert spec["backend"] == "echo:loudly"
    assert spec["model"] == {"label": "echo loudly", "fingerprint": "echo:loudly"}
    assert len(echo.REQUESTS) == 9
    by_id = {r.id: r for r in echo.REQUESTS if r.task == "colour"}
    assert all(r.messages == [] and r.max_new_tokens > 0 for r in by_id.values())
    (file,) = tmp_path.glob("runs/*/predictions/colour.jsonl")
    for prediction in map(json.loads, file.read_text().splitlines()):
        assert prediction["text"] == by_id[prediction["id"]].prompt.split()[-1]
    assert backend_run("echo:loudly", "--json").json["record"]["run_id"] == value["record"]["run_id"]
    assert len(echo.REQUESTS) == 9  # the finished run is not repeated


def test_its_arguments_are_saved_so_that_they_mean_the_same_elsewhere(
    echo: Any, backend_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served").mkdir()
    monkeypatch.chdir(tmp_path)
    assert backend_run("echo:served").status == 0
    (inputs,) = tmp_path.glob("runs/*/inputs.json")
    assert json.loads(inputs.read_text())["options"]["backend"] == f"echo:{tmp_path / 'served'}"


def test_wrong_use_of_back_ends_names_the_choices(echo: Any, backend_run: Command) -> None:
    unknown = backend_run("ecko:loudly")
    assert (unknown.status, "unknown back end 'ecko'. Did you mean 'echo'" in unknown.err) == (2, True)
    other = backend_run("vllm")
    assert (other.status, "Known: echo, hf, lm-eval, wrong" in other.err) == (2, True)
    chat = backend_run("echo:", "--prompt", "chat")
    assert (chat.status, "give --prompt plain" in chat.err) == (2, True)
    wrong = backend_run("wrong:")
    assert (wrong.status, "not a subclass of harness's InferenceBackend" in wrong.err) == (1, True)
    secret = backend_run("echo:auth_token=abc")
    assert (secret.status, "do not give auth_token on the command line" in secret.err) == (2, True)
    failed = backend_run("echo:broken")
    assert (failed.status, "the server is gone" in failed.err) == (1, True)


def test_a_file_is_predicted_by_the_back_end_which_is_opened_once(
    echo: Any, backend_run: Command, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.pipeline.predict_file as module

    monkeypatch.setattr(module, "CHUNK", 2)
    assert backend_run("echo:loudly").status == 0
    (run,) = (tmp_path / "runs").iterdir()
    opened, construct = [], echo.Echo.__init__

    def counted(self: Any, arguments: str) -> None:
        opened.append(arguments)
        construct(self, arguments)

    monkeypatch.setattr(echo.Echo, "__init__", counted)
    prompts = ["the red car", "a kite", "the blue 球", "a drum", "no ball"]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    done = harness("predict", run, tmp_path / "in.txt", "--out", tmp_path / "out.jsonl")
    assert done.status == 0, done.err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in found] == [prompt.split()[-1] for prompt in prompts]
    assert {(line["task"], line["truncated"]) for line in found} == {(None, None)}
    assert opened == ["loudly"]


def test_back_ends_are_listed(echo: Any, harness: Command) -> None:
    lines = [line.split() for line in harness("list").out.splitlines()]
    assert ["echo", "echo-backend"] in lines
    assert ["lm-eval", "mtlora-harness"] in lines
