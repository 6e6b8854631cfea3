"""Affinity that is measured while a toy trains: the formulas, which axis is which, and that it only observes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from step_hook import Crash
from torch import nn
from toy_steps import ROUTES, TASKS
from toy_trainer import toy_trainer

from harness.config.spec import TrainConfig
from harness.training.affinity import GRADIENTS, LOOKAHEAD, AffinityOfStep, AffinitySums, is_measured
from harness.training.stage import StepDone
from harness.training.step import StepRunner
from harness.training.task_gradients import TaskGradients
from harness.training.task_products import SharedParameter

pytestmark = pytest.mark.numeric

Llama = Callable[..., Any]


class TwoNumbers:
    """Steps of a toy with two shared numbers x, whose tasks have the losses c_t + (a_t x)^2."""

    config = TrainConfig(lr=1e-3)
    slopes = torch.tensor([[1.0, 0.5], [2.0, -1.0], [0.3, 3.0]], dtype=torch.float64)
    constants = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    moments = torch.tensor([0.25, 4.0], dtype=torch.float64)

    def __init__(self) -> None:
        self.x = nn.Parameter(torch.tensor([0.7, 0.2], dtype=torch.float64))

    def losses(self, *_: object) -> torch.Tensor:
        return self.constants + (self.slopes @ self.x.detach()) ** 2

    def lr(self, number: int) -> float:
        return self.config.lr

    def group_of(self, parameter: nn.Parameter) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        state = {"exp_avg_sq": self.moments * (1 - 0.999**3), "step": torch.tensor(3.0)}
        return {"betas": (0.9, 0.999), "eps": 0.0, "factor": 2.0}, state

    def measure(self) -> AffinitySums:
        """A step in which the tasks have the shares 0.5, 0.3 and 0.2 of the loss."""
        shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        means = 2 * (self.slopes @ self.x.detach())[:, None] * self.slopes
        gradients = TaskGradients(
            shared=[SharedParameter(name="x", parameter=self.x)],
            by_name={"x": means * shares[:, None]},
            shares=shares,
            losses=self.losses(),
            in_one_pass=True,
        )
        sums = AffinitySums.zero(3, (GRADIENTS, LOOKAHEAD))
        runner = cast("StepRunner", self)
        AffinityOfStep(sums=sums, runner=runner, number=0, sequences=[], routes=ROUTES)(gradients)
        return sums

    def by_hand(self, source: int, recipient: int) -> float:
        """<g_j, P g_i> / L_j with P = 2 / sqrt(v)."""
        x = [0.7, 0.2]
        inner = [sum(a * b for a, b in zip(s, x, strict=True)) for s in self.slopes.tolist()]
        gi, gj = ([2 * inner[t] * a for a in self.slopes[t].tolist()] for t in (source, recipient))
        product = gi[0] * gj[0] * 2 / 0.5 + gi[1] * gj[1] * 2 / 2.0
        return product / float(self.constants[recipient] + inner[recipient] ** 2)


def test_first_order_affinity_has_a_line_for_each_source_and_a_column_for_each_recipient() -> None:
    toy = TwoNumbers()
    found = np.array(toy.measure().sums[GRADIENTS])
    expected = [[toy.by_hand(i, j) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert abs(found[0, 2]) < 0.1 * abs(found[2, 0])  # so that a transposed matrix would not pass


def test_lookahead_of_a_small_step_is_the_first_order_affinity_and_leaves_the_weights() -> None:
    toy = TwoNumbers()
    found = toy.measure().sums
    np.testing.assert_allclose(found[LOOKAHEAD], found[GRADIENTS], rtol=0.02)
    assert toy.x.tolist() == [0.7, 0.2]


def test_lookahead_is_the_loss_after_the_part_of_the_step_that_comes_from_the_source() -> None:
    toy = TwoNumbers()
    gradient = 2 * float(toy.slopes[1] @ toy.x.detach()) * toy.slopes[1]
    size = 1e-3 * (1 - 0.9) * 0.3
    moved = toy.x.detach() - size * 2 * gradient / toy.moments.sqrt()
    before, after = (float(20.0 + (toy.slopes[2] @ x) ** 2) for x in (toy.x.detach(), moved))
    assert toy.measure().sums[LOOKAHEAD][1][2] == pytest.approx((1 - after / before) / size, rel=1e-9)


@pytest.mark.long
def test_a_step_that_is_measured_is_the_same_step_bit_for_bit(toy_llama: Llama, tmp_path: Path) -> None:
    states = []
    for way in (None, "gradients", "lookahead"):
        trainer = toy_trainer(tmp_path / str(way), toy_llama(), affinity=way, affinity_every=2)
        trainer.train("all")
        states.append(trainer.setup.adapter.state_dict())
        assert (tmp_path / str(way) / "artefacts" / "affinity.json").exists() == (way is not None)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name


@pytest.mark.long
@pytest.mark.parametrize("crash", [2, 4, 5])
def test_a_training_that_crashed_ends_with_the_same_affinity(toy_llama: Llama, tmp_path: Path, crash: int) -> None:
    def stop(done: StepDone) -> None:
        if done.step == crash:
            raise Crash

    settings: dict[str, Any] = {"affinity": "lookahead", "affinity_every": 1}
    toy_trainer(tmp_path / "whole", toy_llama(), **settings).train("all")
    with pytest.raises(Crash):
        toy_trainer(tmp_path / "killed", toy_llama(), on_step=stop, **settings).train("all")
    toy_trainer(tmp_path / "killed", toy_llama(), **settings).train("all")
    one, other = (
        json.loads((tmp_path / folder / "artefacts" / "affinity.json").read_text()) for folder in ("whole", "killed")
    )
    assert one == other
    assert one["tasks"] == list(TASKS)
    assert (one["lines"], one["columns"], one["in_one_pass"]) == ("source", "recipient", True)
    assert max(map(max, one["steps"])) == 5  # six steps, of which the first is never measured


def test_every_nth_step_after_the_warm_up_is_measured() -> None:
    config = TrainConfig(affinity="gradients")
    assert [s for s in range(100) if is_measured(config, s, 100, 3)] == list(range(5, 100, 10))
    assert [s for s in range(4) if is_measured(config, s, 4, 3)] == [1]
    assert not any(is_measured(config, s, 100, 1) for s in range(100))  # a stage of one task
    assert not any(is_measured(TrainConfig(), s, 100, 3) for s in range(100))


def test_true_and_false_are_values_of_the_key() -> None:
    assert TrainConfig(affinity=True).affinity == "gradients"  # type: ignore[arg-type]
    assert TrainConfig(affinity=False).affinity is None  # type: ignore[arg-type]


def test_a_pair_whose_affinity_overflowed_does_not_count() -> None:
    sums = AffinitySums.zero(2, (GRADIENTS,))
    sums.add({GRADIENTS: torch.tensor([[1.0, torch.inf], [3.0, torch.nan]])}, in_one_pass=True)
    sums.add({GRADIENTS: torch.tensor([[2.0, 4.0], [5.0, torch.nan]])}, in_one_pass=False)
    means = sums.means(["a", "b"])
    assert means.ways["gradients"] == ((1.5, 4.0), (4.0, None))
    assert means.steps == ((2, 1), (2, 0))
    assert not means.in_one_pass


def test_nothing_is_measured_where_tasks_share_no_parameter(toy_llama: Llama, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_llama(), method="lora_single", affinity="gradients", affinity_every=1)
    trainer.train("all")
    assert not (tmp_path / "artefacts").exists()
