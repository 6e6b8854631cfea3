"""Artefacts are found by their kind, whatever their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.leaderboard.plots.digest import make_digest
from harness.method import ArtefactKind
from harness.store.artefacts import read_artefacts, write_artefact
from harness.store.run_directory import RunDirectory

GATE = {"model.layers.0.gate": {"a": [0.25, 0.75], "b": [1.0, 0.0]}}


def test_artefacts_are_selected_by_kind_and_not_by_name(tmp_path: Path) -> None:
    write_artefact(tmp_path, "mixture", GATE, ArtefactKind.GATES)
    write_artefact(tmp_path, "skills", ["a list of anything"], ArtefactKind.OTHER)
    assert read_artefacts(tmp_path, ArtefactKind.GATES) == {"mixture": GATE}
    assert read_artefacts(tmp_path, ArtefactKind.SKILLS) == {}
    assert json.loads((tmp_path / "mixture.json").read_text()) == GATE


def test_in_runs_without_kinds_the_name_is_the_kind(tmp_path: Path) -> None:
    for name in ("gates", "trials"):
        (tmp_path / f"{name}.json").write_text(json.dumps(GATE))
    assert read_artefacts(tmp_path, ArtefactKind.GATES) == {"gates": GATE}


def test_a_damaged_artefact_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "gates.json").write_text("{")
    with pytest.raises(StoreError, match=r"gates\.json is not JSON"):
        read_artefacts(tmp_path, ArtefactKind.GATES)


def test_gates_of_any_name_are_drawn(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_artefact(run.artefacts, "mixture", GATE, ArtefactKind.GATES)
    assert make_digest(run).gates == {"a": ((0.25, 0.75),), "b": ((1.0, 0.0),)}
