"""An output that is written in chunks: what a killed process leaves is continued, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import StoreError, UsageError
from harness.store.output_file import OutputFile

IDS = ["car", "doll", "风筝", "drum", "ball"]


@pytest.fixture
def out(tmp_path: Path) -> OutputFile:
    found = OutputFile(tmp_path / "toys.jsonl")
    found.claim({"run_id": "1"}, {})
    return found


def fill(out: OutputFile, n: int) -> None:
    out.append([{"id": id_, "prediction": "一\n二"} for id_ in IDS[:n]])


@pytest.mark.parametrize(("n", "kept"), [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4), (5, 5)])
def test_complete_chunks_are_kept_and_the_last_may_be_shorter(out: OutputFile, n: int, kept: int) -> None:
    fill(out, n)
    assert out.recover(iter(IDS), 2) == kept
    assert [line["id"] for line in out.lines()] == IDS[:kept]


@pytest.mark.parametrize("torn", ['{"id": "ball", "pred', "{", '{"id": "ball", "prediction": "x"}'])
def test_a_line_without_its_end_is_removed(out: OutputFile, torn: str) -> None:
    fill(out, 4)
    before = out.path.read_bytes()
    with out.path.open("a") as file:
        file.write(torn)
    assert out.recover(iter(IDS), 2) == 4
    assert out.path.read_bytes() == before


def test_lines_of_other_examples_are_refused(out: OutputFile) -> None:
    fill(out, 3)
    with pytest.raises(StoreError, match="line 2: the id is 'doll', but the input has 'robot' there"):
        out.recover(iter(["car", "robot", "kite"]), 2)
    with pytest.raises(StoreError, match="line 3: the id is '风筝', but the input has None"):
        out.recover(iter(IDS[:2]), 2)
    out.path.write_text("not JSON\n")
    with pytest.raises(StoreError, match="line 1 is damaged"):
        out.recover(iter(IDS), 2)


def test_other_settings_are_refused_as_long_as_the_output_exists(out: OutputFile) -> None:
    fill(out, 2)
    out.claim({"run_id": "1"}, {})
    with pytest.raises(UsageError, match="predictions with another run and another task"):
        out.claim({"run_id": "2", "task": "colour"}, {"run_id": "run"})
    out.finish()
    assert out.is_finished()
    out.path.unlink()
    out.claim({"run_id": "2"}, {})
    assert not out.is_finished()
    out.claim({"run_id": "2"}, {})


def test_a_file_of_someone_else_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not the output of this command"):
        OutputFile(tmp_path / "mine.txt").check_free()
    with pytest.raises(UsageError, match="this is a folder"):
        OutputFile(tmp_path).check_free()
    OutputFile(tmp_path / "new.jsonl").check_free()
