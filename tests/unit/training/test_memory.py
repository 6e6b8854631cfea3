"""The estimate of ``--dry-run`` against the measured peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "memory_peak.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["packed", "checkpointed"])
@pytest.mark.parametrize("method", ["lora_all", "cgc_lora", "moa"])
def test_the_estimate_of_memory_is_within_15_percent_of_the_peak(method: str, way: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), method, way],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if found["peak"] is None:
        pytest.skip("this system does not tell a process's peak")
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.15)
