"""--from: domains are added, dropped and trained further, and what is not named stays as it is, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from step_hook import after_each_step

from harness.pipeline.reopen import open_model
from harness.runtime.signals import Interrupted
from harness.training.stage import StepDone

pytestmark = pytest.mark.slow

Command = Callable[..., Any]
MOA = ("--method", "moa", "--set", "train.lr=0.02", "--json")


def made(done: Any) -> Path:
    assert done.status == 0, done.err
    return Path(done.json["directory"])


def folds(run: Path) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Every task's folded factors, and the routers' rows."""
    prepared = open_model(run).prepared
    adapter: Any = prepared.adapter
    found = {t: {n: (f.a, f.b) for n, f in adapter.fold(t).items()} for t in prepared.tasks}
    if hasattr(adapter, "routers"):
        for i, task in enumerate(prepared.tasks):
            found[task]["router"] = (adapter.routers.weight[:, i].detach(), torch.zeros(()))
    return found


def same(one: Any, other: Any, *, router: bool = True) -> bool:
    return all(
        torch.equal(one[n][0], other[n][0]) and torch.equal(one[n][1], other[n][1])
        for n in one
        if router or n != "router"
    )


@pytest.fixture
def two(toy_run: Command) -> Path:
    """A finished moa of two domains."""
    return made(toy_run(*MOA, "--tasks", "colour,last"))


def test_a_domain_is_added_and_the_others_stay_bitwise_the_same(toy_run: Command, two: Path) -> None:
    done = toy_run(*MOA, "--from", two)
    before, after = folds(two), folds(made(done))
    assert list(after) == ["colour", "first", "last"]
    for task in ("colour", "last"):
        assert same(before[task], after[task], router=False)
        assert not same(before[task], after[task]), "the routers learn that there is another domain"
    assert all(b.any() for name, (_, b) in after["first"].items() if name != "router"), "the new LoRA is trained"
    log = [json.loads(x) for x in (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in log} == {"alone-first", "together"}
    spec, record = done.json["record"]["spec"], json.loads((two / "record.json").read_text())
    assert spec["parent"]["run_id"] == record["run_id"]
    assert spec["parent"]["adapter"] == json.loads((two / "adapter" / "adapter.json").read_text())["sha256"]
    routes = json.loads((Path(done.json["directory"]) / "artefacts" / "router_accuracy.json").read_text())
    assert set(routes["tasks"]) == {"colour", "first", "last"}, "answers come without labels"


def test_a_domain_is_dropped_and_nothing_is_trained(toy_run: Command, harness: Command, two: Path) -> None:
    done = toy_run(*MOA, "--from", two, "--tasks", "last")
    before, after = folds(two), folds(made(done))
    assert list(after) == ["last"]
    assert same(before["last"], after["last"])
    assert done.json["record"]["training"]["steps"] == 0
    assert done.json["scores"]["official"]["tasks"]["last"]["n"] == 4


def test_one_domain_is_trained_further_and_the_other_stays(toy_run: Command, two: Path) -> None:
    done = toy_run(*MOA, "--from", two, "--tasks", "colour,last", "--set", "method.further=last")
    before, after = folds(two), folds(made(done))
    assert same(before["colour"], after["colour"], router=False)
    assert not same(before["last"], after["last"], router=False)
    # it goes on from where it was: another start would be far away
    name = next(n for n in before["last"] if n.endswith("q_proj"))
    moved = (after["last"][name][0] - before["last"][name][0]).norm()
    assert 0 < moved < 0.5 * before["last"][name][0].norm()
    again = toy_run(*MOA, "--from", two, "--tasks", "colour,last", "--set", "method.further=last")
    assert "already complete" in again.err or made(again) == made(done)


def test_loras_come_from_lora_single_and_only_routers_are_trained(toy_run: Command) -> None:
    single = made(toy_run("--method", "lora_single", "--json"))
    done = toy_run(*MOA, "--from", single)
    before, after = folds(single), folds(made(done))
    assert all(same(before[t], after[t]) for t in before)
    log = [json.loads(x) for x in (Path(done.json["directory"]) / "train.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in log} == {"together"}
    untrained = toy_run(*MOA, "--from", single, "--set", "method.stage1_share=1.0")
    assert untrained.json["record"]["training"]["steps"] == 0
    assert not torch.equal(folds(made(done))["last"]["router"][0], folds(made(untrained))["last"]["router"][0]), (
        "the routers have learned"
    )


def test_a_run_that_was_killed_resumes_without_loading_again(
    toy_run: Command, two: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = (*MOA, "--from", two, "--set", "train.checkpoint_steps=1", "--set", "method.further=last")
    whole = folds(made(toy_run(*command)))
    (run,) = [p for p in (tmp_path / "runs").iterdir() if p != two]
    shutil.rmtree(run)

    def stop(done: StepDone) -> None:
        if done.stage == "together" and done.step == 2:
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        after_each_step(patch, stop)
        assert toy_run(*command).status == 143
    again = folds(made(toy_run(*command)))
    assert all(same(whole[t], again[t]) for t in whole)


def test_a_finished_run_needs_its_parent_no_more(toy_run: Command, harness: Command, two: Path, tmp_path: Path) -> None:
    run = made(toy_run(*MOA, "--from", two))
    shutil.rmtree(two)
    again = harness("evaluate", run, "--set", "method.routing=vote", "--json")
    assert again.status == 0, again.err
    assert harness("export", run, "--task", "first", "--out", tmp_path / "lora").status == 0
    assert harness("score", run, "--json").status == 0


def test_another_parent_is_another_run(toy_run: Command, two: Path) -> None:
    plain = toy_run(*MOA, "--dry-run").json["spec"]
    gone_on = toy_run(*MOA, "--from", two, "--dry-run").json["spec"]
    assert plain["parent"] is None
    assert {k for k in plain if plain[k] != gone_on[k]} == {"parent"}
    from harness.config.spec import RunSpec, run_id

    assert run_id(RunSpec.model_validate(plain)) != run_id(RunSpec.model_validate(gone_on))

    from harness.sweep.entries import Matcher
    from harness.sweep.spec import BoardSpec, RowSpec

    settings = {"train.steps": 4, "train.lr": 0.02, "eval.max_new_tokens": 6, "eval.per_task": 4}
    board = BoardSpec(suite="toys", budget="none", settings=settings, row=(RowSpec(method="moa"),))
    matcher = Matcher(board)
    assert len(matcher.entries_of(RunSpec.model_validate(plain))) == 1
    assert not matcher.entries_of(RunSpec.model_validate(gone_on)), "a leaderboard's rows begin by themselves"


def test_a_run_that_cannot_be_initialised_from_another_says_why(
    toy_run: Command, two: Path, toy_model: Path, tmp_path: Path
) -> None:
    floor = made(toy_run("--method", "majority", "--json"))
    shared = made(toy_run("--method", "lora_all", "--json"))
    clustered = made(toy_run("--method", "lora_single", "--clusters", "kind", "--json"))
    other = tmp_path / "model"
    shutil.copytree(toy_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    moa = ("--method", "moa")
    for said, arguments in {
        "Methods that support it: moa": ("--method", "cgc_lora", "--from", two),
        "which LoRAAll is not": (*moa, "--from", shared),
        "majority does not train one": (*moa, "--from", floor),
        "neither of the two runs may use --clusters": (*moa, "--from", clustered),
        "method.rank is 4, and 16": (*moa, "--from", two, "--set", "method.rank=4"),
        "set method.pooling=mean": (*moa, "--from", two, "--set", "method.pooling=last"),
        "another base model": (*moa, "--from", two, "--model", other),
        "it has colour, last": (*moa, "--from", two, "--tasks", "first"),
        "unknown task of method.further 'first'": (*moa, "--from", two, "--set", "method.further=first"),
        "give --from RUN too": (*moa, "--set", "method.further=first"),
    }.items():
        wrong = toy_run(*arguments)
        assert (wrong.status, said in wrong.err) == (2, True), (said, wrong.err)
    wrong = toy_run(*moa, "--from", tmp_path)
    assert (wrong.status, "is not a run" in wrong.err) == (1, True)
    (two / "record.json").unlink()
    wrong = toy_run(*moa, "--from", two)
    assert (wrong.status, "is not finished" in wrong.err) == (1, True)
