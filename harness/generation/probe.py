"""Whether a base model can generate at all, tried before anything is trained on it."""

from __future__ import annotations

import torch

from harness.errors import HarnessError, ModelError
from harness.generation.cache import new_cache
from harness.models.loading import LoadedModel

_PROMPT = 4  # tokens


@torch.no_grad()
def check_generates(loaded: LoadedModel) -> None:
    """Read a prompt of four tokens and one more with the model's cache.

    Some models have a cache of their own kind, or a forward that decoding cannot use.

    Raises: ModelError if the model raises anything but an OutOfMemoryError, naming it.
    """
    eos = loaded.eos_ids[0]
    try:
        cache = new_cache(loaded, 1, _PROMPT, 2)
        cache.prefill(torch.tensor([0]), [[eos] * _PROMPT])
        token = torch.tensor([eos], device=loaded.device)
        cache.begin_step()
        cache.step(token, torch.ones_like(token, dtype=torch.bool))
    except (HarnessError, torch.OutOfMemoryError):
        raise
    # Models state no errors; whatever one raises here, it would raise when it predicts, after the training.
    except Exception as error:
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"{type(loaded.model).__name__} cannot generate here with a cache, so nothing is trained on it: "
            f"{type(error).__name__}: {text}. Choose another model, or one of the back ends that `harness list` shows"
        ) from error
