"""lm-eval's own index is read once for equal names, and again when its files change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval_folder import colour_folder

from tasks.lm_eval_groups import index, kept_index


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A folder of toys in place of lm-eval's own tasks; returns the names for which the index was read."""
    folder = colour_folder(tmp_path / "tasks")
    folder.choices("a")
    folder.group("toys", ["a"])
    names: list[Any] = []

    def manager(include_path: str | None = None, include_defaults: bool = True) -> Any:
        names.append(include_path)
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(folder.path), include_defaults=False)

    monkeypatch.setattr(index, "TaskManager", manager)
    monkeypatch.setattr(kept_index, "TASKS", folder.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def test_equal_names_read_the_index_once(opened: list[Any]) -> None:
    first = kept_index.leaves_of(["toys"], None)
    again = kept_index.leaves_of(["toys"], None)
    assert list(first.found) == ["a"]
    assert (again.found, again.left_out) == (first.found, first.left_out)
    assert len(opened) == 1
    kept_index.leaves_of(["a"], None)
    assert len(opened) == 2


def test_a_changed_task_file_and_a_damaged_entry_read_it_again(opened: list[Any], tmp_path: Path) -> None:
    kept_index.leaves_of(["toys"], None)
    (tmp_path / "tasks" / "b.yaml").write_text("task: b", encoding="utf-8")
    kept_index.leaves_of(["toys"], None)
    assert len(opened) == 2
    for entry in (tmp_path / "cache").rglob("*.json"):
        entry.write_text("{", encoding="utf-8")
    assert list(kept_index.leaves_of(["toys"], None).found) == ["a"]
    assert len(opened) == 3
