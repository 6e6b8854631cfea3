"""Products with shared parameters, observed in a forward pass so that one backward pass gives each task's gradient.

A token attends to no other task's tokens, so that the gradient of its outputs belongs to its task alone. The gradient
of W in y = x W^T is a sum over tokens, gy^T x; summed over each task's tokens it is the task's own, at the same number
of multiplications. Nothing else of the pass changes: outputs and gradients keep their bits.

Shapes: N rows of x (tokens of a batch, or rows of a parameter), x (N, in), y (N, out), W (out, in), T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

from harness.method import TaskParts


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedParameter:
    """The part of a trained parameter that does not belong to a single task.

    index: the shared indices along ``dim``, (n,) on the parameter's device; None: the whole parameter is shared.
    """

    name: str
    parameter: nn.Parameter
    dim: int = 0
    index: Tensor | None = None

    def part(self, whole: Tensor) -> Tensor:
        """The shared part of a tensor of the parameter's shape."""
        return whole if self.index is None else whole.index_select(self.dim, self.index)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The task of each row of a matrix. runs: (task, first row, end) of neighbouring rows of the same task."""

    n_rows: int
    runs: Sequence[tuple[int, int, int]]

    @classmethod
    def of(cls, tasks: Sequence[int], repeats: int = 1) -> Rows:
        """Rows of which each ``repeats`` neighbours have the next one of ``tasks``."""
        runs: list[tuple[int, int, int]] = []
        for i, task in enumerate(tasks):
            first = runs.pop()[1] if runs and runs[-1][0] == task else i * repeats
            runs.append((task, first, (i + 1) * repeats))
        return cls(n_rows=len(tasks) * repeats, runs=runs)

    def add_products(self, totals: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
        """Add ``scale left_t^T right_t`` over each task's rows, for left (N, p) and right (N, q), to totals (T, p, q).

        A CPU multiplies the runs one by one. On other devices launches cost more than multiplications, so that one
        product serves all tasks: the narrower matrix has columns for each task, which are 0 in rows of other tasks.
        """
        if left.device.type == "cpu" or len(self.runs) == 1:
            for task, first, end in self.runs:
                totals[task] += (scale * (left[first:end].t() @ right[first:end])).to(totals.dtype)
            return
        present = sorted({task for task, _, _ in self.runs})
        counts = torch.tensor([end - first for _, first, end in self.runs])
        positions = torch.tensor([present.index(task) for task, _, _ in self.runs]).repeat_interleave(counts)
        own = one_hot(positions, len(present)).to(left.device, left.dtype, non_blocking=True)
        if left.shape[1] <= right.shape[1]:
            product = (left[:, None] * own[:, :, None]).flatten(1).t() @ right
            by_task = torch.unflatten(product, 0, (len(present), -1))
        else:
            product = left.t() @ (right[:, None] * own[:, :, None]).flatten(1)
            by_task = torch.unflatten(product, 1, (len(present), -1)).transpose(0, 1)
        totals.index_add_(0, torch.tensor(present).to(totals.device), (scale * by_task).to(totals.dtype))


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchRows:
    """The rows of matrices in one batch. tasks: of the labels of the route. sizes: how many tokens its inputs have.

    owned: by the id of a parameter, the task of each of its rows, where each row belongs to a single task.
    """

    tasks: Sequence[int]
    sizes: frozenset[int]
    owned: Mapping[int, Sequence[int]]

    def of(self, x: Tensor) -> Rows | None:
        """The tasks of the rows of x (..., in); None if they are unknown."""
        if id(x) in self.owned:
            return Rows.of(self.owned[id(x)])
        n_rows = x.shape[:-1].numel()
        if n_rows not in self.sizes or n_rows % len(self.tasks):
            return None
        return Rows.of(self.tasks, n_rows // len(self.tasks))


def owned_rows(parameters: Mapping[str, nn.Parameter], parts: Mapping[str, TaskParts]) -> dict[int, Sequence[int]]:
    """``BatchRows.owned`` of an adapter's parameters and task parts."""
    found: dict[int, Sequence[int]] = {}
    for name, part in parts.items():
        tasks = [task for task in part.tasks if task is not None]
        if part.dim == 0 and len(tasks) == len(part.tasks):
            found[id(parameters[name])] = tasks
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weight:
    """A shared parameter, or what the forward pass has made of it: its transpose, its copy in another dtype, or a
    matrix that is larger by constant rows or columns at the end."""

    shared: SharedParameter
    tensor: Tensor
    transposed: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stack:
    """Shared parameters (n, in) one below the other."""

    parts: Sequence[_Weight]
    tensor: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    """A product y = scale x W^T that was observed.

    bias: W is a vector that was added to every row. columns: of y, first and end; None for all of them.
    """

    weight: _Weight
    rows: Rows
    totals: Tensor
    observer: ProductObserver
    scale: float = 1.0
    bias: bool = False
    columns: tuple[int, int] | None = None

    def add(self, gy: Tensor, x: Tensor) -> None:
        """Add each task's share of the gradient of W, from the gradient of y."""
        if not self.observer.active:
            return
        shared, columns = self.weight.shared, gy.reshape(self.rows.n_rows, -1)
        if self.columns is not None:
            columns = columns[:, slice(*self.columns)]
        inputs = x.new_ones(self.rows.n_rows, 1) if self.bias else x.reshape(self.rows.n_rows, -1)
        left, right = (inputs, columns) if self.weight.transposed else (columns, inputs)
        if shared.index is not None:
            left = left.index_select(1, shared.index) if shared.dim == 0 else left
            right = right.index_select(1, shared.index) if shared.dim == 1 else right
        elif not self.bias:  # Constant rows and columns of the weight are not the parameter's.
            left, right = left[:, : self.totals.shape[1]], right[:, : self.totals.shape[2]]
        totals = self.totals[..., None] if self.bias else self.totals
        self.rows.add_products(totals, left.to(right.dtype), right, self.scale)


class _Observe(torch.autograd.Function):
    """The identity on y, whose backward pass adds the tasks' shares of the gradient of W."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, product: _Product) -> Tensor:
        ctx.save_for_backward(x)
        ctx.product = product
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.product.add(gradients[0], x)
        return gradients[0], None, None


class ProductObserver(TorchFunctionMode):
    """While open, observes every product with a shared parameter; the backward pass then adds to ``totals``.

    A parameter that is used in any other way than in a product with rows of known tasks is in ``unreached`` after the
    forward pass: its totals are incomplete. Checkpointed layers, which repeat their forward in the backward pass, have
    to enter the observer again for it.

    totals: by parameter, (T, *shape of the shared part). active: False makes backward passes add nothing.
    """

    def __init__(self, shared: Iterable[SharedParameter], totals: Mapping[str, Tensor], rows: BatchRows) -> None:
        super().__init__()
        self.totals, self.rows = totals, rows
        self.unreached: set[str] = set()
        self.active = True
        # Tensors are known by id, which stays theirs as long as they are kept here.
        self._weights = {id(s.parameter): _Weight(shared=s, tensor=s.parameter) for s in shared}
        self._stacks: dict[int, _Stack] = {}  # Matrices of several shared parameters, by id.

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = list(_flat((*args, *kwargs.values())))
        used = [weight for v in operands for weight in self._made_of(v)]
        if not used or not any(isinstance(v, Tensor) and v.requires_grad for v in _flat((result,))):
            return result
        if func in _COPIES and len(used) == 1:
            self._weights[id(result)] = _Weight(
                shared=used[0].shared, tensor=result, transposed=used[0].transposed != (func in _TRANSPOSES)
            )
            return result
        if func is torch.cat and len(used) == 1 and _is_padding(args[0], used[0]):
            self._weights[id(result)] = _Weight(shared=used[0].shared, tensor=result, transposed=used[0].transposed)
            return result
        if func is torch.cat and len(used) == len(args[0]) and _stacks_rows(args, kwargs, used):
            self._stacks[id(result)] = _Stack(parts=used, tensor=result)
            return result
        observed = self._observe(func, result, args, kwargs, used)
        if observed is None:
            self.unreached.update(weight.shared.name for weight in used)
            return result
        return observed

    def _made_of(self, value: Any) -> Sequence[_Weight]:
        """The shared parameters that a value is, or consists of."""
        if id(value) in self._stacks:
            return self._stacks[id(value)].parts
        return [self._weights[id(value)]] if id(value) in self._weights else []

    def _observe(
        self, func: Any, y: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], used: Sequence[_Weight]
    ) -> Tensor | None:
        """The observed result of a product; None if ``func`` is another function or its rows have unknown tasks."""
        read = _READERS.get(func)
        operands = read(*args, **kwargs) if read is not None else None
        if operands is None or len(used) != sum(len(self._made_of(w)) for w in (operands.weight, operands.bias)):
            return None
        rows = self.rows.of(operands.x)
        if rows is None:
            return None
        if stack := self._stacks.get(id(operands.weight)):
            return None if operands.transposed else self._observe_stack(stack, y, operands, rows)
        for tensor, bias in ((operands.weight, False), (operands.bias, True)):
            weight = self._weights.get(id(tensor))
            if weight is None:
                continue
            if weight.tensor.dim() != (1 if bias else 2):
                return None
            if operands.transposed:
                weight = _Weight(shared=weight.shared, tensor=weight.tensor, transposed=not weight.transposed)
            totals, scale = self.totals[weight.shared.name], 1.0 if bias else operands.scale
            product = _Product(weight=weight, rows=rows, totals=totals, observer=self, scale=scale, bias=bias)
            y = _Observe.apply(y, operands.x, product)  # type: ignore[no-untyped-call]
        return y

    def _observe_stack(self, stack: _Stack, y: Tensor, operands: _Operands, rows: Rows) -> Tensor:
        """The observed product with several parameters, whose outputs are columns of y one after another."""
        first = 0
        for weight in stack.parts:
            end = first + len(weight.tensor)
            totals = self.totals[weight.shared.name]
            product = _Product(weight=weight, rows=rows, totals=totals, observer=self, columns=(first, end))
            y = _Observe.apply(y, operands.x, product)  # type: ignore[no-untyped-call]
            first = end
        return y


@dataclass(frozen=True, kw_only=True, eq=False)
class _Operands:
    """y = scale x W^T + bias; with ``transposed`` y = scale x W."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    transposed: bool = False


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Operands:
    return _Operands(x=input, weight=weight, bias=bias)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> _Operands:
    return _Operands(x=mat1, weight=mat2, scale=alpha, transposed=True)


def _matmul(input: Tensor, other: Tensor) -> _Operands:
    return _Operands(x=input, weight=other, transposed=True)


_READERS: Final[Mapping[Any, Callable[..., _Operands]]] = {
    torch.nn.functional.linear: _linear,
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm_), _addmm),
    **dict.fromkeys((torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm), _matmul),
}
_TRANSPOSES: Final = frozenset({torch.t, torch.Tensor.t})
_COPIES: Final = _TRANSPOSES | {torch.Tensor.to}


def _stacks_rows(args: Sequence[Any], kwargs: Mapping[str, Any], used: Sequence[_Weight]) -> bool:
    """Whether ``torch.cat`` puts whole matrices one below the other."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return dim == 0 and all(w.tensor.dim() == 2 and not w.transposed for w in used)


def _is_padding(parts: Sequence[Tensor], used: _Weight) -> bool:
    """Whether ``torch.cat`` adds constants at the end of a matrix."""
    return parts[0] is used.tensor and used.tensor.dim() == 2 and not any(part.requires_grad for part in parts[1:])


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value
