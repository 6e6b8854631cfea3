"""The training steps that `harness bench` times: a method's, PEFT's, a loop over experts, and the floor of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import Adapter, Experts, HasExperts
from harness.training.batch import Batch, token_losses

STAGE = "bench"


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """One way of making a training step.

    forward: called with the batch's inputs. optimiser: of the parameters, AdamW as in training; None: none are trained.
    reads: the adapter is told the prompts (trait LABEL_FREE). autocast: to what forward computes in; None: as it is.
    """

    forward: Callable[..., Any]
    adapter: Adapter
    optimiser: torch.optim.Optimizer | None
    reads: bool = False
    autocast: torch.dtype | None = None

    def step(self, batch: Batch, number: int) -> None:
        """Forward, backward and optimiser on one batch; ``number`` counts steps, for gates with noise."""
        self.adapter.begin_step(STAGE, number)
        with self.adapter.route(batch.routes):
            with self._precision(batch.labels.device):
                losses = token_losses(self.forward, self.adapter, batch, self.reads)
            loss = (losses * batch.weights).sum() + self.adapter.penalty() / len(batch.prompts)
            loss.backward()  # type: ignore[no-untyped-call]
        if self.optimiser is not None:
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """What the trained parameters and the optimiser keep between steps."""
        if self.optimiser is None:
            return 0
        held: list[Tensor] = list(self.optimiser.state)
        held += [t for state in self.optimiser.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)


class NoAdapter:
    """Stands where an adapter is expected and adds nothing."""

    def begin_step(self, stage: str, step: int) -> None:
        pass

    def route(self, labels: Tensor) -> AbstractContextManager[None]:
        return nullcontext()

    def penalty(self) -> float:
        return 0.0


def twin(model: nn.Module) -> Any:
    """The same model again in training mode, with the same weights in the same memory."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared).train()


def optimiser_of(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; the learning rate matters to no clock, and is small enough to keep weights finite."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)


def floor(model: nn.Module) -> Contender:
    """The frozen model forward, and backward to its inputs: what any method pays that adapts the first layer."""
    base = twin(model)

    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        embedded = base.get_input_embeddings()(input_ids).detach().requires_grad_()
        return base(inputs_embeds=embedded, **inputs)

    return Contender(forward=forward, adapter=cast("Adapter", NoAdapter()), optimiser=None)


def peft_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Contender:
    """PEFT's LoRA on the same layers, its factors in float32 as ours are. Raises: ImportError without PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(layers))
    adapted = get_peft_model(twin(model), config)
    dtype = next(model.parameters()).dtype
    return Contender(
        forward=adapted,
        adapter=cast("Adapter", NoAdapter()),
        optimiser=optimiser_of([p for p in adapted.parameters() if p.requires_grad]),
        # PEFT computes in the precision of its factors; in halves it is used under autocast.
        autocast=dtype if dtype in (torch.bfloat16, torch.float16) else None,
    )


class LoopLinear(nn.Module):
    """A frozen layer and its experts, one after the other: what a bank has to be faster than, and equal to.

    An output sum is computed in the order in which MOELoRA's released code does: each expert's output, whole, times
    the scale, times its weight. (Scaling the weights first would save one pass of three over the outputs.)

    Args:
        base: the frozen layer, d_in to d_out.
        experts: whose factors are copied and whose weights are asked for in each forward.
    """

    def __init__(self, base: nn.Module, experts: Experts) -> None:
        super().__init__()
        self.base = base
        self.a = nn.ParameterList(nn.Parameter(a.detach().clone()) for a in experts.a)
        self.b = nn.ParameterList(nn.Parameter(b.detach().clone()) for b in experts.b)
        self.weights, self.merge, self.scale = experts.weights, experts.merge, experts.scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        g = self.weights().to(x.dtype)
        g = g.repeat_interleave(x.shape[:-1].numel() // len(g), 0).view(*x.shape[:-1], -1)
        if self.merge == "output":
            for k, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
                out = out + (x @ a.to(x.dtype).T @ b.to(x.dtype).T) * self.scale * g[..., k : k + 1]
            return out
        u = torch.zeros((), dtype=x.dtype, device=x.device)
        for k, a in enumerate(self.a):
            u = u + g[..., k : k + 1] * (x @ a.to(x.dtype).T)
        for k, b in enumerate(self.b):
            out = out + self.scale * g[..., k : k + 1] * (u @ b.to(x.dtype).T)
        return out


def loop(model: nn.Module, adapter: Adapter) -> Contender:
    """The experts of an adapter, which is on a twin of its own, in a loop. Raises: UsageError where it has none.

    The adapter's gates are used as they are; its stacked factors get no gradient, so that the optimiser skips them.
    """
    found: Mapping[str, Experts] = adapter.experts() if isinstance(adapter, HasExperts) else {}
    if not found:
        raise UsageError("the method has no experts to loop over")
    looped = twin(model)
    for name, experts in found.items():
        parent, _, leaf = name.rpartition(".")
        owner = looped.get_submodule(parent)
        setattr(owner, leaf, LoopLinear(getattr(owner, leaf), experts).train())
    copies = [p for module in looped.modules() if isinstance(module, LoopLinear) for p in (*module.a, *module.b)]
    return Contender(forward=looped, adapter=adapter, optimiser=optimiser_of([*copies, *adapter.trainable().values()]))
