"""What a run records of each task, so that it can be read and scored again without lm-eval's index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Aggregation = Literal["mean", "f1", "mcc"]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data set's own names of the splits. dev: None if it is a share of train."""

    train: str
    dev: str | None
    test: str


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """One task.

    config, modules: see ``tasks.lm_eval_groups.config``. kind: the group or tag that names it, or its output type.
    delimiter: what a target or a choice begins with. metrics: how each of them is aggregated, the headline first.
    filters: by name, the first being the official protocol. n_labels: the number of choices, for mcc; else 0.
    several_targets: a document has a list of targets, each of which is right.
    """

    kind: str
    config: Mapping[str, Any]
    modules: Mapping[str, str]
    splits: Splits
    delimiter: str
    metrics: Mapping[str, Aggregation]
    filters: tuple[str, ...]
    n_labels: int
    several_targets: bool

    @property
    def chooses(self) -> bool:
        """Whether the task is answered by choosing rather than by generating."""
        return bool(self.config.get("output_type") == "multiple_choice")

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings at the first of which a generated text ends."""
        given = self.config.get("generation_kwargs", {}).get("until")
        if given is None:
            return (str(self.config.get("fewshot_delimiter", "\n\n")),)
        return tuple(stop for stop in ([given] if isinstance(given, str) else given) if stop)

    def to_json(self) -> dict[str, Any]:
        """The definition as JSON values. The metrics are a list of pairs, since their order counts."""
        return {**asdict(self), "metrics": [list(pair) for pair in self.metrics.items()], "filters": list(self.filters)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskDefinition:
        return cls(
            **{
                **content,
                "splits": Splits(**content["splits"]),
                "metrics": dict(content["metrics"]),
                "filters": tuple(content["filters"]),
            }
        )


def until(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def described(error: BaseException) -> str:
    """An error of lm-eval or of a task's code, in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
