"""Suites by name or by file: the one place where a suite is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.config.keys import build_from_keys, changed
from harness.config.spec import SuiteSpec
from harness.errors import HarnessError, UsageError, unknown
from harness.registry import SUITES, plugins, suite_class
from harness.task import Suite

FILE_NAME: Final = "suite"
"""The file in a folder that is given instead of a file, without its ending."""


@dataclass(frozen=True, kw_only=True)
class OpenSuite:
    """A suite and where it comes from.

    name: as runs record it.
    file, reader: of a suite that a file defines, the file and the registered suite that has read it; else None.
    """

    name: str
    suite: Suite
    file: Path | None = None
    reader: str | None = None

    @property
    def data(self) -> str | None:
        """The source that is read where no data are given: the file's folder. None for an installed suite."""
        return None if self.file is None else str(self.file.parent)


def open_suite(given: str, fields: Mapping[str, Any] | None = None) -> OpenSuite:
    """The suite that the user names: an installed one, or else a file or a folder with a file.

    Args: fields: options of an installed suite (``--set suite.<field>=value``).
    Raises: UsageError for a name that is neither installed nor a path, for a file that does not define a suite, and
        for an option of a suite from a file.
    """
    path = Path(given).expanduser()
    if not is_suite(given):
        raise _unknown(given)
    if given in plugins(SUITES):
        suite = build_from_keys(suite_class(given), fields or {}, "suite")
        if type(suite).reads:
            raise UsageError(
                f"suite {given!r} reads its tasks from a file. Give the file (*{' or *'.join(type(suite).reads)}); "
                "`harness new suite DIR` writes an example"
            )
        return OpenSuite(name=given, suite=suite)
    file = _file(path)
    for name in fields or {}:
        raise UsageError(f"suite.{name}: a suite from a file has no options. Change {file} instead")
    reader = _readers()[file.suffix]
    suite = suite_class(reader).from_file(file)
    if suite.name in plugins(SUITES):
        raise UsageError(f"{file}: name = {suite.name!r} is an installed suite. Give this one another name")
    return OpenSuite(name=suite.name, suite=suite, file=file, reader=reader)


def open_recorded(spec: SuiteSpec) -> OpenSuite:
    """``suite_of`` with the name and the reader of the record; the file is not needed."""
    return OpenSuite(name=spec.name, suite=suite_of(spec), reader=spec.reader)


def suite_of(spec: SuiteSpec) -> Suite:
    """The suite of a record, with its options; a suite from a file is as it was then, whatever the file is now."""
    return build_from_keys(suite_class(spec.reader or spec.name), spec.fields, "suite")


def same_definition(spec: SuiteSpec, opened: OpenSuite) -> bool:
    """Whether a record's suite is the one that is opened; for a suite from a file, with the same content."""
    if spec.name != opened.name:
        return False
    return opened.file is None or dict(spec.fields) == changed(opened.suite, type(opened.suite)())


def absolute_suite(given: str, folder: Path | None = None) -> str:
    """A name as it is, and a path as an absolute one. folder: where relative paths start (default: here)."""
    path = (folder or Path()) / Path(given).expanduser()
    return str(path.resolve()) if given not in plugins(SUITES) and _is_path(path) else given


def is_suite(given: str) -> bool:
    """Whether a text is the name of an installed suite, or a path."""
    return given in plugins(SUITES) or _is_path(Path(given).expanduser())


def example_writers() -> Mapping[str, type[Suite]]:
    """The installed suites that read files, by name."""
    return {name: suite_class(name) for name in dict.fromkeys(_readers().values())}


def _is_path(path: Path) -> bool:
    return path.exists() or path.suffix in _readers() or len(path.parts) > 1


def _file(path: Path) -> Path:
    """The suite's file. Raises: UsageError if there is none."""
    readers = _readers()
    if path.is_dir():
        found = [file for file in (path / f"{FILE_NAME}{ending}" for ending in readers) if file.is_file()]
        if not found:
            names = " or ".join(f"{FILE_NAME}{ending}" for ending in readers)
            raise UsageError(f"--suite {path}: the folder has no {names}. `harness new suite DIR` writes an example")
        return found[0]
    if not path.exists():
        raise UsageError(f"--suite {path}: no such file. `harness new suite DIR` writes an example; see: harness list")
    if path.suffix not in readers:
        raise UsageError(f"--suite {path}: not a suite's file, whose name ends in {' or '.join(readers)}")
    return path


def _readers() -> Mapping[str, str]:
    """The installed suites that read files, by the endings of the files."""
    found: dict[str, str] = {}
    for name in plugins(SUITES):
        try:
            endings = suite_class(name).reads
        except HarnessError:  # `harness list --check` shows why; it concerns the user only if that suite is named
            continue
        found |= {ending: name for ending in endings if ending not in found}
    return found


def _unknown(given: str) -> UsageError:
    error = unknown("suite", given, plugins(SUITES), see="harness list")
    return UsageError(f"{error}. For a suite of your own, give its file")
