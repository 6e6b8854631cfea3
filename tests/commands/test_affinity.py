"""`harness affinity` on toys, and clusters that are chosen by it or at random."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from step_hook import Crash, crash_after

pytestmark = pytest.mark.numeric

Command = Callable[..., Any]
ON = ("--set", "train.affinity=true", "--set", "train.affinity_every=1", "--set", "train.batch_size=8")


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.long
def test_runs_that_measured_it_give_a_matrix_with_clusters_that_a_run_takes(
    toy_run: Command, harness: Command, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    runs = []
    for seed in (0, 1):
        done = toy_run("--method", "lora_all", *ON, "--seed", seed, "--json")
        assert done.status == 0, done.err
        runs.append(done.json["directory"])
    done = harness("affinity", *runs, "--out", out, "--overlap", "--json")
    assert done.status == 0, done.err
    (found,) = done.json["affinities"]
    assert (found["way"], found["lines"], found["columns"]) == ("gradients", "source", "recipient")
    assert found["tasks"] == ["colour", "first", "last"]
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    stored = json.loads((Path(runs[0]) / "artefacts" / "affinity.json").read_text())
    assert found["runs"][0]["values"] == stored["ways"]["gradients"]
    mean = [sum(run["values"][0][2] for run in found["runs"]) / 2, found["mean"][0][2]]
    assert mean[0] == pytest.approx(mean[1])
    (clusters,) = found["clusters"]
    assert clusters["k"] == 2
    assert clusters["null"]["held_out"] is not None
    folder = Path(found["directory"])
    assert {p.name for p in folder.iterdir()} == {
        "affinity.json",
        "affinity.md",
        "affinity.svg",
        "affinity-dark.svg",
        "clusters-2.toml",
    }
    groups = [set(g) for g in clusters["groups"]]
    assert [set(g) for g in tomllib.loads((folder / "clusters-2.toml").read_text()).values()] == groups

    by_name = toy_run("--method", "lora_all", "--clusters", "affinity:2", "--json")
    assert by_name.status == 0, by_name.err
    spec = by_name.json["record"]["spec"]["clusters"]
    assert (spec["label"], [set(g) for g in spec["groups"].values()]) == ("affinity:2", groups)
    file = Path(by_name.json["directory"]) / "clusters.toml"
    assert tomllib.loads(file.read_text()) == spec["groups"]
    for same in (f"affinity:2:{folder / 'affinity.json'}", f"affinity:2:{folder}", str(folder / "clusters-2.toml")):
        again = toy_run("--method", "lora_all", "--clusters", same, "--json")
        assert again.json["directory"] == by_name.json["directory"], again.err  # the same run: its groups identify it


@pytest.mark.long
def test_clusters_by_affinity_are_computed_from_the_runs_in_the_folder(toy_run: Command, tmp_path: Path) -> None:
    missing = toy_run("--method", "lora_all", "--clusters", "affinity:2")
    assert missing.status == 2
    assert "no run has measured the affinity of these tasks by gradients" in missing.err
    assert "harness affinity RUN… --way gradients" in missing.err
    assert toy_run("--method", "lora_all", *ON).status == 0
    done = toy_run("--method", "lora_all", "--clusters", "affinity:2", "--json")
    assert done.status == 0, done.err
    assert only(tmp_path / "runs" / "affinity", "toys-gradients-*/affinity.json").exists()
    wrong = toy_run("--method", "lora_all", "--clusters", "affinity:3")
    assert wrong.status == 2
    assert "the matrix has clusters for K = 2" in wrong.err


def test_random_clusters_depend_on_the_sizes_and_the_draw_alone(toy_run: Command) -> None:
    found = {}
    for choice in ("random:2+1:0", "random:1+2:0", "random:2:0", "random:2:1", "random:2:2"):
        done = toy_run("--method", "lora_all", "--clusters", choice, "--dry-run", "--json")
        assert done.status == 0, done.err
        clusters = done.json["spec"]["clusters"]
        assert clusters["label"] == choice
        found[choice] = {frozenset(g) for g in clusters["groups"].values()}
    assert found["random:2+1:0"] == found["random:1+2:0"] == found["random:2:0"]
    assert len({frozenset(found[f"random:2:{draw}"]) for draw in range(3)}) == 3
    assert all(sorted(map(len, groups)) == [1, 2] for groups in found.values())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("affinity:1", "give affinity:K with a number of clusters of 2 or more"),
        ("affinity:2:nowhere/x.json", "nowhere/x.json does not exist"),
        ("random:2", "DRAW is a number from 0"),
        ("random:2+2:0", "the run has 3"),
        ("random:4:0", "the run has 3"),
        ("random:2:3", "there are 3 partitions into clusters of these sizes: give a DRAW from 0 to 2"),
    ],
)
def test_a_wrong_choice_of_clusters_is_one_line_with_the_remedy(toy_run: Command, choice: str, message: str) -> None:
    done = toy_run("--method", "lora_all", "--clusters", choice)
    assert done.status in (1, 2)
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.long
def test_updates_and_transfer_need_runs_whose_tasks_have_weights_of_their_own(
    toy_run: Command, harness: Command, tmp_path: Path
) -> None:
    single = toy_run("--method", "lora_single", "--json").json["directory"]
    whole = toy_run("--method", "lora_all", "--json").json["directory"]
    keys = ("--out", tmp_path / "runs", "--set", "eval.per_task=2")
    done = harness("affinity", single, "--way", "updates", "--way", "transfer", *keys, "--json")
    assert done.status == 0, done.err
    updates, transfer = done.json["affinities"]
    assert [updates["mean"][i][i] for i in range(3)] == pytest.approx([1, 1, 1])
    assert updates["mean"][0][1] == pytest.approx(updates["mean"][1][0])
    assert transfer["split"] == "dev"
    (agreement,) = done.json["agreement"]
    assert agreement["ways"] == ["updates", "transfer"]
    refused = harness("affinity", whole, "--way", "updates")
    assert refused.status == 2
    assert "have no updates of the weights of their own" in refused.err
    assert "have measured no affinity" in harness("affinity", whole).err
    mixed = harness("affinity", whole, single, "--way", "gradients")
    assert mixed.status == 2


@pytest.mark.long
def test_the_command_trains_the_runs_of_its_seeds_first(harness: Command, toy_model: Path, tmp_path: Path) -> None:
    quick = ["--suite", "toys", "--model", toy_model, "--out", tmp_path / "runs", "--set", "train.steps=4"]
    quick += ["--set", "eval.per_task=2", "--set", "eval.max_new_tokens=4", *ON[2:]]
    done = harness("affinity", "--method", "lora_all", "--seeds", "0,3", "--way", "lookahead", *quick, "--json")
    assert done.status == 0, done.err
    (found,) = done.json["affinities"]
    assert found["way"] == "lookahead"
    assert [run["seed"] for run in found["runs"]] == [0, 3]
    printed = harness("affinity", "--method", "lora_all", "--seeds", "0,3", "--way", "lookahead", *quick)
    assert "# Affinity of tasks by lookahead" in printed.out
    assert harness("affinity", "--method", "lora_all").status == 2
    assert "--seeds 0,0" in harness("affinity", "--method", "lora_all", "--seeds", "0,0", *quick).err


@pytest.mark.long
def test_a_resumed_run_keeps_its_affinity_and_a_finished_one_without_says_so(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(toy_run("--method", "lora_all", *ON, "--out", tmp_path / "whole", "--json").json["directory"])
    with monkeypatch.context() as patch:
        crash_after(patch, [3])
        with pytest.raises(Crash):
            toy_run("--method", "lora_all", *ON, "--set", "train.checkpoint_steps=1")
    resumed = Path(
        toy_run("--method", "lora_all", *ON, "--set", "train.checkpoint_steps=1", "--json").json["directory"]
    )
    assert resumed.name == whole.name  # the key only observes, so that it does not identify a run
    for file in ("artefacts/affinity.json", "adapter/adapter.safetensors"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file
    plain = toy_run("--method", "cgc_lora", "--set", "train.batch_size=8")
    assert plain.status == 0
    late = toy_run("--method", "cgc_lora", *ON)
    assert late.status == 0
    assert "was trained without this key" in late.err
