"""The cosine of updates in factors is that of the whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.method import LoRAFactors
from harness.pipeline.affinity import cosines_of_updates

pytestmark = pytest.mark.numeric


def lora(seed: int, rank: int, d_in: int, d_out: int) -> LoRAFactors:
    draw = torch.Generator().manual_seed(seed)
    return LoRAFactors(a=torch.randn(rank, d_in, generator=draw), b=torch.randn(d_out, rank, generator=draw))


def test_cosines_are_those_of_the_updates_of_all_layers_as_one_vector() -> None:
    tasks = [
        {"first": lora(10 * t, 2 + t, 6, 5), "second": lora(10 * t + 1, 3, 4, 7)} for t in range(3)
    ]  # also of different ranks
    whole = [np.concatenate([(f.b.double() @ f.a.double()).numpy().ravel() for f in t.values()]) for t in tasks]
    expected = [[one @ other / np.linalg.norm(one) / np.linalg.norm(other) for other in whole] for one in whole]
    np.testing.assert_allclose(cosines_of_updates(tasks), expected, rtol=1e-9, atol=1e-12)


def test_a_rotation_of_the_rank_changes_no_cosine_and_no_update_has_the_cosine_0() -> None:
    one, other = lora(1, 4, 6, 5), lora(2, 4, 6, 5)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))
    turned = LoRAFactors(a=turn.t() @ one.a, b=one.b @ turn)
    nothing = LoRAFactors(a=one.a, b=torch.zeros_like(one.b))
    found = cosines_of_updates([{"layer": f} for f in (one, turned, other, nothing)])
    assert found[0, 1] == pytest.approx(1, abs=1e-6)
    assert found[0, 2] == pytest.approx(found[1, 2], abs=1e-6)
    assert found[3].tolist() == [0, 0, 0, 0]
