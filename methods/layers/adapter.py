"""What a LoRA-like method puts on a model: the one implementation of ``harness.method.Adapter`` that all share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import HarnessError, ModelError, unknown
from harness.method import Experts, LoRAFactors
from methods.layers.fused import side_by_side
from methods.layers.linear import AdaptedLinear, TaskLinear
from methods.layers.peft_io import PeftLoRA
from methods.layers.routing import Route, State


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an adapter is made of: adapted layers by module name, and the modules that they share by key."""

    model: nn.Module
    tasks: tuple[str, ...]
    layers: Mapping[str, AdaptedLinear]
    modules: Mapping[str, nn.Module]
    route: Route
    seed: int


class LoRAAdapter:
    """Adapted layers in the places of the model's own, and the contexts that say what they add."""

    def __init__(self, parts: Parts) -> None:
        self.model = parts.model
        self.tasks = parts.tasks
        self.layers = parts.layers
        self.modules = parts.modules
        self.seed = parts.seed
        self._route = parts.route
        for name, layer in self.layers.items():
            layer.train(self.model.training)
            _replace(self.model, name, layer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    # Contexts

    def route(self, labels: Tensor) -> AbstractContextManager[None]:
        return self._route.routed(labels, self.device)

    def off(self) -> AbstractContextManager[None]:
        return self._route.within(State.OFF)

    @contextmanager
    def apply(self, factors: Mapping[str, LoRAFactors], *, merge: bool) -> Iterator[None]:
        """As the contract says. Raises ValueError for unknown modules, wrong shapes and merging into half precision.

        A merged layer gets another weight for as long as the context lasts, so that the base's own (and what is tied
        to it) is never written to and comes back bit for bit.
        """
        if strangers := sorted(factors.keys() - self.layers.keys()):
            raise ValueError(f"factors for modules that are not adapted: {', '.join(strangers[:5])}")
        chosen = {name: (self.layers[name], factors[name]) for name in factors}
        for name, (layer, lora) in chosen.items():
            _check(name, layer, lora, merge)
        kept = {name: layer.base.weight for name, (layer, _) in chosen.items()}
        with self._route.within(State.MERGED if merge else State.FOLDED):
            try:
                beside: dict[str, LoRAFactors] = {}
                for name, (layer, lora) in chosen.items():
                    weight = layer.base.weight
                    a, b = lora.a.detach().to(weight), lora.b.detach().to(weight)
                    if merge:
                        layer.base.weight = nn.Parameter(weight + b @ a, requires_grad=False)
                    else:
                        beside[name] = LoRAFactors(a=a, b=b)
                for name, folded in side_by_side(beside).items():
                    self.layers[name].folded = folded
                yield
            finally:
                for name, (layer, _) in chosen.items():
                    layer.base.weight, layer.folded = kept[name], None

    @contextmanager
    def unmixed(self) -> Iterator[None]:
        """Layers with a LoRA for each task use the task's own, not their mixture."""
        layers = [layer for layer in self.layers.values() if isinstance(layer, TaskLinear)]
        before = [layer.mixing for layer in layers]
        try:
            for layer in layers:
                layer.mixing = False
            yield
        finally:
            for layer, mixing in zip(layers, before, strict=True):
                layer.mixing = mixing

    # Tensors

    def put(self, expert: int, lora: PeftLoRA) -> None:
        """Give one LoRA of every layer the factors that were read from a folder. Raises ModelError."""
        try:
            for name, layer in self.layers.items():
                if isinstance(layer, TaskLinear):
                    layer.put(expert, lora.factors.get(name))
        except ValueError as error:
            raise ModelError(f"{lora.folder} is of another base model: {error}") from error

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: tensor for name, tensor in self._tensors() if isinstance(tensor, nn.Parameter)}

    def own(self, task: str) -> list[str]:
        """The names of the parameters that belong to one task alone, of layers with a LoRA for each."""
        return [f"{name}.{factor}.{task}" for name in self.layers for factor in "AB"]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; raises ValueError naming missing, unknown or misshapen tensors."""
        mine = dict(self._tensors())
        faults = [f"missing {name}" for name in mine if name not in state]
        faults += [f"unknown {name}" for name in state if name not in mine]
        faults += [
            f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in mine.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(f"this state is of another adapter: {'; '.join(faults[:5])}{more}")
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def load_part(self, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Load some tensors and keep the others. Raises ValueError as ``load_state_dict``."""
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"this state is of another adapter: missing {', '.join(missing[:5])}")
        self.load_state_dict({**self.state_dict(), **{name: state[name] for name in names}})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and kept buffers by name, each once though several layers may share it."""
        for name, layer in self.layers.items():
            for factor, parameter in layer.tensors().items():
                yield f"{name}.{factor}", parameter
        seen: set[int] = set()
        for key, module in self.modules.items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{key}.{name}", tensor

    # The rest of the contract

    def detach(self) -> None:
        for name, layer in self.layers.items():
            _replace(self.model, name, layer.base)

    def assign(self, prompts: Sequence[Tensor]) -> Sequence[int] | None:
        return None

    def fold(self, task: str) -> Mapping[str, LoRAFactors]:
        if task not in self.tasks:
            raise unknown("task", task, self.tasks)
        index = self.tasks.index(task)
        return {name: layer.fold(index) for name, layer in self.layers.items()}

    def experts(self) -> Mapping[str, Experts]:
        return {name: found for name, layer in self.layers.items() if (found := layer.bank()) is not None}

    def begin_step(self, stage: str, step: int) -> None:
        self._route.step = (stage, step)

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """Prompts mean nothing to an adapter that goes by labels."""

    def penalty(self) -> Tensor:
        return torch.zeros((), device=self.device)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _check(name: str, layer: AdaptedLinear, lora: LoRAFactors, merge: bool) -> None:
    weight = layer.base.weight
    fits = lora.a.shape[1:] == weight.shape[1:] and lora.b.shape[:1] == weight.shape[:1]
    if not fits or lora.a.shape[0] != lora.b.shape[1]:
        raise ValueError(
            f"{name}: factors a {tuple(lora.a.shape)}, b {tuple(lora.b.shape)} for a weight {tuple(weight.shape)}"
        )
    if merge and weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {weight.dtype}: merging would lose most of a small update; use merge=False")


def require_bare(model: nn.Module) -> None:
    """Raises HarnessError where another adapter is on the model."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            raise HarnessError(f"the model has an adapter already (at {name}); detach it first")
