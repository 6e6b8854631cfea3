"""Registered names are read once, and again where other distributions can be imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.registry import METHODS, plugins


def test_names_are_read_once_until_another_folder_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plugins(METHODS)
    assert plugins(METHODS) is before
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.methods]\nlate = methods.lora_all:LoRAAll\n")
    assert "late" not in before
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins(METHODS)["late"].distribution == "late"
    monkeypatch.undo()
    assert "late" not in plugins(METHODS)
