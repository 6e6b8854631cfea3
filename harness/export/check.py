"""Whether PEFT loads an exported folder to the run's own outputs.

PEFT rewrites the names of some architectures and refuses modules of others, for which it raises or only warns. So the
folder is loaded, its factors are compared one by one, and its logits on a few prompts with those of the folded adapter.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.export.peft import pad
from harness.method import Adapter, LoRAFactors
from harness.models.loading import LoadedModel, decoder_start_token

PROMPTS: Final = 3
_TOKENS: Final = 64
_POSITIONS: Final = 8  # The last ones of a prompt, which depend on all of it; the logits of all tasks are kept.
_CLOSE: Final = 1e-3  # The largest difference of two float32 logits, relative to the largest logit.


@dataclass(frozen=True, kw_only=True)
class FoldedOutputs:
    """Logits (1, positions, vocabulary) of a task's folded adapter for some inputs (keyword arguments) of its model."""

    inputs: Sequence[Mapping[str, Tensor]]
    logits: Sequence[Tensor]


def folded_outputs(
    loaded: LoadedModel, adapter: Adapter, factors: Mapping[str, LoRAFactors], prompts: Sequence[str]
) -> FoldedOutputs:
    """The outputs that PEFT has to give, from the adapter that is still attached."""
    inputs = [_inputs(loaded, prompt) for prompt in prompts]
    with adapter.apply(factors, merge=False):
        return FoldedOutputs(inputs=inputs, logits=_logits(loaded.model, inputs))


def check_with_peft(
    loaded: LoadedModel, factors: Mapping[str, LoRAFactors], expected: FoldedOutputs, folder: Path
) -> None:
    """Load a written folder with PEFT on the bare base model, and compare. The model is bare again afterwards.

    Raises: ModelError that says what PEFT does instead.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What PEFT warns of is compared below.
        try:
            model: Any = PeftModel.from_pretrained(loaded.model, str(folder), autocast_adapter_dtype=False)
        except torch.OutOfMemoryError:
            raise  # It says nothing about the folder.
        # PEFT states no errors; whatever it raises here, a user of the folder would get too.
        except Exception as error:
            raise _refused(
                f"raises {type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
            ) from error
    try:
        _compare_factors(model, factors)
        found = _logits(model.eval(), expected.inputs)
    finally:
        model.unload()
    for ours, theirs in zip(expected.logits, found, strict=True):
        off = float((ours - theirs).abs().max())
        if not off <= _CLOSE * max(1.0, float(ours.abs().max())):
            raise _refused(f"gives logits that differ from the run's by up to {off:.2g}")


def _compare_factors(model: Any, factors: Mapping[str, LoRAFactors]) -> None:
    """Raises ModelError unless PEFT adapts these modules alone, with these factors."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
    wrong = [name for name, lora in factors.items() if not _holds(adapted.get(name), lora)]
    if wrong:
        raise _refused(f"leaves out or changes {len(wrong)} of {len(factors)} modules ({', '.join(wrong[:3])})")
    if others := sorted(adapted.keys() - factors.keys()):
        raise _refused(f"also adapts {len(others)} other modules ({', '.join(others[:3])})")


def _holds(layer: Any, lora: LoRAFactors) -> bool:
    if layer is None or "default" not in getattr(layer, "lora_A", {}):
        return False
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    own = pad(lora, a.shape[0]) if a.shape[0] >= lora.a.shape[0] else lora
    if a.shape != own.a.shape or b.shape != own.b.shape:
        return False
    return torch.allclose(a, own.a.to(a)) and torch.allclose(layer.scaling["default"] * b, own.b.to(b))


def _inputs(loaded: LoadedModel, prompt: str) -> Mapping[str, Tensor]:
    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"][:, :_TOKENS].to(loaded.device)
    if not loaded.encoder_decoder:
        return {"input_ids": ids}
    start = ids.new_full((1, 1), decoder_start_token(loaded))
    return {"input_ids": ids, "decoder_input_ids": torch.cat([start, ids[:, :4]], 1)}


@torch.no_grad()
def _logits(model: Any, inputs: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    return [model(**one, use_cache=False).logits[:, -_POSITIONS:].float() for one in inputs]


def _refused(does: str) -> ModelError:
    return ModelError(
        f"PEFT {importlib.metadata.version('peft')} does not load this LoRA as it was trained: it {does}. Nothing was "
        "written. Export a whole model with --format merged, or train with method.targets that leave these modules out "
        "(--no-check writes the folder all the same, for other programs)"
    )
