"""Replacements of the engine for tests of a method: a random two-block Llama, three small tasks, and a simple trainer.

``ToyTrainer`` implements ``harness.method.Trainer`` as simply as possible, so that a test can run a method's ``fit``;
``harness.testing.promises`` uses it for the tests that every method has to pass.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.method import Adapter, AdapterMethod, ArtefactKind, CountsTokens, Start, Trait
from harness.seeding import stable_seed
from harness.task import Example

VOCABULARY = 67
TASKS = ("first", "second", "third.one")  # Task names may contain dots.


@functools.lru_cache(maxsize=1)
def _toy_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    state = torch.get_rng_state()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).to(torch.float64)
    torch.set_rng_state(state)
    return cast("nn.Module", model)


def toy_model() -> nn.Module:
    """A new copy of a small random Llama in float64, frozen and in eval mode; all copies are equal."""
    return copy.deepcopy(_toy_model()).eval().requires_grad_(False)


def toy_data(n: int = 6, tasks: Sequence[str] = TASKS) -> dict[str, list[Example]]:
    """Examples of tasks with the same prompts and different targets, so that no single target fits all of them."""
    return {
        task: [Example(id=f"{task}-{i}", task=task, prompt=f"question {i}", target=f"{t}{t}") for i in range(n)]
        for t, task in enumerate(tasks)
    }


def toy_tokens(text: str) -> list[int]:
    """One token for each byte of the text; token 0 is never used."""
    return [1 + byte % (VOCABULARY - 1) for byte in text.encode()]


@dataclass(kw_only=True)
class ToyTrainer:
    """Trains stages with AdamW on batches drawn with the seed; everything is in memory.

    data: the training examples of each task; there may be none.
    reusable: the states that ``reuse`` returns, by stage. start: what the training is initialised from.
    finished, remembered, artefacts, kinds: what the method has done so far, for assertions in tests.
    """

    method: AdapterMethod
    adapter: Adapter
    model: nn.Module
    data: Mapping[str, Sequence[Example]]
    seed: int = 0
    steps: int = 5
    batch_size: int = 6
    lr: float = 1e-2
    reusable: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    remembered: dict[str, Any] = field(default_factory=dict)
    artefacts: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, ArtefactKind] = field(default_factory=dict)
    start: Start | None = None

    def train(
        self,
        stage: str,
        parameters: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        share: float = 1.0,
    ) -> None:
        if self.done(stage):
            return
        everything = self.adapter.trainable()
        names = list(everything) if parameters is None else list(parameters)
        for name, parameter in everything.items():
            parameter.requires_grad_(name in set(names))
        groups = [{"params": [everything[n]], "lr": self.lr * self.method.lr_factor(n)} for n in names]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        n_all = sum(map(len, self.data.values()))
        examples = [example for task in (self.data if tasks is None else tasks) for example in self.data[task]]
        size = max(1, round(self.batch_size * len(examples) / n_all))
        # The order depends on the seed and the tasks, not on the stage: a task alone has the same batches in any run.
        order = random.Random(f"{self.seed} {sorted({e.task for e in examples})}")
        self.model.train()
        for step in range(round(self.steps * share)):
            self.adapter.begin_step(stage, step)
            torch.manual_seed(stable_seed("dropout", self.seed, stage, step))  # as the engine seeds each step
            optimiser.zero_grad(set_to_none=True)
            losses, penalty = self._losses(order.choices(examples, k=size))
            (losses.mean() + penalty / size).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self.model.eval()
        for parameter in everything.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        self.finish(stage)

    def examples(self, task: str, n: int, stage: str) -> list[Example]:
        examples = list(self.data[task])
        return random.Random(f"{self.seed} {task} {stage}").sample(examples, min(n, len(examples)))

    @torch.no_grad()
    def loss(self, examples: Sequence[Example]) -> float:
        return float(self._losses(examples)[0].mean())

    def done(self, stage: str) -> bool:
        return stage in self.finished

    def finish(self, stage: str) -> None:
        self.finished.append(stage)

    def remember(self, key: str, value: Any) -> None:
        self.remembered[key] = json.loads(json.dumps(value, allow_nan=False))

    def recall(self, key: str) -> Any:
        return copy.deepcopy(self.remembered.get(key))

    def reuse(self, stage: str) -> Mapping[str, Tensor] | None:
        return self.reusable.get(stage)

    def artefact(self, name: str, value: Any, kind: ArtefactKind) -> None:
        self.artefacts[name] = json.loads(json.dumps(value, allow_nan=False))
        self.kinds[name] = kind

    def _losses(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The mean token loss of each example, and the method's penalty."""
        tasks = list(self.data)
        prompts = [torch.tensor(toy_tokens(e.prompt)) for e in examples]
        targets = [torch.tensor([*toy_tokens(e.target), 0]) for e in examples]
        sequences = [torch.cat(pair) for pair in zip(prompts, targets, strict=True)]
        tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        labels = tokens.masked_fill(~mask, -100)
        for i, prompt in enumerate(prompts):
            labels[i, : len(prompt)] = -100
        with self.adapter.route(torch.tensor([tasks.index(e.task) for e in examples])):
            if isinstance(self.adapter, CountsTokens):
                self.adapter.count_tokens([mask])
            if Trait.LABEL_FREE in self.method.traits:
                self.adapter.read(prompts, torch.arange(len(prompts)))
            logits = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
            penalty = self.adapter.penalty()
        losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        return losses.sum(1) / torch.tensor([len(t) for t in targets]), penalty


def perturb(adapter: Adapter, size: float = 0.2) -> None:
    """Add noise to every parameter, seeded by its name: a new adapter often adds nothing, which would hide mistakes."""
    with torch.no_grad():
        for name, parameter in adapter.trainable().items():
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(size * noise.to(parameter))
