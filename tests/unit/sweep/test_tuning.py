"""The choice of a learning rate from the runs of a grid."""

from __future__ import annotations

from pathlib import Path

from logged import messages

from harness.store.record import ProtocolScores, Scores, TaskScore
from harness.store.run_directory import RunDirectory
from harness.store.tuning import Tuning
from harness.sweep.search import Axis, Search
from harness.sweep.tuning import TuningData, tuning_of

SEARCH = Search(axes=(Axis.of("train.lr", [1e-3, 1e-2]),), max_points=2)
DEV = TuningData(split="dev", seeds=(0,))


def finished(path: Path, values: dict[str, float], n: int, mean: float | None) -> RunDirectory:
    """A run directory with what a search reads: that the run is finished, and its scores."""
    run = RunDirectory(path)
    path.mkdir()
    (path / "record.json").touch()
    tasks = {
        name: TaskScore(headline="f1", value=value, ci95=None, metrics={}, n=n, n_train=1, n_unparsed=0, n_cut=0)
        for name, value in values.items()
    }
    run.write_scores(Scores({"official": ProtocolScores(mean=mean, mean_of=(), tasks=tasks)}))
    return run


def test_the_rate_with_the_best_mean_is_chosen(tmp_path: Path) -> None:
    low = finished(tmp_path / "low", {"a": 0.2, "b": 0.9}, 60, 0.55)
    high = finished(tmp_path / "high", {"a": 0.8, "b": 0.4}, 60, 0.6)
    tuning = tuning_of("cgc_lora", SEARCH, {(1e-3,): [low], (1e-2,): [high]}, DEV)
    assert tuning is not None
    assert tuning.chosen == 1e-2


def test_a_dev_split_with_few_examples_still_decides_and_says_so(tmp_path: Path) -> None:
    """Scores of under 50 examples a task have no reported mean; that is not a divergence of training."""
    low = finished(tmp_path / "low", {"a": 0.2, "b": 0.6}, 8, None)
    high = finished(tmp_path / "high", {"a": 0.3, "b": 0.3}, 8, None)
    with messages() as logged:
        tuning = tuning_of("cgc_lora", SEARCH, {(1e-3,): [low], (1e-2,): [high]}, DEV)
    assert tuning is not None
    assert tuning.chosen == 1e-3
    assert [tried.mean for tried in tuning.grid] == [0.4, 0.3]
    assert "fewer than 50 dev examples" in logged[0]


def test_several_seeds_decide_by_their_mean(tmp_path: Path) -> None:
    runs = {
        (1e-3,): [finished(tmp_path / f"low{i}", {"a": v}, 60, v) for i, v in enumerate((0.5, 0.5))],
        (1e-2,): [finished(tmp_path / f"high{i}", {"a": v}, 60, v) for i, v in enumerate((0.9, 0.0))],
    }
    tuning = tuning_of("cgc_lora", SEARCH, runs, TuningData(split="dev", seeds=(0, 1)))
    assert tuning is not None
    assert [tried.mean for tried in tuning.grid] == [0.5, 0.45]
    assert (tuning.chosen, tuning.seeds, tuning.open_ends) == (1e-3, (0, 1), ("train.lr",))
    assert tuning.at_the_edge


def test_a_search_from_before_grids_grew_is_read_and_was_at_the_edge_if_its_best_was_an_end() -> None:
    grid = [{"lr": lr, "mean": lr, "run": "r"} for lr in (0.1, 0.2, 0.3)]
    old = {"label": "lora_all", "split": "dev", "seed": 0, "grid": grid}
    assert Tuning.model_validate({**old, "chosen": 0.3}).at_the_edge
    assert not Tuning.model_validate({**old, "chosen": 0.2}).at_the_edge
