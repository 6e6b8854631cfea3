"""Every registered method, of this project or of another, keeps its contract."""

from __future__ import annotations

import pytest

from harness.registry import METHODS, plugins
from harness.testing.contract import Trial, contract

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("trial", [trial for name in plugins(METHODS) for trial in contract(name)], ids=str)
def test_contract(trial: Trial) -> None:
    trial()
