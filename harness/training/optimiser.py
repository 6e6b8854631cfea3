"""AdamW in which the parts of tasks that are absent from a step stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.config.spec import TrainConfig
from harness.method import Adapter, AdapterMethod, TaskParts
from harness.transfer import to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedParameter:
    """A parameter of a stage. factor: on the learning rate. parts: None if all tasks share the whole parameter."""

    parameter: nn.Parameter
    factor: float = 1.0
    parts: TaskParts | None = None


class TaskAdamW(torch.optim.AdamW):
    """AdamW for parameters of which parts belong to single tasks.

    Without this rule, a part whose task is absent from a step would have a zero gradient and would still be moved by
    its momentum. Here its values and moments stay as they are, and its bias correction counts the steps with its task:
    the result is that of AdamW with a parameter for each part that has no gradient where its task is absent.

    present: the indices of the tasks of the next step; set it before ``step``.
    is_fused: on a GPU, where the state of a parameter is there too, its number of steps included.
    """

    def __init__(self, parameters: Iterable[TrainedParameter], config: TrainConfig) -> None:
        by_factor: dict[float, list[nn.Parameter]] = {}
        self._parts: dict[nn.Parameter, TaskParts] = {}
        for trained in parameters:
            by_factor.setdefault(trained.factor, []).append(trained.parameter)
            if trained.parts is not None:
                self._parts[trained.parameter] = trained.parts
        self.present: frozenset[int] = frozenset()
        # One kernel for many parameters. The kernels of a CPU stay as they are: a run's bits depend on them.
        self.is_fused = all(p.device.type == "cuda" for of_factor in by_factor.values() for p in of_factor)
        super().__init__(
            [{"params": of_factor, "factor": factor} for factor, of_factor in by_factor.items()],
            fused=True if self.is_fused else None,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, which each parameter's factor multiplies."""
        for group in self.param_groups:
            group["lr"] = lr * group["factor"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients; parameters without a gradient stay as they are."""
        used: dict[tuple[int | None, ...], Tensor] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                parts = self._parts.get(parameter)
                if parts is None or parameter.grad is None:
                    continue
                owners = set(parts.tasks)
                if len(owners) == 1:  # one task's own parameter
                    parameter.grad = parameter.grad if owners & {None, *self.present} else None
                    continue
                if parts.tasks not in used:
                    mask = [float(task is None or task in self.present) for task in parts.tasks]
                    used[parts.tasks] = to_device(torch.tensor(mask, dtype=parameter.dtype), parameter.device)
                self._step_parts(parameter, group, parts.dim, used[parts.tasks])
                parameter.grad = None
        loss: float | None = super().step(closure)
        return loss

    def _step_parts(self, parameter: nn.Parameter, group: Mapping[str, Any], dim: int, used: Tensor) -> None:
        """AdamW (arXiv 1711.05101, Algorithm 2) where ``used`` (n,) is 1 along ``dim``; nothing where it is 0."""
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if not state:
            # A copy for each parameter, since the state is saved and loaded by parameter.
            state["step"] = torch.zeros_like(used)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        steps = state["step"].add_(used)
        beta1, beta2 = group["betas"]
        shape = [-1 if d == dim else 1 for d in range(parameter.dim())]
        mask, count = used.view(shape), steps.clamp(min=1).view(shape)
        lr = group["lr"] * mask
        if group["weight_decay"]:
            parameter.mul_(1 - lr * group["weight_decay"])
        state["exp_avg"].lerp_(grad, (1 - beta1) * mask)
        state["exp_avg_sq"].lerp_(grad * grad, (1 - beta2) * mask)
        denominator = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"] * (lr / (1 - beta1**count)), denominator, value=-1)


def trained_parameters(
    adapter: Adapter, method: AdapterMethod, names: Iterable[str] | None = None
) -> dict[str, TrainedParameter]:
    """The named parameters of the adapter (default all), with what the method and the adapter say of them."""
    parameters, parts = adapter.trainable(), adapter.task_parts()
    return {
        name: TrainedParameter(parameter=parameters[name], factor=method.lr_factor(name), parts=parts.get(name))
        for name in (parameters if names is None else names)
    }
