"""The choice of a learning rate from the runs of a grid."""

from __future__ import annotations

from pathlib import Path

from logged import messages

from harness.store.record import ProtocolScores, Scores, TaskScore
from harness.store.run_directory import RunDirectory
from harness.sweep.tuning import tuning_of


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
    tuning = tuning_of("cgc_lora", {1e-3: low, 1e-2: high}, "dev", 0)
    assert tuning is not None
    assert tuning.chosen == 1e-2


def test_a_dev_split_with_few_examples_still_decides_and_says_so(tmp_path: Path) -> None:
    """Scores of under 50 examples a task have no reported mean; that is not a divergence of training."""
    low = finished(tmp_path / "low", {"a": 0.2, "b": 0.6}, 8, None)
    high = finished(tmp_path / "high", {"a": 0.3, "b": 0.3}, 8, None)
    with messages() as logged:
        tuning = tuning_of("cgc_lora", {1e-3: low, 1e-2: high}, "dev", 0)
    assert tuning is not None
    assert tuning.chosen == 1e-3
    assert [tried.mean for tried in tuning.grid] == [0.4, 0.3]
    assert "fewer than 50 dev examples" in logged[0]
