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
    reader: of a suite that a file or an argument defines, the registered suite that has read it; else None.
    file: of a suite that a file defines; else None.
    source: of a suite that an argument names, what is read where no data are given; else None.
    notes: what the user should know about it, such as tasks that are left out.
    """

    name: str
    suite: Suite
    file: Path | None = None
    reader: str | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def data(self) -> str | None:
        """What is read where no data are given: for a file its folder. None for an installed suite."""
        return self.source if self.file is None else str(self.file.parent)

    @property
    def is_defined(self) -> bool:
        """Whether a file or an argument defines it now, rather than its name or a record."""
        return self.data is not None


def open_suite(given: str, fields: Mapping[str, Any] | None = None) -> OpenSuite:
    """The suite that the user names: an installed one, one with an argument, or else a file or a folder with a file.

    Args: fields: options of an installed suite (``--set suite.<field>=value``).
    Raises: UsageError for a name that is neither installed nor a path, for a file or an argument that does not define
        a suite, and for an option of a suite from a file.
    """
    if not is_suite(given):
        raise _unknown(given)
    if given in plugins(SUITES):
        return OpenSuite(name=given, suite=_installed(given, fields or {}))
    named = _named(given)
    if named is not None:
        return _from_argument(named, given.partition(":")[2], fields or {})
    file = _file(Path(given).expanduser())
    for name in fields or {}:
        raise UsageError(f"suite.{name}: a suite from a file has no options. Change {file} instead")
    reader = _readers()[file.suffix]
    suite = suite_class(reader).from_file(file)
    if suite.name in plugins(SUITES):
        raise UsageError(f"{file}: name = {suite.name!r} is an installed suite. Give this one another name")
    return OpenSuite(name=suite.name, suite=suite, file=file, reader=reader)


def _installed(name: str, fields: Mapping[str, Any]) -> Suite:
    """The suite of a name alone. Raises: UsageError if it needs a file or an argument."""
    cls = suite_class(name)
    if cls.argument is not None:
        raise UsageError(f"suite {name!r} needs an argument: --suite {name}:{cls.argument}")
    suite = build_from_keys(cls, fields, "suite")
    if cls.reads:
        raise UsageError(
            f"suite {name!r} reads its tasks from a file. Give the file (*{' or *'.join(cls.reads)}); "
            "`harness new suite DIR` writes an example"
        )
    return suite


def _from_argument(name: str, argument: str, fields: Mapping[str, Any]) -> OpenSuite:
    cls = suite_class(name)
    if not argument.strip():
        raise UsageError(f"--suite {name}: is incomplete: give {name}:{cls.argument}")
    options = None if cls.argument_options is None else build_from_keys(cls.argument_options, fields, "suite")
    found = cls.from_argument(argument, options)
    return OpenSuite(name=found.suite.name, suite=found.suite, reader=name, source=found.source, notes=found.notes)


def open_recorded(spec: SuiteSpec) -> OpenSuite:
    """``suite_of`` with the name and the reader of the record; the file is not needed."""
    return OpenSuite(name=spec.name, suite=suite_of(spec), reader=spec.reader)


def suite_of(spec: SuiteSpec) -> Suite:
    """The suite of a record, with its options; a suite from a file is as it was then, whatever the file is now."""
    return build_from_keys(suite_class(spec.reader or spec.name), spec.fields, "suite")


def same_definition(spec: SuiteSpec, opened: OpenSuite) -> bool:
    """Whether a record's suite is the one that is opened, with equal content where a file or an argument defines it."""
    if spec.name != opened.name:
        return False
    return not opened.is_defined or dict(spec.fields) == changed(opened.suite, type(opened.suite)())


def absolute_suite(given: str, folder: Path | None = None) -> str:
    """A name as it is, and a path as an absolute one. folder: where relative paths start (default: here)."""
    path = (folder or Path()) / Path(given).expanduser()
    named = given in plugins(SUITES) or _named(given) is not None
    return str(path.resolve()) if not named and _is_path(path) else given


def is_suite(given: str) -> bool:
    """Whether a text is the name of an installed suite, such a name with an argument, or a path."""
    return given in plugins(SUITES) or _named(given) is not None or _is_path(Path(given).expanduser())


def example_writers() -> Mapping[str, type[Suite]]:
    """The installed suites that read files, by name."""
    return {name: suite_class(name) for name in dict.fromkeys(_readers().values())}


def _named(given: str) -> str | None:
    """The installed suite that takes what follows the colon; None for a text that is not NAME:ARGUMENT."""
    name, colon, _ = given.partition(":")
    return name if colon and name in plugins(SUITES) and suite_class(name).argument is not None else None


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
