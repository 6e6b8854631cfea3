"""The best weights on dev are kept, and a stage ends after ``patience`` evaluations without improvement."""

from __future__ import annotations

import torch

from harness.training.early_stopping import EarlyStopping


def stopping(*scores: float, patience: int | None = None) -> EarlyStopping:
    made = EarlyStopping(evaluate=lambda tasks: None, every=4, patience=patience)
    for i, score in enumerate(scores):
        made.add(4 * i, score, lambda i=i: {"step": torch.tensor(i)})  # type: ignore[misc]
    return made


def test_of_equal_scores_the_first_weights_are_kept() -> None:
    assert int(stopping(0.25, 0.5, 0.5, 0.125).best["step"]) == 1


def test_a_stage_is_over_after_as_many_evaluations_without_improvement_as_patience_says() -> None:
    assert not stopping(patience=1).is_over()
    assert not stopping(0.5, 0.25, patience=2).is_over()
    assert stopping(0.5, 0.25, 0.5, patience=2).is_over()
    assert not stopping(0.5, 0.25, 0.75, patience=2).is_over()
    assert not stopping(0.5, 0.25, 0.25, 0.25).is_over()


def test_dev_is_evaluated_every_n_steps_and_after_the_last() -> None:
    assert [step for step in range(1, 11) if stopping().is_due(step, 10)] == [4, 8, 10]
    never = EarlyStopping(evaluate=lambda tasks: None, every=None, patience=None)
    assert not never.is_due(10, 10)


def test_another_stage_starts_without_scores_and_weights() -> None:
    made = stopping(0.5, 0.25, 0.25, patience=2)
    made.begin_stage()
    assert not made.is_over()
    assert not made.best
