"""The adapter of every LoRA-like method: the shared implementation of ``harness.method.Adapter``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import HarnessError, ModelError, unknown
from harness.method import Experts, LoRAFactors, TaskParts
from methods.layers.casting import rank_multiple
from methods.layers.fused import fuse_down_projections
from methods.layers.gates import Gate, HasTaskRows, prepare_gates
from methods.layers.linear import AdaptedLinear
from methods.layers.peft_io import PeftLoRA
from methods.layers.routing import Route, State
from methods.layers.task_linear import TaskLinear


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of an adapter: adapted layers by module name, and the modules (gates, embeddings) they share by key."""

    model: nn.Module
    tasks: tuple[str, ...]
    layers: Mapping[str, AdaptedLinear]
    modules: Mapping[str, nn.Module]
    route: Route
    seed: int


class LoRAAdapter:
    """Adapted layers in place of the model's own, and the contexts that set what they add."""

    def __init__(self, parts: Parts) -> None:
        self.model = parts.model
        self.tasks = parts.tasks
        self.layers = parts.layers
        self.modules = parts.modules
        self.seed = parts.seed
        self.current_route = parts.route
        self.dtype = _compute_dtype(self.model)
        for name, layer in self.layers.items():
            layer.train(self.model.training)
            _replace(self.model, name, layer)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    # Contexts

    @contextmanager
    def route(self, labels: Tensor, examples: Tensor | None = None) -> Iterator[None]:
        with self.current_route.routed(labels, self.device, examples):
            if self.layers and torch.is_grad_enabled():
                self._prepare()
            try:
                yield
            finally:
                self._drop_prepared()

    def _prepare(self) -> None:
        """Compute what layers share before the first of them runs; see ``Prepared``."""
        uses: Counter[Gate] = Counter()
        columns: dict[Gate, int] = {}
        kinds: dict[type[AdaptedLinear], list[AdaptedLinear]] = {}
        multiple = rank_multiple(self.current_route, self.device, self.dtype)
        for layer in self.layers.values():
            uses.update(layer.gates())
            columns.update(layer.gate_columns(multiple))
            kinds.setdefault(type(layer), []).append(layer)
        prepare_gates(uses, columns, self.current_route, self.dtype)
        for kind, layers in kinds.items():
            kind.prepare(layers, self.dtype)

    def _drop_prepared(self) -> None:
        for layer in self.layers.values():
            layer.prepared = None
            for gate in layer.gates():
                gate.prepared = None

    def off(self) -> AbstractContextManager[None]:
        return self.current_route.enter(State.OFF)

    @contextmanager
    def apply(self, factors: Mapping[str, LoRAFactors], *, merge: bool) -> Iterator[None]:
        """As ``Routing.apply``. Raises ValueError for unknown modules, wrong shapes and merging into half precision.

        While the context is open, a merged layer has another weight tensor. The base layer's own (and what is tied to
        it) is never written to and is restored bit for bit.
        """
        if unknown_names := sorted(factors.keys() - self.layers.keys()):
            raise ValueError(f"factors for modules that are not adapted: {', '.join(unknown_names[:5])}")
        chosen = {name: (self.layers[name], factors[name]) for name in factors}
        for name, (layer, lora) in chosen.items():
            _check(name, layer, lora, merge)
        weights = {name: layer.base.weight for name, (layer, _) in chosen.items()}
        with self.current_route.enter(State.MERGED if merge else State.FOLDED):
            try:
                unmerged: dict[str, LoRAFactors] = {}
                for name, (layer, lora) in chosen.items():
                    weight = layer.base.weight
                    dtype = weight.dtype if weight.is_floating_point() else self.dtype
                    a, b = (factor.detach().to(weight.device, dtype) for factor in (lora.a, lora.b))
                    if merge:
                        layer.base.weight = nn.Parameter(weight + b @ a, requires_grad=False)
                    else:
                        unmerged[name] = LoRAFactors(a=a, b=b)
                for name, folded in fuse_down_projections(unmerged).items():
                    self.layers[name].folded = folded
                yield
            finally:
                for name, (layer, _) in chosen.items():
                    layer.base.weight, layer.folded = weights[name], None

    @contextmanager
    def without_mixture(self) -> Iterator[None]:
        """While open, layers with a LoRA for each task use the task's own instead of their mixture."""
        layers = [layer for layer in self.layers.values() if isinstance(layer, TaskLinear)]
        before = [layer.use_mixture for layer in layers]
        try:
            for layer in layers:
                layer.use_mixture = False
            yield
        finally:
            for layer, use_mixture in zip(layers, before, strict=True):
                layer.use_mixture = use_mixture

    # Tensors

    def load_expert(self, expert: int, lora: PeftLoRA) -> None:
        """Copy a LoRA that was read from a folder into one LoRA of every layer. Raises: ModelError."""
        lora.note_other_base(self.model)
        try:
            for name, layer in self.layers.items():
                if isinstance(layer, TaskLinear):
                    layer.load_expert(expert, lora.factors.get(name))
        except ValueError as error:
            raise ModelError(f"{lora.folder} was trained on another base model: {error}") from error

    def trainable(self) -> Mapping[str, nn.Parameter]:
        return {name: tensor for name, tensor in self._tensors() if isinstance(tensor, nn.Parameter)}

    def task_parameters(self, task: str) -> list[str]:
        """The names of one task's own parameters, in layers with a LoRA for each task."""
        return [f"{name}.{factor}.{task}" for name in self.layers for factor in "AB"]

    def task_parts(self) -> Mapping[str, TaskParts]:
        parts = {
            f"{name}.{factor}": p for name, layer in self.layers.items() for factor, p in layer.task_parts().items()
        }
        rows = TaskParts(dim=0, tasks=tuple(range(len(self.tasks))))
        by_task = {
            id(getattr(module, name))
            for shared in self.modules.values()
            for module in shared.modules()
            if isinstance(module, HasTaskRows)
            for name in module.task_rows
        }
        return parts | {name: rows for name, parameter in self.trainable().items() if id(parameter) in by_task}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; raises ValueError naming missing, unknown or misshapen tensors."""
        tensors = dict(self._tensors())
        faults = [f"missing {name}" for name in tensors if name not in state]
        faults += [f"unknown {name}" for name in state if name not in tensors]
        faults += [
            f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in tensors.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(f"this state belongs to another adapter: {'; '.join(faults[:5])}{more}")
        for name, tensor in tensors.items():
            tensor.copy_(state[name])

    def load_partial(self, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
        """Load the named tensors and leave the others as they are. Raises: ValueError as ``load_state_dict``."""
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"this state belongs to another adapter: missing {', '.join(missing[:5])}")
        self.load_state_dict({**self.state_dict(), **{name: state[name] for name in names}})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and persistent buffers by name, each once even if several layers share it."""
        for name, layer in self.layers.items():
            for factor, parameter in layer.factors().items():
                yield f"{name}.{factor}", parameter
        seen: set[int] = set()
        for key, module in self.modules.items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{key}.{name}", tensor

    # Other methods of the contract

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
        experts = {name: layer.experts() for name, layer in self.layers.items()}
        return {name: value for name, value in experts.items() if value is not None}

    def begin_step(self, stage: str, step: int) -> None:
        self.current_route.step = (stage, step)

    def read(self, prompts: Sequence[Tensor], owner: Tensor) -> None:
        """Does nothing: this adapter is routed by labels."""

    def penalty(self) -> Tensor:
        return torch.zeros((), device=self.device)


def _compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a bare model's hidden states, which differs from that of quantised weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _check(name: str, layer: AdaptedLinear, lora: LoRAFactors, merge: bool) -> None:
    weight, shape = layer.base.weight, (layer.out_features, layer.in_features)
    fits = lora.a.shape[1:] == shape[1:] and lora.b.shape[:1] == shape[:1]
    if not fits or lora.a.shape[0] != lora.b.shape[1]:
        raise ValueError(
            f"{name}: factors a {tuple(lora.a.shape)}, b {tuple(lora.b.shape)} do not fit a weight {shape}"
        )
    if merge and type(weight) is not nn.Parameter:
        raise ValueError(f"{name} is quantised ({type(weight).__name__}), so nothing can be merged: use merge=False")
    if merge and weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {weight.dtype}, and merging would round away small updates: use merge=False")


def require_bare(model: nn.Module) -> None:
    """Raises HarnessError if the model already has an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            raise HarnessError(f"the model already has an adapter (at {name}): detach it first")
