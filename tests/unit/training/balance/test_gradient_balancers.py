"""Each combination of gradients is that of its published equation, in the place of the sum over tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray
from toy_steps import CLOSE, PACKED, PADDED, ROUTES, TASKS, gradients, make_sequences, make_steps

from harness.balancing import BalancedStage, GradientBalancer
from harness.errors import UsageError
from harness.registry import balancer_class, method_class
from harness.training.optimiser import trained_parameters
from harness.training.packing import Layout
from harness.training.task_balance import TaskBalancing
from harness.training.task_gradients import TaskGradients

pytest.importorskip("torchjd")
pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("error:You are solving a parameterized problem")]

Array = NDArray[np.float64]
Llama = Callable[..., Any]
BALANCERS = ("pcgrad", "cagrad", "imtl_g", "nash_mtl", "upgrad")
SCALES = [1.0, 1e-6]  # gradients of late steps are small, and solvers have absolute tolerances


def made(name: str, **settings: Any) -> GradientBalancer:
    built = balancer_class(name)(**settings)
    assert isinstance(built, GradientBalancer)
    return built


def conflicting(scale: float = 1.0) -> Array:
    """Three gradients, of which the first two conflict."""
    rows = np.random.default_rng(0).normal(size=(3, 20))
    rows[1] = 0.4 * rows[1] - 0.8 * rows[0]
    return scale * rows


def aggregate(name: str, rows: Array, seed: int = 0, **settings: Any) -> Array:
    found: Array = made(name, **settings).aggregate(torch.tensor(rows), seed).numpy()
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_pcgrad_projects_each_gradient_on_the_planes_of_those_it_conflicts_with(scale: float) -> None:
    rows = conflicting(scale)
    rows = rows[:2]  # with two tasks there is one order only
    first, second = rows
    expected = sum(g - min(0.0, g @ other) / (other @ other) * other for g, other in ((first, second), (second, first)))
    assert first @ second < 0
    np.testing.assert_allclose(aggregate("pcgrad", rows), expected, rtol=1e-9)


def test_the_order_of_pcgrad_depends_on_the_seed_only() -> None:
    rows = np.random.default_rng(2).normal(size=(6, 4))
    state = torch.get_rng_state()
    found = {seed: aggregate("pcgrad", rows, seed) for seed in (1, 2, 3, 4)}
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws as without balance
    np.testing.assert_array_equal(found[1], aggregate("pcgrad", rows, 1))
    assert any(not np.allclose(found[1], found[seed]) for seed in (2, 3, 4))


@pytest.mark.parametrize("scale", SCALES)
def test_cagrad_maximises_the_least_gain_in_a_ball_around_the_mean(scale: float) -> None:
    rows, c = conflicting(), 0.5
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    best = scipy.optimize.minimize(
        lambda x: -x[-1],
        np.append(mean, 0.0),
        constraints=[
            {"type": "ineq", "fun": lambda x: rows @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: radius**2 - ((x[:-1] - mean) ** 2).sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert best.success
    np.testing.assert_allclose(aggregate("cagrad", scale * rows) / scale, 3 * best.x[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(aggregate("cagrad", scale * rows, c=0.0) / scale, rows.sum(0), rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_imtl_g_has_equal_projections_on_unit_gradients(scale: float) -> None:
    rows = conflicting(scale)
    found = aggregate("imtl_g", rows)
    projections = rows @ found / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-7)
    weights = np.linalg.lstsq(rows.T, found, rcond=None)[0]
    assert weights.sum() == pytest.approx(3.0)


@pytest.mark.parametrize("scale", SCALES)
def test_nash_solves_the_bargaining_equation(scale: float) -> None:
    rows = conflicting(scale)
    found = aggregate("nash_mtl", rows, max_norm=1e3, iterations=50)
    weights = np.linalg.lstsq(rows.T, found, rcond=None)[0]
    gains = rows @ found
    assert (weights > 0).all()
    products = weights * gains  # equal for all tasks, since G a is proportional to 1 / a
    np.testing.assert_allclose(products / products.mean(), 1.0, rtol=0.02)
    root = np.sqrt((rows**2).sum() / 3)
    assert np.linalg.norm(aggregate("nash_mtl", rows)) == pytest.approx(root)


@pytest.mark.parametrize("scale", SCALES)
def test_upgrad_is_the_mean_of_projections_on_the_dual_cone(scale: float) -> None:
    rows = conflicting()
    projected = []
    for gradient in rows:
        # The projection of g on {d: J d >= 0} is g + J^T v for the v >= 0 that makes it shortest.
        v, _ = scipy.optimize.nnls(rows.T, -gradient)
        projected.append(gradient + rows.T @ v)
    found = aggregate("upgrad", scale * rows) / scale
    np.testing.assert_allclose(found, sum(projected), rtol=5e-3, atol=5e-3)
    assert (rows @ found > -1e-2).all()
    assert (rows @ rows.sum(0)).min() < 0  # which the plain sum does not achieve


@pytest.mark.parametrize("name", ["pcgrad", "imtl_g", "upgrad"])
def test_orthogonal_gradients_of_one_length_are_summed(name: str) -> None:
    rows = 3.0 * np.eye(3, 10)
    np.testing.assert_allclose(aggregate(name, rows), rows.sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BALANCERS)
def test_gradients_that_are_zero_have_a_sum_of_zero(name: str) -> None:
    assert not aggregate(name, np.zeros((2, 4))).any()


# In a step


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora_all", "cgc_lora", "align_lora"])
def test_a_step_combines_the_gradients_of_shared_parameters_and_no_others(toy_llama: Llama, method: str) -> None:
    sequences, balancer = make_sequences(), made("imtl_g")
    made_steps = [
        make_steps(toy_llama(), method_class(method)(), PACKED, balancer=b, loss="task") for b in (None, balancer)
    ]
    (_, plain), (_, combined) = (gradients(steps, sequences) for steps in made_steps)
    again = make_steps(toy_llama(), method_class(method)(), PACKED, loss="task")
    again.loaded.model.train()
    found: list[TaskGradients] = []
    again.step(4, sequences, ROUTES, use=found.append)
    (by_task,) = found
    parts = torch.split(
        balancer.aggregate(by_task.flat(), 0), [by_task.by_name[s.name][0].numel() for s in by_task.shared]
    )
    shared = {s.name: (s, part) for s, part in zip(by_task.shared, parts, strict=True)}
    for name, gradient in combined.items():
        before = plain[name]
        if gradient is None or before is None:
            assert gradient is before
        elif name not in shared:
            assert torch.equal(gradient, before), name
        elif shared[name][0].index is None:
            change = shared[name][1].view_as(gradient) - by_task.by_name[name].sum(0)
            assert torch.allclose(gradient - before, change, rtol=CLOSE, atol=CLOSE), name
    largest = max(float((combined[n] - plain[n]).abs().max()) for n in shared)  # type: ignore[operator]
    assert largest > 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name", BALANCERS)
def test_combined_gradients_do_not_depend_on_packing_and_micro_batches(toy_llama: Llama, name: str) -> None:
    def found(layout: Layout, micro_tokens: int) -> dict[str, Any]:
        method = method_class("lora_all")()
        steps = make_steps(toy_llama(), method, layout, balancer=made(name), loss="task", micro_tokens=micro_tokens)
        return gradients(steps, make_sequences())[1]

    whole = found(PACKED, 1000)
    for other in (found(PACKED, 50), found(PADDED, 50)):
        for parameter, gradient in whole.items():
            assert torch.allclose(gradient, other[parameter], rtol=1e-4, atol=1e-6), parameter


def test_a_step_with_one_task_is_that_without_balance(toy_llama: Llama) -> None:
    sequences = [s for s in make_sequences() if s.task == "two"]
    method = method_class("lora_all")()
    plain, combined = (
        gradients(make_steps(toy_llama(), method, PACKED, balancer=b), sequences)[1] for b in (None, made("nash_mtl"))
    )
    assert all(torch.equal(gradient, combined[name]) for name, gradient in plain.items() if gradient is not None)


def test_a_gradient_that_overflows_in_fp16_is_skipped_as_without_balance(toy_llama: Llama) -> None:
    steps = make_steps(toy_llama().to(torch.float16), method_class("lora_all")(), PACKED, balancer=made("cagrad"))
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 2.0**40})
    before = {n: p.detach().clone() for n, p in steps.stage.parameters.items()}
    steps.step(0, make_sequences(), ROUTES)
    assert steps.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[n]) for n, p in steps.stage.parameters.items())


def test_a_stage_without_shared_parameters_has_nothing_to_combine(toy_llama: Llama) -> None:
    method = method_class("lora_single")()
    adapter = method.attach(toy_llama(), TASKS, seed=0)
    stage = BalancedStage(name="all", tasks=TASKS, epoch=1, seed=0)
    with pytest.raises(UsageError, match=r"stage 'all' of this method trains none: leave train\.balance out"):
        TaskBalancing(balancer=made("pcgrad")).combined(stage, trained_parameters(adapter, method))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("cagrad", {"c": -1.0}, "balance.c=-1.0 must be 0 or above"),
        ("nash_mtl", {"iterations": 0}, "balance.iterations=0 must be 1 or more"),
        ("nash_mtl", {"max_norm": 0.0}, "balance.max_norm=0.0 above 0"),
    ],
)
def test_settings_without_meaning_are_wrong_use(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(name, **settings)
