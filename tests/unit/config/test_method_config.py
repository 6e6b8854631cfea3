"""The method of a run: its fields, ablation and budget."""

from __future__ import annotations

import dataclasses

import pytest

from harness.config.method_config import choose_method
from harness.registry import METHODS, method_class, plugins

ABLATIONS = [(name, ablation) for name in plugins(METHODS) for ablation in method_class(name).ablations]


@pytest.mark.parametrize(("name", "ablation"), ABLATIONS)
def test_an_ablation_differs_from_its_method_within_a_budget_in_what_it_names_alone(name: str, ablation: str) -> None:
    cls = method_class(name)
    parent, changed = (
        dataclasses.asdict(choose_method(cls, {}, chosen, "active:16", [16])) for chosen in (None, ablation)
    )
    assert {field for field in parent if parent[field] != changed[field]} == set(cls.ablations[ablation])
