"""The score on dev while training, by which the best adapter is chosen. The test split is never read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.data.encoding import Encoder
from harness.data.splits import Choice, load_split
from harness.generation.generator import Generated, GenerationRequest, Generator
from harness.generation.predictions import PredictionKey
from harness.scoring.judge import judge
from harness.task import Example, Suite, Task


@dataclass(frozen=True, kw_only=True)
class DevEvaluator:
    """Scores the adapter on a few fixed dev examples of each task, generated greedily.

    examples: by task, for every task of the adapter; empty for a task without dev examples.
    """

    generator: Generator
    encoder: Encoder
    tasks: Mapping[str, Task]
    examples: Mapping[str, Sequence[Example]]

    def evaluate(self, tasks: Sequence[str]) -> float | None:
        """The mean over ``tasks`` of each one's headline by its default protocol; None if none has dev examples."""
        chosen = [t for t in tasks if self.examples[t]]
        requests = [
            GenerationRequest(id=e.id, task=t, prompt=prompt.tokens, limit=self.encoder.limit(t, prompt.tokens))
            for t in chosen
            for e, prompt in zip(self.examples[t], self.encoder.prompts(self.examples[t]), strict=True)
        ]
        tokens: dict[PredictionKey, tuple[int, ...]] = {}

        def keep(batch: Sequence[Generated]) -> None:
            tokens.update({g.key: g.tokens for g in batch})

        self.generator.run(requests, keep)
        values = [self._headline(t, [tokens[PredictionKey(t, e.id)] for e in self.examples[t]]) for t in chosen]
        return sum(values) / len(values) if values else None

    def _headline(self, task: str, tokens: Sequence[tuple[int, ...]]) -> float:
        predictions = self.encoder.texts(tokens)
        name, protocol = next(iter(self.tasks[task].protocols.items()))
        statistics = judge(self.tasks[task], name, self.examples[task], predictions).statistics
        return float(statistics.values(statistics.per_unit.sum(0))[protocol.headline])


def dev_examples(suite: Suite, source: str, tasks: Sequence[str], choice: Choice) -> dict[str, list[Example]]:
    """Dev examples of each task, the same for every seed and method.

    Raises: DataError if the source has no dev split, or none with targets.
    """
    hint = "train.eval_every needs one: leave train.eval_every out"
    rows = load_split(suite, source, "dev", tasks, choice, hint=hint)
    return {t: rows.of(t) for t in rows.by_task}
