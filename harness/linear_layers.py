"""The linear layers of a language model that a text goes through: those that an adapter can change.

They are found by one forward and one backward of a few tokens, which is independent of the names in an architecture.
The tower for images of a model that also reads images takes no part, nor do layers whose output has no gradient.

Shapes: B sequences of S tokens, d_in and d_out the widths of a layer.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_B: Final = 3
_LENGTHS: Final = (7, 5)  # Tokens of the probe's prompt, and of its target in an encoder-decoder model.
_PREDICTED: Final = 4  # Positions of the probe's logits, where the model can be asked for some only.
_KEPT: Final = "_linear_layers_of_text"  # The attribute of the model that keeps the result.


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Weights of one kind that a text goes through and that cannot be adapted.

    what: number and kind, such as "2 tensors of MixtralExperts". why: a predicate, such as "are not linear layers".
    parameters: their number.
    """

    what: str
    why: str
    parameters: int


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLayers:
    """The linear weights of a model that a text goes through.

    layers: the linear layers that can be adapted, by name, without the output head. left_out: all other weights.
    """

    layers: Mapping[str, nn.Linear]
    left_out: tuple[LeftOut, ...]

    def describe(self) -> str:
        """The weights that are left out, as a sentence; "" if there are none."""
        total = self.parameters
        return "; ".join(
            f"{kind.what} ({100 * kind.parameters / total:.3g} % of the weights) {kind.why}" for kind in self.left_out
        )

    @property
    def parameters(self) -> int:
        """The number of weights, adaptable or not."""
        return sum(map(_n_weights, self.layers.values())) + sum(kind.parameters for kind in self.left_out)

    def adapted(self, model: nn.Module) -> float | None:
        """The share of the weights (0 to 1) that the adapter on the model reaches; None if it replaces no layer."""
        changed = self.changed(model)
        return sum(map(_n_weights, changed)) / self.parameters if changed else None

    def changed(self, model: nn.Module) -> list[nn.Linear]:
        """The layers in whose place the model now has others."""
        return [layer for name, layer in self.layers.items() if model.get_submodule(name) is not layer]


def _n_weights(layer: nn.Linear) -> int:
    """The number of a layer's weights, also if they are quantised and packed."""
    return layer.in_features * layer.out_features


def linear_layers(model: nn.Module) -> LinearLayers:
    """The linear layers of the blocks. The model keeps the result, so that it is computed once, without an adapter.

    Raises: ModelError if the model cannot read a text.
    """
    kept: LinearLayers | None = getattr(model, _KEPT, None)
    if kept is None:
        kept = _find(model)
        setattr(model, _KEPT, kept)
    return kept


@dataclass(kw_only=True)
class _Seen:
    """What the probe sees of one layer.

    routable: every input had a vector for each token of the text, in order. of_head: an input had only the tokens whose
    logits were asked for, so that the layer belongs to the output head.
    """

    markers: list[Tensor] = field(default_factory=list)
    linear: bool = True
    routable: bool = True
    of_head: bool = False
    used: bool = False


def _find(model: nn.Module) -> LinearLayers:
    from torch import nn

    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if getattr(model, "config", None) is None or embeddings is None:
        return LinearLayers(layers=linear, left_out=())
    others = _other_weights(model, head, embeddings.weight.shape[-1])
    owners = {name.rpartition(".")[0] for name in others}
    seen, called = _probe(model, linear, owners, embeddings)
    unroutable = {_pattern(name) for name, s in seen.items() if s.linear and not s.routable}
    experts = [name for name in linear if _pattern(name) in unroutable]
    routers = [name for name, s in seen.items() if not s.linear]
    in_head = [name for name, s in seen.items() if s.of_head and name not in {*experts, *routers}]
    kept = {n: m for n, m in linear.items() if n in seen and seen[n].used and n not in {*experts, *routers, *in_head}}
    called_others = {n: w for n, w in others.items() if n.rpartition(".")[0] in called}
    left_out = [
        *_kinds({n: linear[n].weight for n in routers}, model, "do not return what a linear layer returns"),
        *_kinds({n: linear[n].weight for n in experts}, model, "do not read the tokens of a text one by one, in order"),
        *_kinds({n: linear[n].weight for n in in_head}, model, "belong to the output head"),
        *_kinds(called_others, model, "are not linear layers"),
    ]
    return LinearLayers(layers=kept, left_out=tuple(left_out))


def _other_weights(model: nn.Module, head: object, width: int) -> dict[str, Tensor]:
    """Parameters that multiply hidden states without an nn.Linear: stacked experts (3-d), and matrices as Conv1D has.

    A matrix counts if both of its sides are at least as long as a hidden state: the others are tables and states.
    """
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    found = {}
    for name, module in model.named_modules():
        if module is head or isinstance(module, nn.Linear | nn.Embedding | _ConvNd):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            stacked = parameter.dim() == 3 and min(parameter.shape) > 1
            if stacked or (parameter.dim() == 2 and min(parameter.shape) >= width):
                found[f"{name}.{own}"] = parameter
    return found


def _probe(
    model: nn.Module, linear: Mapping[str, nn.Linear], owners: set[str], embeddings: nn.Module
) -> tuple[dict[str, _Seen], set[str]]:
    """What a forward and a backward of a few tokens see of each linear layer, and the owners that were called."""
    import torch

    seen: dict[str, _Seen] = {}
    called: set[str] = set()

    def mark(name: str, layer: nn.Linear, x: Any, output: Any) -> Any:
        state = seen.setdefault(name, _Seen())
        if not isinstance(output, torch.Tensor) or output.shape != (*x.shape[:-1], layer.out_features):
            state.linear = False
            return None
        state.routable &= _one_vector_per_token(x.shape[:-1])
        state.of_head |= x.shape[:-1] == (_B, _PREDICTED)
        state.markers.append(torch.zeros_like(output[:0]).sum().requires_grad_())
        return output + state.markers[-1]

    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(_evaluating(model))
        for name, layer in linear.items():
            hook = layer.register_forward_hook(
                lambda m, args, kwargs, out, name=name: mark(name, m, args[0] if args else kwargs["input"], out),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        for name in owners:
            hook = model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
            stack.callback(hook.remove)
        logits = _read_text(model, embeddings)
    _find_used(logits, list(seen.values()))
    return seen, called


def _one_vector_per_token(shape: Sequence[int]) -> bool:
    """Whether a layer's input has one vector (or several) for each token or sequence, ordered by sequence.

    An expert that is a layer of its own reads only the tokens that a router gives it.
    """
    if len(shape) == 1:
        return shape[0] in {_B, *(_B * length for length in _LENGTHS)}
    return shape[0] == _B


def _read_text(model: Any, embeddings: Any) -> Tensor:
    import torch

    table = embeddings.weight
    tokens = [torch.arange(_B * n, device=table.device).view(_B, n) % table.shape[0] for n in _LENGTHS]
    inputs: dict[str, Any] = {"input_ids": tokens[0], "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = _PREDICTED
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens[1]
    try:
        logits: Tensor = model(**inputs).logits
    except torch.OutOfMemoryError:
        raise  # It says nothing about the model.
    # Models state no errors; whatever one raises on a plain text, it would raise in training too.
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"{type(model).__name__} cannot read a text: {type(error).__name__}: {said}. Give another --model"
        ) from error
    return logits


def _find_used(logits: Tensor, states: Sequence[_Seen]) -> None:
    """Set ``used`` of each layer whose output has a gradient."""
    import torch

    markers = [marker for state in states for marker in state.markers]
    if not markers or not logits.requires_grad:
        return
    gradients = iter(torch.autograd.grad(logits.sum(), markers, allow_unused=True))
    for state in states:
        reached = [next(gradients) is not None for _ in state.markers]
        state.used = any(reached)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _kinds(weights: Mapping[str, Tensor], model: nn.Module, why: str) -> list[LeftOut]:
    """One ``LeftOut`` for each class of module. weights: by the name of a linear layer, or of a parameter."""
    layers = dict(model.named_modules())
    owner = {n: type(layers[n] if n in layers else layers[n.rpartition(".")[0]]).__name__ for n in weights}
    return [
        LeftOut(
            what=f"{count} tensor{'s' if count > 1 else ''} of {kind}",
            why=why,
            parameters=sum(w.numel() for n, w in weights.items() if owner[n] == kind),
        )
        for kind, count in Counter(owner.values()).items()
    ]


def _pattern(name: str) -> str:
    """A module's name with * for its numbers: equal for the same layer of all blocks and experts."""
    return re.sub(r"\d+", "*", name)
