"""Models that several tests of generation use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from toy_generation import VOCABULARY, loaded

from harness.models.loading import LoadedModel


@pytest.fixture
def llama(toy_llama: Callable[..., Any]) -> LoadedModel:
    return loaded(toy_llama(vocab_size=VOCABULARY))
