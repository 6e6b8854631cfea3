"""The command that prints the counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.long
def test_bench_launches_prints_the_counts_of_every_stage(harness: Callable[..., Any]) -> None:
    pytest.importorskip("peft")
    found = harness("bench", "--launches", "--method", "lora_all", "--tasks", "2", "--json").json
    (row,) = found["rows"]["lora_all"]
    assert found["blocks"] == 30
    assert found["frozen"] < row["whole"] < found["peft"]
    assert row["to_peft"] == pytest.approx(row["whole"] / found["peft"])
    assert [one["kind"] for one in found["decoded"]["lora_all"]] == ["base", "folded", "routed"]


def test_bench_launches_takes_no_model(harness: Callable[..., Any]) -> None:
    done = harness("bench", "--launches", "--shape", "135m")
    assert done.status == 2
    assert "--launches counts a small model of its own: leave out --model, --shape" in done.err
