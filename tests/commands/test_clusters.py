"""1+N on toys: one base model, an adapter for each cluster of tasks, with every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from step_hook import after_each_step

from harness.config.clusters import group_tasks, read_clusters
from harness.config.method_config import within
from harness.config.spec import ClusterSpec, RunSpec, run_id
from harness.errors import BudgetError, UsageError
from harness.method import Budget
from harness.runtime.signals import Interrupted
from harness.store.run_directory import RunDirectory
from harness.training.stage import StepDone
from methods.cgc_lora import CGCLoRA

pytestmark = pytest.mark.slow

Command = Callable[..., Any]


def only(folder: Path, pattern: str = "*") -> Path:
    (run,) = (folder / "runs").glob(pattern)
    return run


def clusters_file(folder: Path, text: str) -> Path:
    path = folder / "groups.toml"
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> str | ClusterSpec | None:
    return read_clusters(str(clusters_file(folder, text)))


@pytest.mark.parametrize("method", ["cgc_lora", "moe_lora", "lora_all", "c_poly", "lorahub"])
def test_every_method_trains_an_adapter_for_each_kind_of_task(toy_run: Command, tmp_path: Path, method: str) -> None:
    quick = ["--set", "method.steps=2", "--set", "method.shots=1"] if method == "lorahub" else []
    done = toy_run("--method", method, "--clusters", "kind", *quick, "--json")
    assert done.status == 0, done.err
    record = done.json["record"]
    assert record["spec"]["clusters"] == {"label": "kind", "groups": {"label": ["colour"], "copy": ["first", "last"]}}
    run = Path(done.json["directory"])
    stored = 0
    for cluster, tasks in (("label", ["colour"]), ("copy", ["first", "last"])):
        meta = json.loads((run / "adapter" / cluster / "adapter.json").read_text())
        assert meta["tasks"] == tasks
        stored += sum(t.numel() for t in load_file(run / "adapter" / cluster / "adapter.safetensors").values())
    assert not (run / "adapter" / "adapter.json").exists()
    searched = 1 + 4 if method == "lorahub" else 0  # weights of each task for each LoRA of its cluster: not trained
    assert record["parameters"]["stored"] == stored - searched
    if method == "lora_all":
        assert record["parameters"]["stored"] == 2 * record["parameters"]["active"]
    scores = done.json["scores"]["official"]
    assert scores["mean"] is not None
    assert set(scores["tasks"]) == {"colour", "first", "last"}
    assert sorted(p.stem for p in (run / "train").iterdir()) == ["copy", "label"]


def test_one_lora_for_each_cluster_of_one_task_is_lora_single(toy_run: Command, tmp_path: Path) -> None:
    path = clusters_file(tmp_path, 'a = ["colour"]\nb = ["first"]\nc = ["last"]\n')
    alone = toy_run("--method", "lora_single", "--json").json
    parted = toy_run("--method", "lora_all", "--clusters", path, "--json").json
    assert parted["record"]["parameters"] == alone["record"]["parameters"]
    assert parted["record"]["training"]["examples"] == alone["record"]["training"]["examples"]
    single = load_file(Path(alone["directory"]) / "adapter" / "adapter.safetensors")
    for cluster, task in (("a", "colour"), ("b", "first"), ("c", "last")):
        mine = load_file(Path(parted["directory"]) / "adapter" / cluster / "adapter.safetensors")
        for name, tensor in mine.items():
            assert torch.equal(tensor, single[f"{name}.{task}"]), (cluster, name)
    texts = [
        [(Path(d["directory"]) / "predictions" / f"{t}.jsonl").read_text() for t in ("colour", "first", "last")]
        for d in (alone, parted)
    ]
    assert texts[0] == texts[1]


def test_a_cluster_of_all_tasks_is_the_run_without_clusters(toy_run: Command, tmp_path: Path) -> None:
    path = clusters_file(tmp_path, 'all = ["last", "colour", "first"]\n')
    whole, parted = (toy_run("--method", "cgc_lora", *c, "--json").json for c in ([], ["--clusters", path]))
    one = load_file(Path(whole["directory"]) / "adapter" / "adapter.safetensors")
    two = load_file(Path(parted["directory"]) / "adapter" / "all" / "adapter.safetensors")
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert whole["scores"] == parted["scores"]


def test_a_finished_cluster_is_not_trained_again(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def stop_after_six(done: StepDone) -> None:
        steps.append(done.part)
        if len(steps) == 6:
            raise Interrupted(15)

    with monkeypatch.context() as patch:
        after_each_step(patch, stop_after_six)
        stopped = toy_run("--method", "lora_all", "--clusters", "kind", "--set", "train.checkpoint_steps=1")
    assert stopped.status == 143, stopped.err
    assert steps == ["label"] * 4 + ["copy"] * 2
    run = only(tmp_path)
    trained_at = (run / "adapter" / "label" / "adapter.json").stat().st_mtime_ns
    assert not (run / "adapter" / "copy").exists()
    log = (run / "train" / "copy.jsonl").read_text().splitlines()
    done = toy_run("--method", "lora_all", "--clusters", "kind", "--set", "train.checkpoint_steps=1", "--json")
    assert done.status == 0, done.err
    assert (run / "adapter" / "label" / "adapter.json").stat().st_mtime_ns == trained_at
    assert (run / "train" / "copy.jsonl").read_text().splitlines()[0] == log[0]  # the second step is repeated
    assert done.json["record"]["training"]["steps"] == 8


def test_a_failure_names_the_cluster(toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(done: StepDone) -> None:
        raise ValueError("no toys left")

    after_each_step(monkeypatch, fail)
    failed = toy_run("--method", "lora_all", "--clusters", "kind")
    assert (failed.status, "no toys left" in failed.err) == (1, True)
    assert json.loads((only(tmp_path) / "failure.json").read_text())["where"].startswith("cluster label, stage all")


def test_other_commands_find_the_cluster_of_a_task(toy_run: Command, harness: Command, tmp_path: Path) -> None:
    path = clusters_file(tmp_path, 'x = ["first"]\ny = ["colour", "last"]\n')
    alone = ("--set", "eval.batch_tokens=16")  # no two in a forward: a question asked alone has the same shapes
    done = toy_run("--method", "cgc_lora", "--clusters", path, *alone, "--json").json
    path.unlink()  # what it said is kept with the run
    again = harness("evaluate", done["directory"], "--split", "dev", "--json")
    assert again.status == 0, again.err
    assert set(again.json["scores"]["official"]["tasks"]) == {"colour", "first", "last"}
    rows = [json.loads(x) for x in (Path(done["directory"]) / "predictions" / "last.jsonl").read_text().splitlines()]
    data = Path(__file__).parents[1] / "plugin" / "toy_plugin" / "data" / "test.jsonl"
    test = [json.loads(x) for x in data.read_text().splitlines()]
    prompts = {r["id"]: r["prompt"] for r in test}
    from harness.pipeline.try_prompt import try_prompt

    for row in rows[:2]:
        assert try_prompt(Path(done["directory"]), "last", prompts[row["id"]]) == row["text"]


def test_groups_are_part_of_the_run_and_names_of_files_are_not(toy_run: Command, tmp_path: Path) -> None:
    ids = set()
    for name, text in (("a", 'x = ["first", "last"]\ny = ["colour"]'), ("b", 'y = ["colour"]\nx = ["last", "first"]')):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        plan = toy_run("--method", "lora_all", "--clusters", path, "--dry-run", "--json").json
        ids.add(run_id(RunSpec.model_validate(plan["spec"])))
    whole = toy_run("--method", "lora_all", "--clusters", "none", "--dry-run", "--json").json
    ids.add(run_id(RunSpec.model_validate(whole["spec"])))
    assert len(ids) == 2
    assert whole["spec"]["clusters"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('x = ["first", "last"]', "not in any cluster: colour"),
        ('x = ["first", "last", "colour"]\ny = ["last"]', "last is in x and in y"),
        ('x = ["frist", "last", "colour"]', "Did you mean 'first'"),
        ('"a/b" = ["first"]', "letters, digits"),
        ('x = "first"', "is not a list of tasks"),
        ("x", "not valid TOML"),
    ],
)
def test_a_wrong_file_of_clusters_is_an_error(toy_run: Command, tmp_path: Path, text: str, said: str) -> None:
    done = toy_run("--method", "lora_all", "--clusters", clusters_file(tmp_path, text), "--dry-run")
    assert done.status == 2
    assert said in done.err


def test_a_method_that_trains_nothing_has_no_clusters(toy_run: Command) -> None:
    done = toy_run("--method", "majority", "--clusters", "kind")
    assert done.status == 2
    assert "does not apply to majority" in done.err


def test_a_stored_budget_is_divided_among_the_clusters_and_an_active_one_is_not(plugin: Path, tmp_path: Path) -> None:
    from harness.registry import suite_class

    suite = suite_class("toys")()
    found = group_tasks("kind", suite, ["colour", "first", "last"])
    assert found is not None
    assert list(found.groups) == ["label", "copy"]
    assert group_tasks("none", suite, ["colour"]) is None
    assert group_tasks(clusters_file(tmp_path, 'x = ["first", "last", "colour"]').as_posix(), suite, ["last"]) == (
        ClusterSpec(label="groups", groups={"x": ("last",)})
    )
    method = CGCLoRA(n_common=2, n_specific=1, expert_rank=1)
    sizes = [1, 2]
    active = within(method, Budget(kind="active", rank=9), sizes)
    assert [active.ranks(n).active for n in sizes] == [9, 9]
    stored = within(method, Budget(kind="stored", rank=16), sizes)
    assert sum(stored.ranks(n).stored for n in sizes) <= 16
    with pytest.raises(BudgetError, match="stored:4"):
        within(method, Budget(kind="stored", rank=7), sizes)
    with pytest.raises(UsageError, match="kind or a TOML file"):
        read_clusters("kinds")
    assert RunDirectory(tmp_path).of("x").train_log == tmp_path / "train" / "x.jsonl"
    assert RunDirectory(tmp_path).train_log == tmp_path / "train.jsonl"
