"""The score on dev while training, by which the best adapter is chosen. The test split is never read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.data.splits import Choice, load_split
from harness.generation.answers import Answering
from harness.generation.predictions import Completion, PredictionKey
from harness.scoring.judge import judge
from harness.task import Example, Suite


@dataclass(frozen=True, kw_only=True)
class DevEvaluator:
    """Scores the adapter on a few fixed dev examples of each task, answered as in the evaluation of the run.

    examples: by task, for every task of the adapter; empty for a task without dev examples.
    """

    answering: Answering
    examples: Mapping[str, Sequence[Example]]

    def evaluate(self, tasks: Sequence[str]) -> float | None:
        """The mean over ``tasks`` of each one's headline by its default protocol; None if none has dev examples.

        Every rank calls this, answers its share, and gets the score of all.
        """
        examples = {t: self.examples[t] for t in tasks if self.examples[t]}
        own: dict[PredictionKey, str] = {}

        def keep(task: str, completions: Sequence[Completion]) -> None:
            own.update({PredictionKey(task, c.id): c.text for c in completions})

        self.answering.answer(examples, keep)
        texts = {key: text for part in self.answering.processes.gather(own) for key, text in part.items()}
        values = [
            self._headline(t, of_task, [texts[PredictionKey(t, e.id)] for e in of_task])
            for t, of_task in examples.items()
        ]
        return sum(values) / len(values) if values else None

    def _headline(self, name: str, examples: Sequence[Example], predictions: Sequence[str]) -> float:
        task = self.answering.tasks[name]
        protocol, rule = next(iter(task.protocols.items()))
        statistics = judge(task, protocol, examples, predictions).statistics
        return float(statistics.values(statistics.per_unit.sum(0))[rule.headline])


def dev_examples(
    suite: Suite, source: str, tasks: Sequence[str], choice: Choice, *, key: str
) -> dict[str, list[Example]]:
    """Dev examples of each task, the same for every seed and method. key: the setting that needs them.

    Raises: DataError if the source has no dev split, or none with targets.
    """
    hint = f"{key} needs one: leave {key.partition('=')[0]} out"
    rows = load_split(suite, source, "dev", tasks, choice, hint=hint)
    return {t: rows.of(t) for t in rows.by_task}
