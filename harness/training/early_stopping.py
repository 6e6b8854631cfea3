"""The best adapter on the dev split while a stage is trained, and when to stop training it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

# The score on dev of the adapter as it is now, over the given tasks; None if they have no dev examples.
EvaluateOnDev = Callable[[Sequence[str]], float | None]


@dataclass(kw_only=True)
class EarlyStopping:
    """Evaluates on dev every N steps, keeps the best weights, and ends a stage that no longer improves.

    evaluate: None if nothing is evaluated on dev.
    every: steps between two evaluations (``train.eval_every``).
    patience: evaluations without improvement that end the stage (``train.patience``); None for no early end.
    scores: (step, score) of the evaluations of this stage, oldest first.
    best: the stage's parameters at the best score; of equal scores the first one counts. Empty before an evaluation.
    """

    evaluate: EvaluateOnDev | None
    every: int | None
    patience: int | None
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: Mapping[str, Tensor] = field(default_factory=dict)

    def begin_stage(self) -> None:
        """Start a new stage: discard the scores and weights of the previous one."""
        self.scores, self.best = [], {}

    def is_due(self, step: int, n_steps: int) -> bool:
        """Whether to evaluate after ``step`` steps of ``n_steps``: every N steps and after the last one."""
        return self.evaluate is not None and self.every is not None and (step % self.every == 0 or step == n_steps)

    def add(self, step: int, score: float, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Record a score, and the weights where it is the best so far."""
        if not self.scores or score > max(s for _, s in self.scores):
            self.best = weights()
        self.scores.append((step, score))

    def is_over(self) -> bool:
        """Whether the last ``patience`` evaluations have not improved on the best one before them."""
        scores = [score for _, score in self.scores]
        if self.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.patience
