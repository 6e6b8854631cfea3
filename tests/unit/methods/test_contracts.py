"""Every registered method, of this project or of another, keeps its contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.mark.structures import ParameterSet

from harness.registry import METHODS, plugins
from harness.testing.contract import Trial, contract

pytestmark = pytest.mark.numeric


def cases() -> Iterator[ParameterSet]:
    """The trials of every method; those of its ablations are long tests."""
    for name in plugins(METHODS):
        for trial in contract(name):
            yield pytest.param(trial, id=str(trial), marks=[pytest.mark.long] if "+" in str(trial) else [])


@pytest.mark.parametrize("trial", cases())
def test_contract(trial: Trial) -> None:
    trial()
