"""Comparisons of toy runs: pairing, refused comparisons, verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from toy_runs import ToyRuns, without_deviations

from harness.config.spec import EvalConfig, TrainConfig
from harness.errors import HarnessError, StoreError, UsageError
from harness.scoring.compare import compare, render, to_json
from harness.store.run_directory import RunDirectory
from harness.store.tuning import Tried, Tuning, keep


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def right(p: float, seed: int = 0, n: int = 200) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).random(n) < p]


def two_tasks(sky: float, sea: float, seed: int = 0) -> dict[str, list[bool]]:
    return {"sky": right(sky, seed), "sea": right(sea, seed + 100)}


def test_two_runs_are_also_compared_by_mcnemars_test(toy_run: ToyRuns) -> None:
    a = two_tasks(0.8, 0.5)
    b = {"sky": right(0.6, seed=7), "sea": [not a["sea"][0], *a["sea"][1:]]}
    found = compare([toy_run("moe", a, trained=False)], [toy_run("lora", b, trained=False)])
    sky = found.tasks[0]
    only_a = sum(x and not y for x, y in zip(a["sky"], b["sky"], strict=True))
    only_b = sum(y and not x for x, y in zip(a["sky"], b["sky"], strict=True))
    assert sky.mcnemar == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert sky.difference.estimate is not None
    assert sky.difference.estimate.p == pytest.approx(sky.mcnemar, abs=0.01)  # The headline is accuracy, as there.
    assert sky.difference.estimate.value == pytest.approx(np.mean(a["sky"]) - np.mean(b["sky"]))
    assert sky.difference.p_adjusted == pytest.approx(2 * sky.difference.estimate.p)
    assert [t.outcome for t in found.tasks] == ["win", "tie"]
    assert found.mean.estimate is not None
    assert found.mean.estimate.value == pytest.approx(np.mean([np.mean(a[t]) - np.mean(b[t]) for t in a]))


def test_runs_of_equal_seeds_are_counted_in_pairs_and_a_single_run_with_every_other(toy_run: ToyRuns) -> None:
    a = {s: two_tasks(0.8, 0.3, seed=s) for s in range(3)}
    b = {s: two_tasks(0.5, 0.6, seed=s + 10) for s in (1, 2, 5)}
    moe = [toy_run("moe", flags, seed=s) for s, flags in a.items()]
    lora = [toy_run("lora", flags, seed=s) for s, flags in b.items()]
    pairs = compare(moe, lora).tasks[0].discordant
    assert [pair.seeds for pair in pairs] == [(1, 1), (2, 2)]
    for pair in pairs:
        left, right_ = a[pair.seeds[0]]["sky"], b[pair.seeds[1]]["sky"]
        only = (
            sum(x and not y for x, y in zip(left, right_, strict=True)),
            sum(y and not x for x, y in zip(left, right_, strict=True)),
        )
        assert (pair.only_a, pair.only_b) == only
        assert pair.p == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert [pair.seeds for pair in compare(moe, lora[:1]).tasks[0].discordant] == [(0, 1), (1, 1), (2, 1)]


def test_groups_of_seeds_compare_by_the_bootstrap(toy_run: ToyRuns) -> None:
    a = [toy_run("moe", two_tasks(0.8, 0.3, seed=s), seed=s) for s in range(3)]
    b = [toy_run("lora", two_tasks(0.5, 0.6, seed=s + 10), seed=s) for s in range(2)]
    found = compare(a, b)
    assert [t.mcnemar for t in found.tasks] == [None, None]
    assert found.mean.estimate is not None
    assert found.mean.estimate.seeds == (3, 2)
    assert "3 and 2 seeds" in found.verdict
    assert found.transfer.losing == ("sea",)


def test_one_trained_seed_is_not_tested(toy_run: ToyRuns) -> None:
    found = compare([toy_run("moe", two_tasks(0.8, 0.8))], [toy_run("lora", two_tasks(0.5, 0.5))])
    assert "moe above lora: not tested (moe has one trained seed)" in found.verdict
    assert "test examples only" in found.verdict
    assert [t.outcome for t in found.tasks] == [None, None]
    assert "no task was tested: moe has one trained seed" in render(found)


def test_one_trained_seed_against_several_is_not_tested_either(toy_run: ToyRuns) -> None:
    several = toy_run.seeds("lora", two_tasks(0.5, 0.5), 3)
    found = compare(several, [toy_run("moe", two_tasks(0.8, 0.8))])
    assert "not tested (moe has one trained seed)" in found.verdict


def test_a_method_without_training_is_compared_with_trained_seeds(toy_run: ToyRuns) -> None:
    found = compare(toy_run.seeds("moe", two_tasks(0.8, 0.8)), [toy_run("zero", two_tasks(0.5, 0.5), trained=False)])
    assert "moe above zero: significant" in found.verdict


def test_a_learning_rate_at_the_edge_of_its_grid_is_not_tested(toy_run: ToyRuns) -> None:
    moe, lora = toy_run.seeds("moe", two_tasks(0.8, 0.8)), toy_run.seeds("lora", two_tasks(0.5, 0.5))
    grid = tuple(Tried(lr=lr, mean=lr, run="r") for lr in (0.1, 0.2, 0.3))
    search = Tuning(label="lora", split="dev", seed=0, grid=grid, chosen=0.3, open_ends=("train.lr",))
    keep(lora[0], search)
    assert "not tested (lora has its best learning rate at the edge of its grid)" in compare(moe, lora).verdict
    keep(lora[0], search.model_copy(update={"open_ends": ()}))
    assert "moe above lora: significant" in compare(moe, lora).verdict


def test_the_same_method_under_other_seeds_is_named_by_seeds(toy_run: ToyRuns) -> None:
    found = compare(
        [toy_run("moe", two_tasks(0.6, 0.6, seed=s), seed=s) for s in (0, 1)],
        [toy_run("moe", two_tasks(0.6, 0.6, seed=s), seed=s) for s in (2, 3)],
    )
    assert (found.a, found.b) == ("moe (seed 0, 1)", "moe (seed 2, 3)")


def test_one_method_at_two_settings_is_named_by_what_differs(toy_run: ToyRuns) -> None:
    rows = two_tasks(0.6, 0.6)
    found = compare(toy_run.seeds("moe", rows), toy_run.seeds("moe", rows, train=TrainConfig(lr=0.5)))
    assert (found.a, found.b) == ("moe (train.lr=0.001)", "moe (train.lr=0.5)")
    assert found.mean.estimate is not None
    assert found.mean.estimate.value == 0.0
    assert "not significant, +0.0" in found.verdict


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "larger"}, r"model\.fingerprint"),
        ({"data": "others"}, r"data\.fingerprints"),
        ({"prompt": "chat"}, 'prompt: "plain" and "chat"'),
        ({"shots": 3}, "shots: 0 and 3"),
        ({"eval": EvalConfig(split="dev")}, r'eval\.split: "test" and "dev"'),
        ({"eval": EvalConfig(per_task=20)}, r"eval\.per_task"),
    ],
)
def test_runs_that_are_not_comparable_are_refused_with_what_differs(
    toy_run: ToyRuns, other: dict[str, Any], message: str
) -> None:
    rows = two_tasks(0.6, 0.6)
    with pytest.raises(UsageError, match=message):
        compare([toy_run("moe", rows)], [toy_run("lora", rows, **other)])


def test_other_tasks_and_other_examples_are_refused(toy_run: ToyRuns) -> None:
    moe = toy_run("moe", {"sky": right(0.5)})
    with pytest.raises(UsageError, match=r"suite\.tasks\.sea"):
        compare([moe], [toy_run("lora", two_tasks(0.5, 0.5))])
    with pytest.raises(UsageError, match=r"sky: .* different test examples"):
        compare([moe], [toy_run("lora", {"sky": right(0.5)}, prefix="new ")])


def test_a_side_of_unlike_runs_is_refused(toy_run: ToyRuns) -> None:
    rows = two_tasks(0.6, 0.6)
    mixed = [toy_run("moe", rows), toy_run("moe", rows, train=TrainConfig(lr=0.5))]
    with pytest.raises(UsageError, match=r"differ in train\.lr"):
        compare(mixed, [toy_run("lora", rows)])


def test_a_run_cannot_be_compared_with_itself(toy_run: ToyRuns) -> None:
    run = toy_run("moe", two_tasks(0.6, 0.6))
    with pytest.raises(UsageError, match="on both sides"):
        compare([run], [run])


def without_draws(run: RunDirectory) -> None:
    (run.path / "bootstrap.npz").unlink()


def without_record(run: RunDirectory) -> None:
    (run.path / "record.json").unlink()


def without_scores(run: RunDirectory) -> None:
    (run.path / "scores.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_draws, "harness score"),
        (without_record, "not finished"),
        (without_scores, "harness score"),
    ],
)
def test_a_run_without_what_is_needed_says_how_to_get_it(
    toy_run: ToyRuns, damage: Callable[[RunDirectory], None], message: str
) -> None:
    a, b = toy_run("moe", two_tasks(0.6, 0.6)), toy_run("lora", two_tasks(0.6, 0.6))
    damage(b)
    with pytest.raises(StoreError, match=message):
        compare([a], [b])


def test_an_unknown_protocol_is_named(toy_run: ToyRuns) -> None:
    a, b = toy_run("moe", two_tasks(0.6, 0.6)), toy_run("lora", two_tasks(0.6, 0.6))
    with pytest.raises(HarnessError, match=r"'offical'.*Did you mean 'official'"):
        compare([a], [b], "offical")


def test_the_text_and_the_json_say_the_same(toy_run: ToyRuns) -> None:
    found = compare(toy_run.seeds("moe", two_tasks(0.8, 0.3)), toy_run.seeds("lora", two_tasks(0.5, 0.6)))
    text, values = render(found), json.loads(json.dumps(to_json(found), allow_nan=False))
    assert found.verdict in text
    assert values["verdict"] == found.verdict
    assert "1 won, 0 tied, 1 lost" in text
    assert (values["won"], values["tied"], values["lost"]) == (1, 0, 1)
    assert values["losing"] == ["sea"]
    assert "A is lower in 1 of 2 tasks, most in sea -" in text
    assert values["tasks"]["sky"]["difference"]["low"] == found.tasks[0].difference.estimate.low  # type: ignore[union-attr]
    assert "protocol official" in text
    assert "MDD" in text
    sky = found.tasks[0].difference
    assert (values["tasks"]["sky"]["difference"]["mdd"], values["tasks"]["sky"]["difference"]["significant"]) == (
        sky.mdd,
        True,
    )


def test_sides_from_different_machines_are_named(toy_run: ToyRuns) -> None:
    a, b = toy_run("moe", two_tasks(0.8, 0.3)), toy_run("lora", two_tasks(0.5, 0.6))
    assert "different hardware" not in render(compare([a], [b]))
    for run, cpu in ((a, "AMD EPYC"), (b, "Intel Xeon")):
        record = run.record()
        assert record is not None
        machine = record.provenance.model_copy(update={"hardware": {"cpu": cpu, "torch_threads": 2}})
        run.write("record.json", record.model_copy(update={"provenance": machine}))
    assert "the sides come from different hardware: CPU AMD EPYC and Intel Xeon" in render(compare([a], [b]))


def test_runs_of_an_earlier_version_are_compared_by_their_draws_and_named(toy_run: ToyRuns) -> None:
    a, b = toy_run.seeds("moe", two_tasks(0.8, 0.5)), toy_run.seeds("lora", two_tasks(0.5, 0.5))
    new = compare(a, b)
    assert "bootstrap draws only" not in render(new)
    without_deviations(b[0])
    old = compare(a, b)
    assert "bootstrap draws only" in render(old)
    assert to_json(old)["draws_only"]
    for one, two in zip(new.tasks, old.tasks, strict=True):
        assert one.difference.estimate is not None
        assert two.difference.estimate is not None
        assert one.difference.estimate.error == pytest.approx(two.difference.estimate.error, rel=0.1)


def test_the_sample_is_called_a_sample(toy_run: ToyRuns) -> None:
    rows = two_tasks(0.6, 0.6)
    found = compare([toy_run("moe", rows, sample=True)], [toy_run("lora", rows, sample=True)])
    assert "embedded sample" in render(found)
