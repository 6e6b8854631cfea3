"""An EngineTrainer on a toy model and a few examples in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from toy_steps import ROUTES, TASKS, as_loaded

from harness.balancing import Balancer
from harness.config.spec import TrainConfig
from harness.data.encoding import Encoder
from harness.data.mixture import Mixture
from harness.data.splits import SplitExamples
from harness.registry import method_class
from harness.runtime.signals import StopFlag
from harness.store.run_directory import RunDirectory
from harness.task import Example
from harness.training.early_stopping import EvaluateOnDev
from harness.training.stage import StepHook, TrainingSetup
from harness.training.task_balance import TaskBalancing
from harness.training.trainer import EngineTrainer

STEPS = 6
N_EXAMPLES = 8  # of each task


class Characters:
    """A tokenizer with a token for each character."""

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) % 90 + 2 for c in text] for text in texts]}


def toy_rows() -> SplitExamples:
    """The training examples of three tasks."""
    tasks = [task for task in TASKS for _ in range(N_EXAMPLES)]
    dataset = Dataset.from_dict(
        {
            "id": [f"{task}{i}" for i, task in enumerate(tasks)],
            "task": tasks,
            "prompt": [f"{task} {i * 37 % 11}?" for i, task in enumerate(tasks)],
            "target": [f"{i * 53 % 17}" for i in range(len(tasks))],
            "choices": [None] * len(tasks),
        }
    )
    by_task = {t: np.arange(i * N_EXAMPLES, (i + 1) * N_EXAMPLES) for i, t in enumerate(TASKS)}
    return SplitExamples(split="train", dataset=dataset, by_task=by_task)


def toy_dev() -> dict[str, list[Example]]:
    """Two dev examples of each task, which are training examples of it too."""
    rows = toy_rows()
    return {task: rows.of(task)[:2] for task in TASKS}


def toy_trainer(
    folder: Path,
    model: Any,
    *,
    method: str = "lora_all",
    evaluate: EvaluateOnDev | None = None,
    on_step: StepHook | None = None,
    stop: StopFlag | None = None,
    balancer: Balancer | None = None,
    **config: Any,
) -> EngineTrainer:
    """A trainer in the directory ``folder`` of a run that is restored; ``config``: fields of TrainConfig."""
    settings = TrainConfig(**{"steps": STEPS, "batch_size": 4, "checkpoint_steps": 2, **config})
    made = method_class(method)(dropout=0.1)
    trainer = EngineTrainer(
        run=RunDirectory(folder),
        run_id="a" * 64,
        setup=TrainingSetup(
            config=settings,
            method=made,
            adapter=made.attach(model, TASKS, seed=0),
            loaded=as_loaded(model),
            encoder=Encoder(
                tokenizer=Characters(), style="plain", eos=1, max_length=64, limits=dict.fromkeys(TASKS, 8)
            ),
            mixture=Mixture(examples=toy_rows(), batch_size=4, steps=STEPS, seed=0),
            routes=ROUTES,
            balancing=None if balancer is None else TaskBalancing(balancer=balancer, dev=toy_dev()),
        ),
        stop=StopFlag() if stop is None else stop,
        evaluate=evaluate,
        on_step=on_step,
    )
    trainer.restore()
    return trainer
