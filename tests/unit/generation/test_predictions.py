"""Predictions on disk are recovered, counted and never duplicated."""

from __future__ import annotations

from pathlib import Path

from logged import messages

from harness.generation.predictions import Completion, PredictionKey, PredictionWriter
from harness.store.run_directory import RunDirectory
from harness.task import Example

EXAMPLES = {"sort": [Example(id=str(i), task="sort", prompt=f"sort {i}", target=str(i)) for i in range(4)]}


def writer(folder: Path) -> PredictionWriter:
    return PredictionWriter(run=RunDirectory(folder), examples=EXAMPLES)


def completion(i: int, tokens: int | None = 3) -> Completion:
    return Completion(id=str(i), text=f"text {i}", tokens=tokens, truncated=False)


def test_tokens_of_an_earlier_process_are_counted_once(tmp_path: Path) -> None:
    first = writer(tmp_path)
    assert first.recover() == set()
    first.write("sort", [completion(0), completion(1, 4)])
    assert first.n_tokens == 7
    second = writer(tmp_path)
    assert second.recover() == {PredictionKey("sort", "0"), PredictionKey("sort", "1")}
    second.write("sort", [completion(2)])
    assert second.n_tokens == 10 == sum(p.tokens or 0 for p in second.run.predictions(["sort"])["sort"])


def test_a_back_end_that_reports_no_tokens_counts_as_none(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.write("sort", [Completion(id="0", text="text")])
    (prediction,) = first.run.predictions(["sort"])["sort"]
    assert (first.n_tokens, prediction.tokens, prediction.cut) == (0, None, None)


def test_an_incomplete_line_is_removed_with_a_warning(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.write("sort", [completion(0), completion(1)])
    path = first.run.prediction_file("sort")
    path.write_bytes(path.read_bytes()[:-5])
    with messages() as lines:
        assert writer(tmp_path).recover() == {PredictionKey("sort", "0")}
    assert "incomplete last line" in lines[0]
    assert len(path.read_text().splitlines()) == 1


def test_predictions_for_other_prompts_are_removed_with_a_warning(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.write("sort", [completion(0), completion(1)])
    changed = {"sort": [EXAMPLES["sort"][0], Example(id="1", task="sort", prompt="sort again", target="1")]}
    second = PredictionWriter(run=RunDirectory(tmp_path), examples=changed)
    with messages() as lines:
        assert second.recover() == {PredictionKey("sort", "0")}
    assert "removed 1 predictions for other prompts" in lines[0]
    assert second.n_tokens == 3


def test_the_predictions_of_other_ranks_are_taken_over_once(tmp_path: Path) -> None:
    main = writer(tmp_path)
    main.write("sort", [completion(0)])
    for rank, i in ((1, 1), (2, 2)):
        main.of_rank(rank).write("sort", [completion(i)])
    assert main.of_rank(0) is main
    assert main.recover() == {PredictionKey("sort", "0")}  # the others are still elsewhere
    found = main.collect()
    assert found == {PredictionKey("sort", str(i)) for i in range(3)}
    assert main.n_tokens == 9
    assert [p.id for p in main.run.predictions(["sort"])["sort"]] == ["0", "1", "2"]
    assert not (tmp_path / "ranks").exists()
    assert main.collect() == found


def test_predictions_of_a_rank_that_was_killed_are_taken_over_without_the_incomplete_ones(tmp_path: Path) -> None:
    other = writer(tmp_path).of_rank(1)
    other.write("sort", [completion(1), completion(2)])
    path = other.run.prediction_file("sort")
    path.write_bytes(path.read_bytes()[:-5])
    main = writer(tmp_path)
    # Killed in between, after the first prediction was taken over: it is in both places.
    main.write("sort", [completion(1)])
    with messages() as lines:
        assert main.collect() == {PredictionKey("sort", "1")}
    assert "incomplete last line" in lines[0]
    assert [p.id for p in main.run.predictions(["sort"])["sort"]] == ["1"]
