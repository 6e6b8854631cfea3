"""The training steps that `harness bench` times: a method's, PEFT's, a loop over experts, and the frozen model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.spec import TrainConfig
from harness.errors import UsageError
from harness.method import Adapter, Experts, HasExperts, StepRouting
from harness.training.batch import Batch, token_losses
from harness.training.optimiser import TaskAdamW, TrainedParameter

STAGE = "bench"
# The learning rate does not affect the time, and is small enough to keep weights finite.
OPTIMISER = TrainConfig(lr=1e-5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """One implementation of a training step.

    forward: called with the batch's inputs.
    optimiser: AdamW as in training, or None if no parameters are trained.
    reads: the adapter reads the prompts (trait LABEL_FREE).
    autocast: the type that forward computes in under autocast; None without autocast.
    """

    forward: Callable[..., Any]
    adapter: StepRouting
    optimiser: torch.optim.Optimizer | None
    reads: bool = False
    autocast: torch.dtype | None = None

    def step(self, batch: Batch, number: int) -> None:
        """Forward, backward and optimiser on one batch. number: the index of the step, for gates with noise."""
        self.adapter.begin_step(STAGE, number)
        with self.adapter.route(batch.routes, batch.examples):
            with self._precision(batch.labels.device):
                losses = token_losses(self.forward, self.adapter, batch, self.reads)
            loss = (losses * batch.weights).sum() + self.adapter.penalty() / len(batch.prompts)
            loss.backward()  # type: ignore[no-untyped-call]
        if self.optimiser is not None:
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """The memory that trained parameters and optimiser state take between steps."""
        if self.optimiser is None:
            return 0
        held: list[Tensor] = list(self.optimiser.state)
        held += [t for state in self.optimiser.state.values() for t in state.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in held)

    def release(self) -> None:
        """Drop the gradients and the optimiser's state."""
        if self.optimiser is not None:
            self.optimiser.zero_grad(set_to_none=True)
            self.optimiser.state.clear()

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)


class NoAdapter:
    """The ``StepRouting`` of a model without one of our adapters."""

    def begin_step(self, stage: str, step: int) -> None:
        """Nothing depends on the step."""

    def route(self, labels: Tensor, examples: Tensor | None = None) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """There is no router that reads prompts."""

    def penalty(self) -> Tensor:
        return torch.zeros(())


def twin(model: nn.Module) -> Any:
    """A copy of the model in training mode that shares its weights in memory."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared).train()


def optimiser_of(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as in training, for parameters without parts of single tasks."""
    return TaskAdamW((TrainedParameter(parameter=parameter) for parameter in parameters), OPTIMISER)


def frozen(model: nn.Module) -> Contender:
    """The frozen model, with backward to its inputs: a lower bound for methods that adapt the first layer."""
    base = twin(model)

    def forward(input_ids: Tensor, **inputs: Any) -> Any:
        embedded = base.get_input_embeddings()(input_ids).detach().requires_grad_()
        return base(inputs_embeds=embedded, **inputs)

    return Contender(forward=forward, adapter=NoAdapter(), optimiser=None)


def peft_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Contender:
    """PEFT's LoRA on the same layers, with float32 factors like ours. Raises: ImportError without PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(layers))
    adapted = get_peft_model(twin(model), config)
    dtype = next(model.parameters()).dtype
    return Contender(
        forward=adapted,
        adapter=NoAdapter(),
        optimiser=optimiser_of([p for p in adapted.parameters() if p.requires_grad]),
        # PEFT computes in the precision of its factors; half-precision models are trained under autocast.
        autocast=dtype if dtype in (torch.bfloat16, torch.float16) else None,
    )


class LoopLinear(nn.Module):
    """A frozen layer with a plain loop over its experts: the reference for the result and the speed of expert layers.

    A sum over outputs is computed as in MOELoRA's released code: the whole output of each expert, times the scale,
    times its weight. Scaling the weights first would save one of three passes over the outputs.

    Args:
        base: the frozen layer, d_in to d_out.
        experts: their factors are copied; their weights are computed in each forward.
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
    """A plain loop over the experts of an adapter that is on a copy of the model.

    The adapter's gates are used as they are; its stacked factors get no gradient, so that the optimiser skips them.

    Raises: UsageError if the adapter has no experts.
    """
    found: Mapping[str, Experts] = adapter.experts() if isinstance(adapter, HasExperts) else {}
    if not found:
        raise UsageError("the method has no experts to loop over: choose a method with experts, such as a gated one")
    looped = twin(model)
    for name, experts in found.items():
        parent, _, leaf = name.rpartition(".")
        owner = looped.get_submodule(parent)
        setattr(owner, leaf, LoopLinear(getattr(owner, leaf), experts).train())
    copies = [p for module in looped.modules() if isinstance(module, LoopLinear) for p in (*module.a, *module.b)]
    return Contender(forward=looped, adapter=adapter, optimiser=optimiser_of([*copies, *adapter.trainable().values()]))
