"""Weights of tasks enter the loss of a step as they are, whatever its division, and survive a crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from step_hook import Crash
from toy_steps import CLOSE, PACKED, PADDED, ROUTES, TASKS, gradients, make_sequences, make_steps
from toy_trainer import STEPS, toy_trainer

from harness.balancing import BalancedStage, BalancedStep, LossBalancer, TaskWeights
from harness.config.spec import BalanceSpec
from harness.data.encoding import Encoded
from harness.errors import DataError, TrainingError
from harness.registry import balancer_class, method_class
from harness.training.memory import estimate_memory
from harness.training.packing import Layout
from harness.training.stage import StepDone
from harness.training.task_balance import StageBalance, TaskBalancing

pytestmark = pytest.mark.numeric

Llama = Callable[..., Any]
FACTORS = {"one": 0.5, "two": 2.0, "three": 0.25}
STAGE = BalancedStage(name="all", tasks=TASKS, epoch=2, seed=0)
SETTINGS: dict[str, dict[str, Any]] = {
    "uncertainty": {"lr": 0.5},
    "dwa": {"window": 1, "temperature": 0.1},
    "rlw": {},
    "famo": {"lr": 0.5},
    "coba": {"warmup": 1},
}


class Fixed(TaskWeights):
    """The weights FACTORS, and a record of the losses that were passed."""

    def __init__(self) -> None:
        self.given: list[Mapping[str, float]] = []

    def weights(self, step: BalancedStep) -> Mapping[str, float]:
        self.given.append(step.losses.of_step())
        return {task: FACTORS[task] for task in step.tasks}

    def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
        self.given += [losses, step.losses.of_step()]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Checkpoints keep nothing of it."""


def made(name: str) -> LossBalancer:
    built = balancer_class(name)(**SETTINGS[name])
    assert isinstance(built, LossBalancer)
    return built


def begun(name: str, sequences: list[Encoded]) -> StageBalance:
    """A balancer at its first step, whose dev examples are the sequences."""
    return StageBalance(
        weights=made(name).begin(STAGE), dev={task: [s for s in sequences if s.task == task] for task in TASKS}
    )


def test_the_gradient_of_a_step_is_the_weighted_mean_of_those_of_its_tasks(toy_llama: Llama) -> None:
    sequences, method = make_sequences(), method_class("lora_all")()
    balance = StageBalance(weights=Fixed(), dev={})
    found = gradients(make_steps(toy_llama(), method, PACKED, loss="task", balance=balance), sequences)[1]
    alone = [
        gradients(make_steps(toy_llama(), method, PACKED, loss="task"), [s for s in sequences if s.task == task])[1]
        for task in TASKS
    ]
    for name, gradient in found.items():
        parts = [FACTORS[task] * of[name] for task, of in zip(TASKS, alone, strict=True)]  # type: ignore[operator]
        assert torch.allclose(gradient, sum(parts) / 3, rtol=CLOSE, atol=CLOSE), name  # type: ignore[arg-type]
    assert max(float(g.abs().max()) for g in found.values() if g is not None) > 1e-4


def test_the_losses_that_a_balancer_gets_are_those_of_the_step_before_and_after_it(toy_llama: Llama) -> None:
    sequences, fixed = make_sequences(), Fixed()
    method = method_class("lora_all")(dropout=0.3)
    steps = make_steps(
        toy_llama(), method, PACKED, balance=StageBalance(weights=fixed, dev={}), lr=0.05, micro_tokens=70
    )
    steps.loaded.model.train()
    result = steps.step(0, sequences, ROUTES)
    before, of_step, after = fixed.given
    assert before == pytest.approx(of_step, rel=1e-12)  # with the same dropout
    assert result.by_task == pytest.approx(of_step)
    assert result.weights == FACTORS
    assert min(abs(after[task] - before[task]) for task in ("one", "two")) > 1e-3
    steps.config = steps.config.model_copy(update={"lr": 1e-30})
    steps.step(0, sequences, ROUTES)
    assert fixed.given[3] == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize("name", ["align_lora", "mola", "moa"])
def test_forward_passes_for_losses_change_nothing_in_the_step(toy_llama: Llama, name: str) -> None:
    """These methods have losses of their own, which they gather in the forward pass."""

    class Ones(Fixed):
        def weights(self, step: BalancedStep) -> Mapping[str, float]:
            step.losses.of_step()
            step.losses.on_dev()
            return dict.fromkeys(step.tasks, 1.0)

    sequences, method = make_sequences(), method_class(name)()
    balance = StageBalance(weights=Ones(), dev={task: [s for s in sequences if s.task == task] for task in TASKS})
    plain, balanced = (
        gradients(make_steps(toy_llama(), method, PACKED, balance=b, micro_tokens=70), sequences)
        for b in (None, balance)
    )
    assert plain[0] == balanced[0]
    for parameter, gradient in plain[1].items():
        other = balanced[1][parameter]
        assert (gradient is None and other is None) or torch.equal(gradient, other), parameter  # type: ignore[arg-type]


def test_a_weight_of_zero_or_below_is_refused(toy_llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTORS, "two", 0.0)
    balance = StageBalance(weights=Fixed(), dev={})
    steps = make_steps(toy_llama(), method_class("lora_all")(), PACKED, balance=balance)
    with pytest.raises(TrainingError, match=r"gave task two the weight 0\.0: weights must be above 0"):
        steps.step(0, make_sequences(), ROUTES)


@pytest.mark.parametrize("kind", ["token", "example", "task"])
def test_the_losses_after_a_step_are_weighted_as_its_loss(toy_llama: Llama, kind: str) -> None:
    fixed = Fixed()
    method = method_class("lora_all")(dropout=0.3)
    balance = StageBalance(weights=fixed, dev={})
    steps = make_steps(toy_llama(), method, PACKED, balance=balance, lr=1e-30, loss=kind, micro_tokens=70)
    steps.loaded.model.train()
    steps.step(0, make_sequences(), ROUTES)
    before, of_step, after = fixed.given
    assert before == pytest.approx(of_step, rel=1e-12)
    assert before == pytest.approx(after, rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", list(SETTINGS))
def test_weights_do_not_depend_on_packing_and_micro_batches(toy_llama: Llama, name: str) -> None:
    def weights(layout: Layout, micro_tokens: int) -> list[float]:
        sequences = make_sequences()
        balance = begun(name, sequences)
        method = method_class("cgc_lora")()
        steps = make_steps(toy_llama(), method, layout, balance=balance, lr=0.02, micro_tokens=micro_tokens)
        found: list[float] = []
        for number in range(4):
            steps.loaded.model.train()
            result = steps.step(number, make_sequences(n=2 if number == 2 else 7, seed=number), ROUTES)
            assert result.weights is not None
            assert result.weights.keys() == result.by_task.keys()
            found += [*result.weights.values(), result.loss]
        return found

    whole = weights(PACKED, 1000)
    assert weights(PACKED, 50) == pytest.approx(whole, rel=1e-5)
    assert weights(PADDED, 50) == pytest.approx(whole, rel=1e-5)
    assert max(abs(w - 1) for w in whole[-4:-1]) > 1e-3  # something is balanced


def test_dev_examples_are_read_in_turn_and_without_dropout(toy_llama: Llama) -> None:
    sequences, found = make_sequences(), []

    class ReadsDev(Fixed):
        def weights(self, step: BalancedStep) -> Mapping[str, float]:
            found.append(step.losses.on_dev())
            return dict.fromkeys(step.tasks, 1.0)

        def update(self, step: BalancedStep, losses: Mapping[str, float]) -> None:
            """Nothing is learned."""

    dev = {task: [s for s in sequences if s.task == task][:2] for task in TASKS}
    method = method_class("lora_all")(dropout=0.5)
    steps = make_steps(toy_llama(), method, PACKED, balance=StageBalance(weights=ReadsDev(), dev=dev), lr=1e-30)
    steps.loaded.model.train()
    for number in range(3):
        steps.step(number, sequences, ROUTES)
        assert steps.loaded.model.training
    assert found[0] == pytest.approx(found[2], rel=1e-12)
    assert found[0]["one"] != pytest.approx(found[1]["one"], rel=1e-5)
    plain = make_steps(toy_llama(), method_class("lora_all")(dropout=0.0), PACKED)
    expected = plain.step(0, [dev[task][0] for task in TASKS], ROUTES).by_task
    assert found[0] == pytest.approx(expected, rel=1e-6)


# In a training


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.long
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_training_that_crashed_resumes_with_the_same_weights(toy_llama: Llama, tmp_path: Path, name: str) -> None:
    def crash(done: StepDone) -> None:
        if done.step == 4:
            raise Crash

    settings: dict[str, Any] = {"balancer": made(name), "checkpoint_steps": 3, "lr": 0.02}
    toy_trainer(tmp_path / "whole", toy_llama(), **settings).train("all")
    with pytest.raises(Crash):
        toy_trainer(tmp_path / "killed", toy_llama(), on_step=crash, **settings).train("all")
    toy_trainer(tmp_path / "killed", toy_llama(), **settings).train("all")
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    weights = [line["weights"] for line in log(tmp_path / "whole")]
    assert len(weights) == STEPS
    assert len({json.dumps(w) for w in weights}) > 1


def test_a_stage_with_one_task_is_trained_without_balance_and_another_one_starts_afresh(
    toy_llama: Llama, tmp_path: Path
) -> None:
    trainer = toy_trainer(tmp_path, toy_llama(), balancer=made("uncertainty"))
    trainer.train("first", tasks=["two"], share=0.5)
    trainer.train("second", share=0.5)
    trainer.train("third", share=0.5)
    first, *others = ([line for line in log(tmp_path) if line["stage"] == s] for s in ("first", "second", "third"))
    assert all("weights" not in line for line in first)
    assert [set(lines[0]["weights"].values()) for lines in others] == [{1.64872}, {1.64872}]


def test_the_estimate_of_memory_counts_the_gradients_of_every_task(toy_llama: Llama, tmp_path: Path) -> None:
    def estimate(balance: BalanceSpec | None) -> int:
        setup = toy_trainer(tmp_path, toy_llama(), balance=balance).setup
        return estimate_memory(setup.loaded, setup.adapter, setup.encoder, TASKS, setup.config, setup.mixture)

    plain, weighed, combined = (
        estimate(None if name is None else BalanceSpec(name=name, version=1)) for name in (None, "famo", "pcgrad")
    )
    adapter = toy_trainer(tmp_path, toy_llama()).setup.adapter
    assert weighed == plain
    assert combined - plain == 3 * 8 * sum(p.numel() for p in adapter.trainable().values())


def test_a_task_without_dev_examples_cannot_be_balanced_by_them(toy_llama: Llama, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_llama())
    balancing = TaskBalancing(balancer=made("coba"), dev={"one": []})
    with pytest.raises(DataError, match=r"no examples of one, two, three: leave train\.balance out"):
        balancing.weights(STAGE, trainer.setup.encoder.encode)
