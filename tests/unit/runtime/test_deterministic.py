"""Deterministic kernels are on while the context is open, and what was set before comes back."""

from __future__ import annotations

import os

import pytest
import torch

from harness.runtime.deterministic import deterministic_algorithms, reserve_workspace


@pytest.mark.parametrize("on", [True, False])
def test_the_setting_lasts_as_long_as_the_context(on: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(on):
        assert torch.are_deterministic_algorithms_enabled() == (on or before)
    assert torch.are_deterministic_algorithms_enabled() == before


def test_a_workspace_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    reserve_workspace()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    reserve_workspace()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
