"""The initial values of published runs can be drawn again."""

from __future__ import annotations

import torch

from harness.seeding import stable_seed
from methods.base import generator, method_seed

SEED_OF_A_METHOD = 1623799879446842624


def test_seeds_of_methods_and_of_the_engine_stay_what_they_were() -> None:
    assert stable_seed("order", 3) == 4219176741761377109
    assert method_seed("order", 3) == stable_seed("order", 3, separator="\0") == SEED_OF_A_METHOD
    assert torch.equal(
        torch.rand(3, generator=generator("order", 3)),
        torch.rand(3, generator=torch.Generator().manual_seed(SEED_OF_A_METHOD)),
    )
