"""Which examples each step uses: mixtures of tasks, and single tasks."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixture import Mixture, n_steps
from harness.data.splits import SplitExamples
from harness.errors import DataError

Command = Callable[..., Any]


def mixture(counts: Mapping[str, int], temperature: float = 1.0, batch_size: int = 8, seed: int = 0) -> Mixture:
    starts = dict(zip(counts, itertools.accumulate([0, *counts.values()]), strict=False))
    by_task = {t: np.arange(starts[t], starts[t] + n) for t, n in counts.items()}
    rows = SplitExamples(split="train", dataset=Dataset.from_dict({"id": []}), by_task=by_task)
    return Mixture(examples=rows, batch_size=batch_size, steps=50, seed=seed, temperature=temperature)


def task_of(counts: Mapping[str, int], row: int) -> str:
    ends = itertools.accumulate(counts.values())
    return next(t for t, end in zip(counts, ends, strict=True) if row < end)


def drawn(made: Mixture, counts: Mapping[str, int], n: int) -> Counter[str]:
    plan = made.plan(None, 1.0)
    return Counter(task_of(counts, int(r)) for step in range(n // made.batch_size) for r in plan.batch(step))


COUNTS = {"large": 160, "small": 32, "none": 0, "tiny": 8}


def test_a_proportional_epoch_is_every_example_once() -> None:
    plan = mixture(COUNTS).plan(None, 1.0)
    for epoch in range(3):
        rows = [int(r) for step in range(25) for r in plan.batch(25 * epoch + step)]
        assert sorted(rows) == list(range(200))
    assert plan.batch(0).tolist() != plan.batch(25).tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, math.inf])
def test_shares_are_numbers_of_examples_to_the_power_of_one_over_the_temperature(temperature: float) -> None:
    n = 2000
    found = drawn(mixture(COUNTS, temperature), COUNTS, n)
    weights = {t: c ** (1 / temperature) for t, c in COUNTS.items() if c}
    assert set(found) == set(weights)
    for task, weight in weights.items():
        # an epoch of 200 holds a whole number of a task's examples
        assert found[task] / n == pytest.approx(weight / sum(weights.values()), abs=1 / 200)


def test_a_task_with_a_large_share_is_repeated_in_new_orders() -> None:
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


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [4, 8, 24, 40])
@pytest.mark.parametrize("temperature", [1.0, 3.0, math.inf])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_task_alone_gets_exactly_the_examples_that_the_mixed_run_draws(
    batch_size: int, temperature: float, share: float
) -> None:
    """16 equal tasks, and one with a 39th of the examples: no batch size gives a task alone more or fewer of them."""
    counts = {**{f"t{i}": 12 for i in range(16)}, "rare": 5}
    made = mixture(counts, temperature, batch_size)
    whole = made.plan(None, share)
    mixed = Counter(task_of(counts, int(r)) for step in range(whole.steps) for r in whole.batch(step))
    for task in counts:
        plan = made.plan([task], share)
        batches = [plan.batch(step) for step in range(plan.steps)]
        assert {task_of(counts, int(r)) for batch in batches for r in batch} == {task}
        assert sum(map(len, batches)) == max(1, mixed[task])
        assert min(map(len, batches)) >= 1
        assert plan.steps <= whole.steps
        assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_a_stage_of_all_tasks_has_the_batch_size_in_every_step() -> None:
    plan = mixture(COUNTS).plan(list(COUNTS), 1.0)
    assert {len(plan.batch(step)) for step in range(plan.steps)} == {8}
    assert mixture(COUNTS).plan(["tiny"], 0.5).steps <= 25


def test_a_task_alone_comes_in_the_order_of_a_run_of_that_task_only() -> None:
    plan = mixture(COUNTS).plan(["tiny"], 1.0)
    alone = [int(r) - 192 for step in range(plan.steps) for r in plan.batch(step)]
    only = mixture({"tiny": 8}, batch_size=1).plan(None, 1.0)
    assert alone == [int(only.batch(step)[0]) for step in range(len(alone))]


def test_the_number_of_steps_is_given_or_enough_for_the_epochs() -> None:
    assert n_steps(40, 8, 2.5, None) == 13
    assert n_steps(40, 8, 0.01, None) == 1
    assert n_steps(40, 8, 2.5, 7) == 7


def test_tasks_without_examples_cannot_be_trained() -> None:
    with pytest.raises(DataError, match="no training examples for none: choose other tasks"):
        mixture(COUNTS).plan(["none"], 1.0)


def test_seeds_give_other_orders() -> None:
    assert (
        mixture(COUNTS, seed=0).plan(None, 1.0).batch(0).tolist()
        != mixture(COUNTS, seed=1).plan(None, 1.0).batch(0).tolist()
    )


@pytest.mark.long
def test_a_mixture_is_part_of_a_run_and_half_a_mixture_is_an_error(toy_run: Command) -> None:
    plain = toy_run("--method", "lora_all", "--json").json
    uniform = toy_run("--method", "lora_all", "--set", "train.mixture=uniform", "--json").json
    assert plain["record"]["run_id"] != uniform["record"]["run_id"]
    wrong = toy_run("--method", "lora_all", "--set", "train.mixture=temperature")
    assert wrong.status == 2
    assert "train.temperature" in wrong.err
    warm = toy_run("--method", "lora_all", "--set", "train.mixture=temperature", "--set", "train.temperature=2")
    assert warm.status == 0, warm.err


def test_per_task_limits_the_training_examples_of_each_task(toy_run: Command) -> None:
    done = toy_run("--method", "lora_all", "--set", "train.per_task=5", "--json").json
    assert set(done["record"]["n_train"].values()) == {5}
