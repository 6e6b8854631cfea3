"""Both ways between lm-eval and the harness, on toys; lm-eval is imported once by the first test that needs it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
PROJECT = Path(__file__).parents[3]
TASKS = ("colour", "first", "last")


@dataclass
class Server:
    """A completions server: what it was asked, and how many answers it gives before it fails."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    patience: int = 1000


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if len(state.asked) >= state.patience:
                self.send_error(500)
                return
            state.asked.append(body)
            question = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
            colour = next((c for c in ("red", "blue", "green") if c in question), "")
            choice = {"index": 0, "text": f" {colour}", "message": {"role": "assistant", "content": colour}}
            text = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1/completions"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(scope="module")
def vivid_model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with weights so large that every prompt has another answer, and no two tokens are close."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("vivid")
    AutoTokenizer.from_pretrained(toy_model).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(toy_model)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data *= 8
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def backend_run(harness: Command, tmp_path: Path) -> Command:
    """no_finetune on four rows of each toy task, answered by a back end."""

    def call(backend: str, *arguments: Any) -> Any:
        quick = ["--suite", "toys", "--method", "no_finetune", "--out", tmp_path / "runs", "--set", "eval.per_task=4"]
        return harness("run", *quick, "--backend", backend, *arguments)

    return call


@pytest.fixture
def yaml_tasks(tmp_path: Path) -> Path:
    """Three lm-eval tasks in files: which toy (choices), say a colour (text), read a sentence (perplexity)."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"text": f"the {colour} {toy} is", "choices": ["red", "blue", "green"], "gold": i % 3}
        for i, (colour, toy) in enumerate([("red", "car"), ("blue", "doll"), ("green", "kite"), ("red", "drum")])
    ]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "num_fewshot": 0,
    }
    texts = {"until": ["!", "e"], "max_gen_toks": 8, "do_sample": False}
    tasks = [
        {"task": "toy_choices", "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"},
        {"task": "toy_text", "output_type": "generate_until", "doc_to_target": "red", "generation_kwargs": texts},
        {"task": "toy_rolling", "output_type": "loglikelihood_rolling", "doc_to_target": "{{text}}"},
        {"task": "toy_sampled", "output_type": "generate_until", "doc_to_target": "red"},
    ]
    tasks[1]["metric_list"] = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    tasks[2] |= {"doc_to_text": ""}
    tasks[3]["generation_kwargs"] = {"until": [], "do_sample": True, "temperature": 1.0}
    for task in tasks:  # JSON is YAML
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**common, **task}))
    return folder


@pytest.mark.long
def test_only_the_integrations_and_the_suite_of_its_groups_import_lm_eval() -> None:
    found = set()
    for path in [p for folder in ("harness", "methods", "tasks") for p in (PROJECT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {path.parent for name in names if name.partition(".")[0] == "lm_eval"}
    assert found == {PROJECT / "harness" / "integrations", PROJECT / "tasks" / "lm_eval_groups"}


@pytest.mark.long
def test_help_list_and_a_run_do_not_pay_for_lm_eval(plugin: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(plugin)!r})
from harness.cli.main import cli
try:
    cli.main(["--help"], standalone_mode=False)
    cli.main(["list"], standalone_mode=False)
    arguments = ["run", "--method", "majority", "--suite", "toys", "--out", {str(tmp_path)!r}]
    cli.main(arguments, standalone_mode=False)
finally:
    assert "lm_eval" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    assert list(tmp_path.glob("majority-*/record.json"))


@pytest.mark.parametrize("arguments", ["", ",model=a"])
def test_a_back_end_without_a_model_states_the_expected_form(arguments: str, backend_run: Command) -> None:
    done = backend_run(f"lm-eval:{arguments}")
    assert (done.status, "expected lm-eval:MODEL,key=value" in done.err) == (2, True)


def test_arguments_keep_their_order_and_are_available_by_key() -> None:
    from harness.integrations.lm_eval_backend import LmEvalArguments

    text = "base_url=http://a/b?c=d,model=m"
    found = LmEvalArguments.parse(f"local-completions,{text}")
    assert found == LmEvalArguments(model="local-completions", text=text)
    assert found.by_key == {"base_url": "http://a/b?c=d", "model": "m"}


@pytest.mark.parametrize("error", [ConnectionError("refused"), KeyError("choices"), TimeoutError("60 s")], ids=repr)
def test_a_failed_request_is_reported_as_the_back_ends(
    backend_run: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from lm_eval.models.dummy import DummyLM

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(DummyLM, "generate_until", failing)
    failed = backend_run("lm-eval:dummy")
    assert failed.status == 1
    assert f"lm-eval:dummy failed: {type(error).__name__}" in failed.err


def test_an_error_of_our_own_is_not_reported_as_the_back_ends(
    backend_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.dummy import DummyLM

    def broken(*_: Any, **__: Any) -> Any:
        raise AttributeError("a bug, not a refusal")

    monkeypatch.setattr(DummyLM, "generate_until", broken)
    failed = backend_run("lm-eval:dummy")
    assert (failed.status, "a bug, not a refusal" in failed.err) == (1, True)
    assert "lm-eval:dummy failed" not in failed.err


def test_the_dummy_answers_every_row_and_the_record_says_who_did(backend_run: Command, tmp_path: Path) -> None:
    value = backend_run("lm-eval:dummy", "--json").json
    spec = value["record"]["spec"]
    assert spec["backend"] == "lm-eval:dummy"
    assert spec["model"]["label"] == "lm-eval:dummy"
    assert value["record"]["parameters"] == {
        "stored": 0,
        "active": 0,
        "base": None,
        "percent": None,
        "adapted_percent": None,
    }
    lines = [json.loads(x) for p in tmp_path.glob("runs/*/predictions/*.jsonl") for x in p.read_text().splitlines()]
    assert len(lines) == 12
    assert {(x["text"], x["tokens"], x["cut"]) for x in lines} == {("lol", None, None)}
    assert value["scores"]["official"]["tasks"]["colour"]["n_cut"] is None
    assert backend_run("lm-eval:dummy").err.startswith("note: this run is already complete")


def test_wrong_use_of_back_ends_says_what_to_do(backend_run: Command, toy_run: Command, toy_model: Path) -> None:
    unknown = backend_run("lm-eval:dumy")
    assert (unknown.status, "Did you mean 'dummy'" in unknown.err) == (2, True)
    both = backend_run("lm-eval:dummy", "--model", toy_model)
    assert (both.status, "leave --model out" in both.err) == (2, True)
    for method in ("lora_all", "majority"):
        trained = backend_run("lm-eval:dummy", "--method", method)
        assert (trained.status, "which --method" in trained.err) == (2, True)
    plain = backend_run("lm-eval:local-chat-completions,base_url=http://127.0.0.1:9/v1,model=m")
    assert (plain.status, "--prompt chat" in plain.err) == (2, True)
    broken = backend_run(f"lm-eval:hf,pretrained={toy_model},no_such_argument=1")
    assert broken.status == 1
    assert "lm-eval:hf failed to open: TypeError" in broken.err


@pytest.mark.parametrize("shots", [0, 1])
def test_lm_evals_own_transformers_model_writes_what_ours_writes(
    backend_run: Command, toy_run: Command, vivid_model: Path, tmp_path: Path, shots: int
) -> None:
    same = ["--set", "eval.max_new_tokens=6", "--shots", shots]
    if shots:
        same += ["--set", "train.max_length=60"]  # the example in the prompt still fits, or its middle goes
    assert toy_run("--method", "no_finetune", "--model", vivid_model, *same).status == 0
    theirs = backend_run(f"lm-eval:hf,pretrained={vivid_model},batch_size=2", *same)
    assert theirs.status == 0, theirs.err
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    one, other = (
        {x["id"]: x["text"] for t in TASKS for x in map(json.loads, (r / f"predictions/{t}.jsonl").open())}
        for r in runs
    )
    assert one == other
    inputs = json.loads((runs[0] / "inputs.json").read_text()), json.loads((runs[1] / "inputs.json").read_text())
    (asked,) = (i["options"]["backend"] for i in inputs if i["options"].get("backend"))
    assert f"pretrained={vivid_model.resolve()}," in asked
    assert len(set(one.values())) > 6


def test_a_server_gets_each_prompt_once_even_when_it_fails_in_between(
    backend_run: Command, server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("tenacity", reason="servers need pip install 'mtlora-harness[api]'")
    backend = f"lm-eval:local-completions,base_url={server.url},model=toy,tokenizer_backend=none,max_retries=1"
    server.patience = 6
    failed = backend_run(backend)
    assert failed.status == 1
    assert "run the same command again to resume" in failed.err
    (run,) = (tmp_path / "runs").iterdir()
    assert len((run / "predictions" / "colour.jsonl").read_text().splitlines()) == 4
    server.patience = 1000
    value = backend_run(backend, "--json").json
    assert value["scores"]["official"]["tasks"]["colour"]["value"] == 1.0
    assert value["scores"]["official"]["tasks"]["last"]["value"] == 0.0
    assert value["record"]["spec"]["model"]["label"] == "toy (lm-eval:local-completions)"
    prompts = [a["prompt"] for a in server.asked]
    assert len(prompts) == 4 + 2 + 8  # the second task was cut off after two rows, and is asked again
    assert len(set(prompts)) == 12
    request = server.asked[0]
    assert request["temperature"] == 0
    assert request["stop"] == []
    assert request["max_tokens"] == 8  # 1.25 times the bytes of "green" and an end, rounded up


def test_a_chat_server_gets_examples_as_turns(backend_run: Command, server: Server) -> None:
    pytest.importorskip("tenacity", reason="servers need pip install 'mtlora-harness[api]'")
    backend = f"lm-eval:local-chat-completions,base_url={server.url},model=toy"
    value = backend_run(backend, "--prompt", "chat", "--shots", "1", "--tasks", "colour", "--json").json
    assert value["scores"]["official"]["tasks"]["colour"]["value"] == 1.0
    for request in server.asked:
        turns = request["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert turns[1]["content"] in turns[0]["content"]
        assert turns[0] != turns[2]


@pytest.mark.long
def test_lm_eval_scores_base_and_adapted_model_through_our_generator(
    toy_run: Command, harness: Command, yaml_tasks: Path, vivid_model: Path, tmp_path: Path, hf_cache: Path
) -> None:
    from lm_eval import simple_evaluate

    assert toy_run("--method", "cgc_lora", "--model", vivid_model).status == 0
    (run,) = (tmp_path / "runs").iterdir()
    options = ["--include-path", yaml_tasks, "--limit", "3"]
    missing = harness("lm-eval", run, "--tasks", "toy_text", *options)
    assert (missing.status, "--route" in missing.err, "colour" in missing.err) == (2, True, True)
    names = "toy_choices,toy_text,toy_rolling"
    done = harness("lm-eval", run, "--tasks", names, "--route", "colour", *options, "--json")
    assert done.status == 0, done.err
    report = done.json
    (file,) = (run / "lm_eval").glob("*.json")
    assert json.loads(file.read_text()) == report
    assert report["n_samples"]["toy_text"]["effective"] == 3
    reference = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(vivid_model), "device": "cpu"},
        tasks=names.split(","),
        task_manager=_no_tasks(yaml_tasks),
        limit=3,
        bootstrap_iters=0,
    )
    assert reference is not None
    changed = 0
    for task in names.split(","):
        for metric, value in reference["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert report["base"][task][metric] == pytest.approx(value, rel=1e-4), (task, metric)
                changed += report["adapted"][task][metric] != report["base"][task][metric]
    assert changed
    table = harness("lm-eval", run, "--tasks", "toy_choices", "--route", "last", *options).out
    assert "base" in table
    assert "toy_choices" in table
    sampled = harness("lm-eval", run, "--tasks", "toy_sampled", "--route", "last", *options)
    assert (sampled.status, "only greedy decoding" in sampled.err) == (2, True)
    wrong = harness("lm-eval", run, "--tasks", "toy_text", "--route", "colours", *options)
    assert (wrong.status, "Did you mean 'colour'" in wrong.err) == (2, True)


def test_texts_stop_where_lm_evals_own_model_stops(vivid_model: Path, toy_run: Command, tmp_path: Path) -> None:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from harness.integrations.lm_eval_model import AdaptedLM
    from harness.pipeline.predict import generator
    from harness.pipeline.reopen import open_model

    assert toy_run("--method", "no_finetune", "--model", vivid_model).status == 0
    opened = open_model(next((tmp_path / "runs").iterdir()))
    finished, prepared = opened.finished, opened.prepared
    # Batches have other shapes here and there, so in float64: rounding must not decide between two tokens.
    loaded = replace(prepared.loaded, model=prepared.loaded.model.double(), dtype=torch.float64)
    prepared = replace(prepared, base=replace(prepared.base, loaded=loaded))
    ours = AdaptedLM(prepared, generator(finished.resolved, prepared), prepared.tasks[0])
    theirs = get_model("hf")(pretrained=str(vivid_model), device="cpu", batch_size=4, dtype="float64")
    prompts = ["the red car", "a", "two dolls and a drum", "red " * 40, "{kite}"]
    open_ended = theirs.generate_until(
        [Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": 12}), i) for i, p in enumerate(prompts)]
    )
    stops = [text[4:6] for text in open_ended if len(text) > 6]
    assert len(stops) > 2
    settings = [{"until": [], "max_gen_toks": 12}, {"until": stops, "max_gen_toks": 12}, {"until": stops[0]}]
    requests = [
        Instance("generate_until", {}, (p, {"max_gen_toks": 20, **s}), i)
        for s in settings
        for i, p in enumerate(prompts)
    ]
    texts = ours.generate_until(requests)
    assert texts == theirs.generate_until(requests)
    assert texts[: len(prompts)] == open_ended
    assert texts[len(prompts) : 2 * len(prompts)] != open_ended


@pytest.mark.long
def test_a_method_that_reads_the_prompt_needs_no_route(
    toy_run: Command, harness: Command, yaml_tasks: Path, tmp_path: Path, hf_cache: Path
) -> None:
    assert toy_run("--method", "moa").status == 0
    options = [
        next((tmp_path / "runs").iterdir()),
        "--tasks",
        "toy_choices",
        "--include-path",
        yaml_tasks,
        "--limit",
        1,
    ]
    report = harness("lm-eval", *options, "--json").json
    assert report["route"] is None
    assert report["adapted"]["toy_choices"]["acc,none"] in (0.0, 1.0)
    told = harness("lm-eval", *options, "--route", "colour")
    assert (told.status, "Leave --route out" in told.err) == (2, True)


def _no_tasks(folder: Path | None = None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder), include_defaults=False)
