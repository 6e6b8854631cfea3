"""The trainer keeps the best adapter, ends stages early, and resumes from any step to the same bits."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import messages
from step_hook import Crash
from toy_trainer import STEPS, toy_trainer

from harness.errors import NotFinite, StoreError, TrainingError
from harness.runtime.signals import Interrupted, StopFlag
from harness.training.stage import StepDone
from harness.training.trainer import EngineTrainer

pytestmark = pytest.mark.numeric

Llama = Callable[..., Any]


def weights(trainer: EngineTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.setup.adapter.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def crash_after(step: int) -> Callable[[StepDone], None]:
    def crash(done: StepDone) -> None:
        if done.step == step:
            raise Crash

    return crash


# The best adapter on dev


def test_the_best_adapter_on_dev_is_kept_and_of_equals_the_first(toy_llama: Llama, tmp_path: Path) -> None:
    scores, states = iter([0.25, 0.5, 0.5, 0.125, 0.0, 0.0]), []

    def evaluate(tasks: Sequence[str]) -> float:
        states.append(weights(trainer))
        return next(scores)

    trainer = toy_trainer(tmp_path, toy_llama(), evaluate=evaluate, eval_every=1)
    trainer.train("all")
    assert [line["dev"] for line in log(tmp_path) if "dev" in line] == [0.25, 0.5, 0.5, 0.125, 0.0, 0.0]
    assert same(weights(trainer), states[1])
    assert not same(states[1], states[2])


def test_the_best_adapter_of_a_stage_is_kept_over_a_crash(toy_llama: Llama, tmp_path: Path) -> None:
    states = []

    def trainer_with(scores: Iterator[float], crash: int) -> EngineTrainer:
        def evaluate(tasks: Sequence[str]) -> float:
            states.append(weights(trainer))
            return next(scores)

        trainer = toy_trainer(
            tmp_path, toy_llama(), evaluate=evaluate, on_step=crash_after(crash), eval_every=1, checkpoint_steps=1
        )
        return trainer

    with pytest.raises(Crash):
        trainer_with(iter([0.5, 0.25]), 3).train("all")
    resumed = trainer_with(iter([0.25, 0.25, 0.25, 0.25]), 0)
    resumed.train("all")
    assert same(weights(resumed), states[0])


def test_patience_ends_a_stage_early(toy_llama: Llama, tmp_path: Path) -> None:
    scores = iter([0.5, 0.25, 0.25, 1.0])
    trainer = toy_trainer(tmp_path, toy_llama(), evaluate=lambda tasks: next(scores), eval_every=1, patience=2)
    trainer.train("all")
    assert trainer.summary().steps == 3
    assert trainer.done("all")


def test_each_stage_is_evaluated_on_its_own_tasks_every_n_steps_and_at_its_end(
    toy_llama: Llama, tmp_path: Path
) -> None:
    given = []

    def evaluate(tasks: Sequence[str]) -> None:
        given.append(tuple(tasks))

    trainer = toy_trainer(tmp_path, toy_llama(), evaluate=evaluate, eval_every=4)
    trainer.train("first", tasks=["two"])
    trainer.train("second")
    assert given == [("two",)] * 2 + [("one", "two", "three")] * 2
    assert not [line for line in log(tmp_path) if "dev" in line]  # without dev examples there is no score


# Resume


@pytest.mark.long
@pytest.mark.parametrize("crashes", [(3, 5), (1,), (2, 2, 4)])
def test_a_training_that_crashed_ends_with_the_same_bits(
    toy_llama: Llama, tmp_path: Path, crashes: Sequence[int]
) -> None:
    whole = toy_trainer(tmp_path / "whole", toy_llama())
    whole.train("all")
    for step in crashes:
        with pytest.raises(Crash):
            toy_trainer(tmp_path / "killed", toy_llama(), on_step=crash_after(step)).train("all")
    resumed = toy_trainer(tmp_path / "killed", toy_llama())
    resumed.train("all")
    assert same(weights(resumed), weights(whole))
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert resumed.summary().steps == STEPS


def test_a_signal_stops_after_a_step_with_a_checkpoint_of_it(toy_llama: Llama, tmp_path: Path) -> None:
    stop = StopFlag()

    def signal_after_three(done: StepDone) -> None:
        if done.step == 3:
            stop.signum = 2

    trainer = toy_trainer(tmp_path, toy_llama(), stop=stop, on_step=signal_after_three, checkpoint_steps=100)
    with pytest.raises(Interrupted):
        trainer.train("all")
    assert toy_trainer(tmp_path, toy_llama()).where() == "stage all, step 5"
    assert len(log(tmp_path)) == 4


def test_a_finished_stage_and_what_was_remembered_are_not_repeated(toy_llama: Llama, tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        trainer = toy_trainer(tmp_path, toy_llama(), on_step=lambda done: made.append(done.stage))
        trainer.train("first", tasks=["one"], share=0.5)
        if trainer.recall("trials") is None:
            trainer.remember("trials", [1, 2])
        trainer.train("second", share=0.5)
    assert trainer.recall("trials") == [1, 2]
    steps = trainer.setup.mixture.plan(["one"], 0.5).steps
    assert made == ["first"] * steps + ["second"] * 3


def test_a_full_disk_keeps_the_checkpoint_before_and_training_resumes_from_it(
    toy_llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(done: StepDone) -> None:
        if done.step == 4:
            monkeypatch.setattr(os, "fsync", raise_full)

    with pytest.raises(StoreError, match="No space left"):
        toy_trainer(tmp_path, toy_llama(), on_step=fill_the_disk).train("all")
    monkeypatch.undo()
    resumed = toy_trainer(tmp_path, toy_llama())
    assert resumed.where() == "stage all, step 3"
    resumed.train("all")
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def raise_full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_damaged_checkpoints_are_logged(toy_llama: Llama, tmp_path: Path) -> None:
    toy_trainer(tmp_path, toy_llama()).train("all")
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    with messages() as logged:
        trainer = toy_trainer(tmp_path, toy_llama())
    assert "00000004 is damaged" in logged[0]
    assert "starts from the beginning" in logged[-1]
    assert not trainer.done("all")


# Errors


def test_a_loss_that_is_not_finite_names_the_tasks_and_the_last_good_checkpoint(
    toy_llama: Llama, tmp_path: Path
) -> None:
    def spoil(done: StepDone) -> None:
        if done.step == 3:
            for parameter in trainer.setup.adapter.trainable().values():
                parameter.data.fill_(float("nan"))

    trainer = toy_trainer(tmp_path, toy_llama(), on_step=spoil)
    with pytest.raises(NotFinite, match=r"step 4; tasks of the batch: .*checkpoints/00000001$"):
        trainer.train("all")
    assert trainer.where() == "stage all, step 4"


def test_a_stage_without_parameters_is_an_error(toy_llama: Llama, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'empty' has no parameters"):
        toy_trainer(tmp_path, toy_llama()).train("empty", parameters=[])
