"""Which examples come when: mixtures, single tasks, and the best adapter by dev."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixture import Mixture
from harness.data.rows import Rows

Command = Callable[..., Any]


def mixture(counts: Mapping[str, int], temperature: float = 1.0, batch_size: int = 8, seed: int = 0) -> Mixture:
    starts = dict(zip(counts, itertools.accumulate([0, *counts.values()]), strict=False))
    by_task = {t: np.arange(starts[t], starts[t] + n) for t, n in counts.items()}
    rows = Rows(split="train", dataset=Dataset.from_dict({"id": []}), by_task=by_task)
    return Mixture(rows=rows, batch_size=batch_size, steps=50, seed=seed, temperature=temperature)


def task_of(counts: Mapping[str, int], row: int) -> str:
    ends = itertools.accumulate(counts.values())
    return next(t for t, end in zip(counts, ends, strict=True) if row < end)


def drawn(made: Mixture, counts: Mapping[str, int], n: int) -> Counter[str]:
    plan = made.plan(None, 1.0)
    return Counter(task_of(counts, int(r)) for step in range(n // plan.batch_size) for r in plan.batch(step))


COUNTS = {"large": 160, "small": 32, "none": 0, "tiny": 8}


def test_a_proportional_epoch_is_every_row_once() -> None:
    plan = mixture(COUNTS).plan(None, 1.0)
    for epoch in range(3):
        rows = [int(r) for step in range(25) for r in plan.batch(25 * epoch + step)]
        assert sorted(rows) == list(range(200))
    assert plan.batch(0).tolist() != plan.batch(25).tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, math.inf])
def test_shares_are_rows_to_the_power_of_one_over_the_temperature(temperature: float) -> None:
    n = 2000
    found = drawn(mixture(COUNTS, temperature), COUNTS, n)
    weights = {t: c ** (1 / temperature) for t, c in COUNTS.items() if c}
    assert set(found) == set(weights)
    for task, weight in weights.items():
        # an epoch of 200 holds a whole number of a task's examples
        assert found[task] / n == pytest.approx(weight / sum(weights.values()), abs=1 / 200)


def test_a_task_that_comes_often_is_gone_through_again_and_again_in_new_orders() -> None:
    made = mixture(COUNTS, math.inf)
    plan = made.plan(None, 1.0)
    stream = [int(r) for step in range(100) for r in plan.batch(step)]
    tiny = Counter(r for r in stream if task_of(COUNTS, r) == "tiny")
    assert len(tiny) == 8
    assert max(tiny.values()) - min(tiny.values()) <= 1
    assert min(tiny.values()) > 20


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    st.floats(1, 20),
    st.integers(1, 9),
    st.integers(0, 60),
)
def test_a_step_does_not_depend_on_the_steps_before_it(sizes: list[int], t: float, size: int, step: int) -> None:
    counts = {f"t{i}": n for i, n in enumerate(sizes)}
    once, again = mixture(counts, t, size, seed=5).plan(None, 1.0), mixture(counts, t, size, seed=5).plan(None, 1.0)
    for earlier in range(step):
        once.batch(earlier)
    assert once.batch(step).tolist() == again.batch(step).tolist()
    assert len(once.batch(step)) == size
    assert all(n >= 1 for n in once.quotas.values())


def test_a_task_alone_sees_its_share_of_examples_in_as_many_steps() -> None:
    for temperature, sizes in ((1.0, (6, 1, 1)), (math.inf, (3, 3, 3))):
        made = mixture(COUNTS, temperature)
        for task, size in zip(("large", "small", "tiny"), sizes, strict=True):
            plan = made.plan([task], 1.0)
            assert (plan.batch_size, plan.steps) == (size, 50)
            assert {task_of(COUNTS, int(r)) for s in range(50) for r in plan.batch(s)} == {task}
    assert mixture(COUNTS).plan(["tiny"], 0.5).steps == 25


def test_a_task_alone_comes_in_the_order_of_a_run_of_that_task_only() -> None:
    alone = {"tiny": 8}
    plan = mixture(COUNTS).plan(["tiny"], 1.0)
    only = mixture(alone, batch_size=plan.batch_size).plan(None, 1.0)
    for step in range(20):
        assert (plan.batch(step) - 192).tolist() == only.batch(step).tolist()


def test_seeds_give_other_orders() -> None:
    assert (
        mixture(COUNTS, seed=0).plan(None, 1.0).batch(0).tolist()
        != mixture(COUNTS, seed=1).plan(None, 1.0).batch(0).tolist()
    )


def test_a_mixture_is_part_of_a_run_and_half_a_mixture_is_an_error(toy_run: Command, tmp_path: Path) -> None:
    plain = toy_run("--method", "lora_all", "--json").json
    uniform = toy_run("--method", "lora_all", "--set", "train.mixture=uniform", "--json").json
    assert plain["record"]["run_id"] != uniform["record"]["run_id"]
    wrong = toy_run("--method", "lora_all", "--set", "train.mixture=temperature")
    assert wrong.status == 2
    assert "train.temperature" in wrong.err
    warm = toy_run("--method", "lora_all", "--set", "train.mixture=temperature", "--set", "train.temperature=2")
    assert warm.status == 0, warm.err


def test_per_task_keeps_the_same_rows_and_fewer_of_them(toy_run: Command) -> None:
    done = toy_run("--method", "lora_all", "--set", "train.per_task=5", "--json").json
    assert set(done["record"]["n_train"].values()) == {5}


# The best adapter by dev


def looks(folder: Path) -> list[dict[str, Any]]:
    (run,) = (folder / "runs").iterdir()
    return [line for line in map(json.loads, (run / "train.jsonl").read_text().splitlines()) if "dev" in line]


def test_the_best_adapter_by_dev_is_kept_and_evaluated(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load

    import harness.training.dev_score

    scores, states = iter([0.25, 0.5, 0.5, 0.125]), []

    def look(self: Any, tasks: Any) -> float:
        states.append({k: v.clone() for k, v in self.generator.adapter.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(harness.training.dev_score.DevLook, "__call__", look)
    done = toy_run("--method", "lora_all", "--set", "train.eval_every=1", "--json")
    assert done.status == 0, done.err
    assert [line["dev"] for line in looks(tmp_path)] == [0.25, 0.5, 0.5, 0.125]
    (run,) = (tmp_path / "runs").iterdir()
    kept = load((run / "adapter" / "adapter.safetensors").read_bytes())
    assert all(torch.equal(kept[k], states[1][k]) for k in kept)  # of equals the earlier
    assert not all(torch.equal(kept[k], states[3][k]) for k in kept)
    assert done.json["record"]["training"]["steps"] == 4


def test_patience_ends_a_stage_early(toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.training.dev_score

    scores = iter([0.5, 0.25, 0.25, 1.0])
    monkeypatch.setattr(harness.training.dev_score.DevLook, "__call__", lambda self, tasks: next(scores))
    done = toy_run("--method", "lora_all", "--set", "train.eval_every=1", "--set", "train.patience=2", "--json")
    assert done.json["record"]["training"]["steps"] == 3
    assert [line["dev"] for line in looks(tmp_path)] == [0.5, 0.25, 0.25]


def test_a_look_reads_a_few_dev_rows_of_the_stages_tasks_and_never_the_test_split(
    toy_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.training.dev_score

    asked: list[tuple[str, ...]] = []
    rows: list[str] = []
    real = harness.training.dev_score.DevLook.__call__

    def look(self: Any, tasks: Any) -> Any:
        asked.append(tuple(tasks))
        rows.extend(e.id for t in tasks for e in self.examples[t])
        return real(self, tasks)

    monkeypatch.setattr(harness.training.dev_score.DevLook, "__call__", look)
    keys = ["--set", "train.eval_every=4", "--set", "train.eval_rows=2"]
    done = toy_run("--method", "lora_single", *keys)
    assert done.status == 0, done.err
    assert asked == [("colour",), ("first",), ("last",)]
    assert len(rows) == 6
    assert all(r.startswith("dev-") for r in rows)
    assert all(0 <= line["dev"] <= 1 for line in looks(tmp_path))


def test_looking_at_dev_changes_no_training_step(toy_run: Command, tmp_path: Path) -> None:
    found = []
    for keys in ([], ["--set", "train.eval_every=2", "--set", "train.eval_rows=1"]):
        done = toy_run("--method", "c_poly", "--set", "method.dropout=0.2", *keys, "--json").json
        lines = map(json.loads, (Path(done["directory"]) / "train.jsonl").read_text().splitlines())
        found.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
    assert found[0] == found[1]


def test_without_a_dev_split_nothing_can_be_looked_at(toy_run: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_bytes((plugin / "toy_plugin" / "data" / f"{split}.jsonl").read_bytes())
    done = toy_run("--method", "lora_all", "--data", data, "--set", "train.eval_every=1")
    assert done.status == 2
    assert "no dev split" in done.err
