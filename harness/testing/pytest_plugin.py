"""``pytest --harness-method NAME``: runs the contract tests of an installed method instead of other tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.testing.contract import Trial


class ContractItem(pytest.Item):
    """One contract test of a method."""

    def __init__(self, *, trial: Trial, **more: Any) -> None:
        super().__init__(**more)
        self.trial = trial

    def runtest(self) -> None:
        self.trial()

    def reportinfo(self) -> tuple[str, None, str]:
        return "harness contract", None, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --harness-method."""
    parser.addoption(
        "--harness-method",
        action="append",
        default=[],
        metavar="NAME",
        help="run only the contract tests of this method of harness (repeatable)",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Replaces the collected tests by the contract tests of the named methods."""
    names: list[str] = config.getoption("--harness-method")
    if not names:
        return
    from harness.testing.contract import contract

    try:
        trials = [trial for name in names for trial in contract(name)]
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    items[:] = [ContractItem.from_parent(session, name=str(trial), trial=trial) for trial in trials]
