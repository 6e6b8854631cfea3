"""Every registered method, ours or anyone's, keeps what its traits promise."""

from __future__ import annotations

import pytest

from harness.contract import Trial, contract
from harness.registry import METHODS, plugins


@pytest.mark.parametrize("trial", [trial for name in plugins(METHODS) for trial in contract(name)], ids=str)
def test_contract(trial: Trial) -> None:
    trial()
