"""The estimate and the peak of memory of a short training: tests/support/memory_peak.py METHOD packed|checkpointed.

A process of its own, because memory that an earlier training has freed would count for this one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from toy_steps import ROUTES, TASKS, as_loaded
from toy_trainer import N_EXAMPLES, Characters
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM

from harness.config.spec import TrainConfig
from harness.data.encoding import Encoder
from harness.data.mixture import Mixture
from harness.data.splits import SplitExamples
from harness.registry import method_class
from harness.runtime.memory import resident_bytes
from harness.runtime.signals import StopFlag
from harness.store.run_directory import RunDirectory
from harness.training.memory import estimate_memory
from harness.training.stage import TrainingSetup
from harness.training.trainer import EngineTrainer

WAYS: dict[str, dict[str, Any]] = {
    "packed": {"micro_tokens": 1024, "batch_size": 4},
    "checkpointed": {"micro_tokens": 2048, "batch_size": 8, "gradient_checkpointing": True},
}


def examples() -> SplitExamples:
    """Prompts of 240 characters, which are 240 tokens."""
    tasks = [task for task in TASKS for _ in range(N_EXAMPLES)]
    dataset = Dataset.from_dict(
        {
            "id": [f"{task}{i}" for i, task in enumerate(tasks)],
            "task": tasks,
            "prompt": [(f"{task} {i} " * 100)[:240] for i, task in enumerate(tasks)],
            "target": ["yes no maybe "[: 5 + i % 7] for i in range(len(tasks))],
            "choices": [None] * len(tasks),
        }
    )
    by_task = {t: np.arange(i * N_EXAMPLES, (i + 1) * N_EXAMPLES) for i, t in enumerate(TASKS)}
    return SplitExamples(split="train", dataset=dataset, by_task=by_task)


def llama() -> Any:
    """A random Llama with 14 million numbers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 4000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
    config = LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=2048)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def main(arguments: Sequence[str]) -> None:
    """Print both numbers, in bytes, for a training of two steps or more in each stage."""
    torch.set_num_threads(1)
    name, way = arguments
    steps = 4 if name == "moa" else 2  # Its stage of all tasks has half of them, and the second one needs the most.
    config, before, method = TrainConfig(steps=steps, **WAYS[way]), resident_bytes(), method_class(name)()
    model, mixture = llama(), Mixture(examples=examples(), batch_size=WAYS[way]["batch_size"], steps=steps, seed=0)
    setup = TrainingSetup(
        config=config,
        method=method,
        adapter=method.attach(model, TASKS, seed=0),
        loaded=as_loaded(model),
        encoder=Encoder(tokenizer=Characters(), style="plain", eos=1, max_length=2048, limits=dict.fromkeys(TASKS, 16)),
        mixture=mixture,
        routes=ROUTES,
        memory_before=before,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = EngineTrainer(run=RunDirectory(Path(folder)), run_id="a" * 64, setup=setup, stop=StopFlag())
        trainer.restore()
        estimate = estimate_memory(setup.loaded, setup.adapter, setup.encoder, TASKS, config, mixture)
        method.fit(setup.adapter, trainer, TASKS)
        print(json.dumps({"estimate": estimate, "peak": trainer.summary().peak_memory_bytes}))


if __name__ == "__main__":
    main(sys.argv[1:])
