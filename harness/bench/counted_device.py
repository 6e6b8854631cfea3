"""A device that computes on the CPU and counts every launch, wait and copy that a GPU would make.

PyTorch has one free device type for back ends of others, which may be written in Python. Tensors of this device
hold a tensor on the CPU. A dispatch mode unwraps them for each operation, so that the code under test, autograd and
optimisers run as on a GPU, and mixing devices by mistake is an error as on a GPU. Times say nothing here; counts do.

A launch is an operation that starts a kernel: views and allocations start none. A wait is an operation whose result the
host reads, so that it waits for everything launched before. A copy from the host waits too, unless it is non-blocking
and from pinned memory.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing

from harness.bench.python_device import register

NAME: Final = "counted"

_PROJECT: Final = str(Path(__file__).parents[2])

# Operations that are not views by their schema, and launch nothing.
_FREE: Final = frozenset(
    {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_pinned"}
)

# Operations whose result, or its shape, the host needs.
_WAITS: Final = frozenset(
    {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "equal"}
)

# Kernels of operations that start more than one. CUDA copies the matrix that a product is added to, unless the result
# replaces it. Adding to indexed places sorts the indices first, in several passes.
_SORTED_PASSES: Final = 6
_FUSED_FORWARD, _FUSED_BACKWARD = 1, 3
# A kernel over a list of tensors takes about this many of them.
_TENSORS_OF_A_LAUNCH: Final = 48


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the host asked the device for.

    launches: kernels. waits: reads of results. copies: from the host, without a wait. blocking_copies: with one.
    by_operation: launches by the name of the operation. places: waits and blocking copies by the line that made them.
    """

    launches: int
    waits: int
    copies: int
    blocking_copies: int
    by_operation: Mapping[str, int]
    places: Mapping[str, int]


class CountedTensor(Tensor):
    """A tensor of the counted device; ``on_cpu`` has its values on the CPU."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CountedTensor:
        made: CountedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.on_cpu = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CountedTensor({self.on_cpu!r})"

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on the counted device outside counted_device()")


class OpCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Executes operations on tensors of the counted device, and counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = torch.device(NAME, 0)
        self._launches: Counter[str] = Counter()
        self._places: dict[str, Counter[str]] = {}
        self._pinned: set[int] = set()

    def count(self, work: Callable[[], object]) -> Counts:
        """The counts of ``work``."""
        self._launches, self._places = Counter(), {"wait": Counter(), "copy": Counter(), "blocking": Counter()}
        work()
        places = self._places
        return Counts(
            launches=self._launches.total(),
            waits=places["wait"].total(),
            copies=places["copy"].total(),
            blocking_copies=places["blocking"].total(),
            by_operation=dict(self._launches.most_common()),
            places=dict((places["wait"] + places["blocking"]).most_common()),
        )

    def launch(self, name: str, n: int = 1) -> None:
        """Count n launches of an operation."""
        self._launches[name] += n

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[-1]
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        counted = [tensor for tensor in tensors if isinstance(tensor, CountedTensor)]
        device = kwargs.get("device")
        is_here = bool(counted) if device is None else torch.device(device).type == NAME
        if name == "_pin_memory":
            return self._pin(args[0])
        if not counted and not is_here:
            return func(*args, **kwargs)
        if is_here and device is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        self._count(name, func, args, kwargs, is_here)
        if name not in ("_to_copy", "copy_"):
            _check_devices(name, tensors)
        inner_args, inner_kwargs = pytree.tree_map(_inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        if not is_here:
            return out
        if name == "_to_copy" and out is inner_args[0]:
            out = out.clone()
        wrappers = {id(tensor.on_cpu): tensor for tensor in counted}  # An operation in place returns its argument.
        out = pytree.tree_map(lambda leaf: wrappers[id(leaf)] if id(leaf) in wrappers else _wrapped(leaf), out)
        return return_and_correct_aliasing(func, args, kwargs, out)  # type: ignore[no-untyped-call]

    def _count(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_here: bool) -> None:
        if name in ("_to_copy", "copy_"):
            target, source = (None, args[0]) if name == "_to_copy" else (args[0], args[1])
            arrives = is_here if target is None else isinstance(target, CountedTensor)
            if not arrives:
                self._place("wait", name)
            elif isinstance(source, CountedTensor):
                self.launch(name)
            elif isinstance(source, Tensor):
                unblocked = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                self._place("copy" if unblocked and id(source) in self._pinned else "blocking", name)
            return
        if name in _WAITS or _reads_a_mask(name, args):
            self._place("wait", name)
        if name not in _FREE and not func.is_view and name != "_local_scalar_dense":
            self.launch(name, _kernels(name, args))

    def _pin(self, host: Tensor) -> Tensor:
        pinned = host.clone()
        self._pinned.add(id(pinned))
        return pinned

    def _place(self, kind: str, name: str) -> None:
        self._places.setdefault(kind, Counter())[f"{_line()} ({name})"] += 1


def _inner(value: Any) -> Any:
    return value.on_cpu if isinstance(value, CountedTensor) else value


def _wrapped(value: Any) -> Any:
    return CountedTensor(value) if isinstance(value, Tensor) else value


def _check_devices(name: str, tensors: Sequence[Tensor]) -> None:
    strangers = [t for t in tensors if not isinstance(t, CountedTensor) and t.dim() and not name.startswith("index")]
    if strangers:
        shape = tuple(strangers[0].shape)
        raise RuntimeError(f"{name}: expected all tensors on {NAME}:0, and one of shape {shape} is on the CPU")


def _reads_a_mask(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation selects by a boolean mask, so that the host needs the number of elements."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _kernels(name: str, args: Sequence[Any]) -> int:
    if name == "addmm":
        return 1 if args[0].dim() == 1 else 2
    if name == "baddbmm":
        return 2
    if name in ("index_put", "index_put_", "_index_put_impl_"):
        return (_SORTED_PASSES if len(args) > 3 and args[3] else 1) + (name == "index_put")
    if name.startswith(("_foreach", "_fused")):
        return math.ceil(len(args[0]) / _TENSORS_OF_A_LAUNCH)
    return 1


def _line() -> str:
    """The innermost line of the project that led here, without this module; of a library if there is none."""
    frame, library = sys._getframe(1), "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and not file.endswith(("_python_dispatch.py", "overrides.py")):
            place = f"{file}:{frame.f_lineno}"
            if file.startswith(_PROJECT) and "site-packages" not in file:
                return place.removeprefix(f"{_PROJECT}/")
            library = place if library == "?" else library
        frame = frame.f_back  # type: ignore[assignment]
    return library


def _copied(index: Any, device: torch.device) -> Any:
    """A list of indices as a tensor on the device, which PyTorch makes of it without a dispatched operation."""
    if not isinstance(index, list | range):
        return index
    return torch.tensor(list(index), dtype=None if len(index) else torch.long).to(device)


@dataclass(frozen=True, kw_only=True)
class _AttentionCall:
    """One call of attention: the counter, the mask on the CPU as numbers to add, and the options of the call."""

    counter: OpCounter
    mask: Tensor | None
    is_causal: bool
    scale: float | None
    copies: int  # Query heads of each key head.


class _FusedAttention(torch.autograd.Function):
    """Attention as one kernel, whose backward pass is three; computed by the CPU's own fused kernel."""

    @staticmethod
    def forward(ctx: Any, call: _AttentionCall, q: Any, k: Any, v: Any) -> Any:
        with _disable_current_modes():
            keys, values = (t.on_cpu.repeat_interleave(call.copies, 1) for t in (k, v))
            out, ctx.logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q.on_cpu, keys, values, 0.0, call.is_causal, attn_mask=call.mask, scale=call.scale
            )
        ctx.call, ctx.inputs = call, (q.on_cpu, keys, values, out)
        call.counter.launch("attention", _FUSED_FORWARD)
        return CountedTensor(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        call = ctx.call
        with _disable_current_modes():
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradients[0].on_cpu,
                *ctx.inputs,
                ctx.logsumexp,
                0.0,
                call.is_causal,
                attn_mask=call.mask,
                scale=call.scale,
            )
            dk, dv = (torch.unflatten(t, 1, (-1, call.copies)).sum(2) for t in (dk, dv))
        call.counter.launch("attention_backward", _FUSED_BACKWARD)
        return (None, *map(CountedTensor, (dq, dk, dv)))


class _Functions(TorchFunctionMode):
    """Sends attention to one kernel, as a GPU has it, and makes ``torch.tensor`` a copy from the host."""

    def __init__(self, counter: OpCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and isinstance(args[0], CountedTensor):
            return self._attention(*args, **kwargs)
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == NAME:
            # PyTorch copies the values without a dispatched operation.
            return func(*args, **{**kwargs, "device": None}).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], CountedTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(_copied(i, args[0].device) for i in index), *args[2:])
        return func(*args, **kwargs)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        with _disable_current_modes():
            mask = _inner(attn_mask)
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
        copies = q.shape[1] // k.shape[1]
        call = _AttentionCall(counter=self.counter, mask=mask, is_causal=is_causal, scale=scale, copies=copies)
        return _FusedAttention.apply(call, q, k, v)  # type: ignore[no-untyped-call]


@contextmanager
def counted_device() -> Iterator[OpCounter]:
    """While open, ``counter.device`` is a device. Move a model there with ``to_counted``.

    Raises: UsageError with a version of PyTorch without devices in Python.
    """
    register(NAME)
    counter = OpCounter()
    # Backward runs in this thread, where the mode is active.
    with torch.autograd.set_multithreading_enabled(False), counter, _Functions(counter):
        yield counter


def to_counted(model: Any) -> Any:
    """Move a module to the counted device, with parameters that are replaced and not written to."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.to(torch.device(NAME, 0))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
