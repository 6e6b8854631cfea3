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
