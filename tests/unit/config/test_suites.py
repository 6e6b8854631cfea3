"""Suites by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.spec import SuiteSpec
from harness.config.suites import absolute_suite, is_suite, open_recorded, open_suite, same_definition
from harness.errors import UsageError

FILE = 'name = "mine"\n[task.a]\ntrain = "a.csv"\nprompt_column = "p"\ntarget_column = "t"\nmetrics = ["accuracy"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a suite in mine/suite.toml."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_suite_is_opened_by_file_and_by_folder_and_its_data_are_next_to_it(folder: Path) -> None:
    by_folder, by_file = open_suite("mine"), open_suite("mine/suite.toml")
    assert by_folder == by_file
    assert (by_folder.name, by_folder.data) == ("mine", "mine")


def test_an_installed_name_is_never_a_folder_of_that_name(folder: Path) -> None:
    (folder / "planted").mkdir()
    opened = open_suite("planted")
    assert (opened.file, opened.reader, opened.data) == (None, None, None)
    assert absolute_suite("planted") == "planted"


def test_a_path_is_absolute_from_the_folder_of_the_file_that_names_it(folder: Path) -> None:
    assert absolute_suite("mine") == str(folder / "mine")
    assert absolute_suite("../mine/suite.toml", folder / "boards") == str(folder / "mine" / "suite.toml")
    assert absolute_suite("unknown") == "unknown"
    assert not is_suite("unknown")


def test_a_recorded_suite_needs_no_file(folder: Path) -> None:
    opened = open_suite("mine")
    fields = {"definition": dict(opened.suite.definition)}  # type: ignore[attr-defined]
    spec = SuiteSpec(name="mine", version=1, tasks={"a": 1}, fields=fields, reader=opened.reader)
    (folder / "mine" / "suite.toml").unlink()
    assert open_recorded(spec).suite == opened.suite
    assert same_definition(spec, opened)
    assert not same_definition(spec.model_copy(update={"fields": {}}), opened)


def test_an_installed_suite_has_no_reader_in_its_identity() -> None:
    assert SuiteSpec(name="a", version=1, tasks={"t": 1}).identity() == {"name": "a", "version": 1, "tasks": {"t": 1}}


@pytest.mark.parametrize("given", ["unknown", "mine/other.toml", "mine/a.csv", "."])
def test_what_is_neither_a_name_nor_a_file_is_an_error_with_the_remedy(folder: Path, given: str) -> None:
    (folder / "mine" / "a.csv").write_text("p,t\n")
    with pytest.raises(UsageError, match=r"harness new suite|give its file|ends in"):
        open_suite(given)
