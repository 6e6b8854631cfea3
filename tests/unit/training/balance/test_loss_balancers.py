"""Each balancer gives the weights of its published equation, and leaves tasks alone that a step does not have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.errors import UsageError
from harness.registry import balancer_class
from harness.training.balance.coba import CoBa
from harness.training.balance.dwa import DynamicWeightAverage
from harness.training.balance.famo import FAMO
from harness.training.balance.rlw import RandomLossWeighting
from harness.training.balance.uncertainty import UncertaintyWeighting

TASKS = ("a", "b", "c")
STAGE = BalancedStage(name="all", tasks=TASKS, epoch=2, seed=0)
BALANCERS = ("uncertainty", "dwa", "rlw", "famo", "famo of the next batch", "coba")


def by_task(values: Sequence[float], tasks: Sequence[str] = TASKS) -> dict[str, float]:
    return dict(zip(tasks, map(float, values), strict=True))


@dataclass(kw_only=True)
class Scripted:
    """Losses from lists: ``now`` may be changed between the calls before and after a step."""

    now: Mapping[str, float] = field(default_factory=dict)
    dev: Mapping[str, float] = field(default_factory=dict)

    def of_step(self) -> Mapping[str, float]:
        return self.now

    def on_dev(self) -> Mapping[str, float]:
        return self.dev


def step(number: int, losses: Scripted | None = None, tasks: Sequence[str] = TASKS, lr: float = 0.1) -> BalancedStep:
    return BalancedStep(number=number, tasks=tuple(tasks), lr=lr, losses=losses or Scripted())


def run_steps(weights: TaskWeights, losses: Sequence[Sequence[float]], first: int = 0) -> list[list[float]]:
    """The weights of steps with these losses of the step and on dev, which are the same before and after each."""
    found = []
    for number, values in enumerate(losses, first):
        at = step(number, Scripted(now=by_task(values), dev=by_task(values)))
        given = weights.weights(at)
        found.append([given[task] for task in TASKS])
        weights.update(at, by_task(values))
    return found


def random_losses(n: int) -> list[list[float]]:
    return np.random.default_rng(3).uniform(0.5, 3.0, (n, 3)).tolist()


@pytest.mark.parametrize("rate", [None, 0.03])
def test_uncertainty_weights_descend_the_gradient_of_the_whole_loss(rate: float | None) -> None:
    losses = random_losses(6)
    found = run_steps(UncertaintyWeighting(lr=rate).begin(STAGE), losses)
    s = torch.full((3,), -0.5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([s], lr=rate or 0.1)
    for weights, values in zip(found, losses, strict=True):
        assert weights == pytest.approx(torch.exp(-s).tolist(), rel=1e-9)
        adam.zero_grad()
        (torch.exp(-s) * torch.tensor(values, dtype=torch.float64) + s).sum().backward()
        adam.step()


def test_uncertainty_weights_of_constant_losses_end_at_their_inverses() -> None:
    weights = run_steps(UncertaintyWeighting(lr=0.05).begin(STAGE), [[0.5, 1.0, 4.0]] * 600)[-1]
    assert weights == pytest.approx([2.0, 1.0, 0.25], rel=1e-3)


def test_dwa_weighs_by_the_rate_between_two_windows() -> None:
    losses = [[4.0, 2.0, 1.0], [2.0, 2.0, 3.0], [1.0, 2.0, 2.0], [2.0, 1.0, 2.0], [9.0, 9.0, 9.0]]
    found = run_steps(DynamicWeightAverage(temperature=2.0).begin(STAGE), losses)
    assert found[:4] == [[1.0, 1.0, 1.0]] * 4
    rates = np.array([1.5 / 3.0, 1.5 / 2.0, 2.0 / 2.0])
    assert found[4] == pytest.approx(3 * scipy.special.softmax(rates / 2.0))


def test_dwa_averages_over_the_window_that_is_given() -> None:
    found = run_steps(DynamicWeightAverage(window=1).begin(STAGE), [[4.0, 2.0, 1.0], [1.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert found[2] == pytest.approx(3 * scipy.special.softmax(np.array([0.25, 1.0, 2.0]) / 2.0))


def test_random_weights_are_a_softmax_of_normal_draws() -> None:
    weights = RandomLossWeighting().begin(STAGE)
    found = np.array([list(weights.weights(step(n)).values()) for n in range(3000)])
    np.testing.assert_allclose(found.sum(1), 3.0)
    difference = np.log(found[:, 0]) - np.log(found[:, 1])  # of two normal draws with variance 1 each
    assert difference.mean() == pytest.approx(0.0, abs=0.1)
    assert difference.var() == pytest.approx(2.0, abs=0.2)
    assert scipy.stats.kstest(difference / 2**0.5, "norm").pvalue > 0.01


def test_random_weights_depend_on_seed_stage_and_step_only() -> None:
    stages = [STAGE, STAGE, BalancedStage(name="all", tasks=TASKS, epoch=2, seed=1)]
    stages.append(BalancedStage(name="other", tasks=TASKS, epoch=2, seed=0))
    first, again, *others = ([RandomLossWeighting().begin(s).weights(step(n)) for n in (0, 1)] for s in stages)
    assert first == again
    assert first[0] != first[1]
    assert all(first[0] != other[0] for other in others)


class Quadratics:
    """Losses c_t |theta - m_t|^2 of one parameter vector, trained by plain gradient descent."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        self.centres = torch.randn(3, 4, dtype=torch.float64, generator=draw)
        self.scales = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)

    def losses(self) -> torch.Tensor:
        return self.scales * ((self.theta - self.centres) ** 2).sum(1)

    def descend(self, loss: torch.Tensor) -> None:
        (gradient,) = torch.autograd.grad(loss, self.theta)
        with torch.no_grad():
            self.theta -= 0.02 * gradient

    def of_step(self) -> Mapping[str, float]:
        return by_task(self.losses().tolist())

    def on_dev(self) -> Mapping[str, float]:
        raise AssertionError("FAMO reads no dev examples")


@pytest.mark.parametrize("same_batch", [True, False])
def test_famo_trains_as_the_released_equations_by_autograd(same_batch: bool) -> None:
    """On one batch that never changes, the losses of the next step are those after this one."""
    ours, theirs = Quadratics(), Quadratics()
    weights = FAMO(same_batch=same_batch, lr=0.1).begin(STAGE)
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.1, weight_decay=1e-3)
    for number in range(12):
        at = BalancedStep(number=number, tasks=TASKS, lr=0.0, losses=ours)
        given = weights.weights(at)
        factors = torch.tensor([given[task] for task in TASKS], dtype=torch.float64)
        losses = ours.losses()
        ours.descend((factors * losses).mean())
        weights.update(at, by_task(losses.tolist()))

        distances = theirs.losses() + 1e-8
        z = xi.softmax(0).detach()
        c = (z / distances).sum().detach()
        before = distances.detach().log()
        theirs.descend((distances.log() * z / c).sum())
        delta = before - (theirs.losses().detach() + 1e-8).log()
        adam.zero_grad()
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, grad_outputs=delta)
        adam.step()
        assert torch.allclose(ours.theta, theirs.theta, rtol=1e-9, atol=1e-12), number
    assert not torch.allclose(xi.softmax(0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.02)


def coba_by_hand(losses: np.ndarray, n: int, history: int, warmup: int, tau: float) -> np.ndarray:
    """MFTCoder's weights at step n (from 0), from the losses on dev of the steps 0 to n."""
    relative = losses / losses[0]
    slopes, largest = [], []
    for i in range(warmup, n + 1):
        window = relative[max(0, i + 1 - history) : i + 1]
        slopes.append(np.polyfit(np.arange(len(window)), window, 1)[0])
        largest.append(np.polyfit(np.arange(len(window)), window.max(1), 1)[0])
    recent, most = np.array(slopes)[-history:], np.array(largest)
    now, n_tasks = recent[-1], losses.shape[1]
    rcs = scipy.special.softmax(n_tasks * now / np.abs(now).sum())
    acs = scipy.special.softmax(-len(recent) * now / np.abs(recent).sum(0))
    df = len(most) * scipy.special.softmax(-tau * len(most) * most / np.abs(most).sum())[-1]
    w = scipy.special.softmax(n_tasks * (df * rcs + (1 - df) * acs))
    m = 1 / (10 * n_tasks)
    return n_tasks * (w * (1 - m * n_tasks) + m if (w < m).any() else w)


def test_coba_gives_the_released_weights_after_its_warm_up() -> None:
    fall = np.exp(-np.arange(40)[:, None] * np.array([0.1, 0.02, -0.01]))
    losses = fall * np.array([2.0, 1.0, 3.0]) + 0.05 * np.random.default_rng(0).normal(size=(40, 3))
    found = run_steps(CoBa(warmup=5, history=8, tau=2.0).begin(STAGE), losses.tolist())
    assert found[:5] == [[1.0, 1.0, 1.0]] * 5
    for n in range(5, 40):
        np.testing.assert_allclose(found[n], coba_by_hand(losses, n, 8, 5, 2.0), rtol=1e-8, err_msg=str(n))
    assert len({tuple(np.round(w, 3)) for w in found}) > 20


def test_coba_gives_equal_weights_where_losses_do_not_change() -> None:
    assert run_steps(CoBa(warmup=1).begin(STAGE), [[1.0, 2.0, 3.0]] * 3)[-1] == pytest.approx([1.0, 1.0, 1.0])


# All of them


def made(name: str) -> LossBalancer:
    settings: dict[str, dict[str, Any]] = {
        "coba": {"warmup": 2, "history": 3},
        "dwa": {"window": 2},
        "famo of the next batch": {"same_batch": False},
    }
    built = balancer_class(name.partition(" ")[0])(**settings.get(name, {}))
    assert isinstance(built, LossBalancer)
    return built


@pytest.mark.parametrize("name", BALANCERS)
def test_a_state_that_is_saved_as_json_continues_with_the_same_weights(name: str) -> None:
    losses = random_losses(9)
    whole = run_steps(made(name).begin(STAGE), losses)
    first, second = made(name).begin(STAGE), made(name).begin(STAGE)
    begun = run_steps(first, losses[:5])
    second.load_state(json.loads(json.dumps(first.state())))
    assert begun + run_steps(second, losses[5:], first=5) == whole


@pytest.mark.parametrize("name", BALANCERS)
def test_a_task_that_no_step_has_keeps_what_is_learned_of_it(name: str) -> None:
    weights = made(name).begin(STAGE)
    run_steps(weights, random_losses(6))
    before = repr(learned(weights.state()))
    for number in (6, 7):
        at = step(number, Scripted(now={"a": 1.0, "b": 0.5}, dev=by_task([1.0, 0.5, 2.0])), tasks=("a", "b"))
        given = weights.weights(at)
        assert given.keys() == {"a", "b"}
        assert all(w > 0 for w in given.values())
        weights.update(at, {"a": 1.0, "b": 0.5})
    assert repr(learned(weights.state())) == before


def learned(state: Mapping[str, Any]) -> Any:
    """What a state holds of task c by name; a balancer that reads dev learns of every task in every step."""
    return [values["c"] for values in state.values() if isinstance(values, dict) and "c" in values]


@pytest.mark.parametrize("name", ["dwa", "rlw", "famo", "coba"])
def test_the_mean_weight_of_the_tasks_of_a_step_is_one(name: str) -> None:
    for weights in run_steps(made(name).begin(STAGE), random_losses(6)):
        assert sum(weights) / 3 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dwa", {"temperature": 0.0}, "balance.temperature=0.0 must be above 0"),
        ("dwa", {"window": 0}, "balance.window=0: use 1 step or more"),
        ("famo", {"lr": 0.0}, "balance.lr=0.0 must be above 0"),
        ("coba", {"warmup": 0}, "balance.warmup=0: slopes need"),
        ("coba", {"history": 1}, "balance.history=1: a slope needs"),
    ],
)
def test_settings_without_meaning_are_wrong_use(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        balancer_class(name)(**settings)
