"""The keys of a suite's file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(strict=False)]


class _Keys(BaseModel):
    """Frozen keys; a misspelt one is an error, and a value of another type is not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TaskKeys(_Keys):
    """``[task.<name>]``: the data of one task, how a line of them becomes an example, and how it is scored.

    train, dev, test: files relative to the suite's file, or splits of ``hub``. dev_share, test_share: the share of
    ``train`` that is the dev or test split, chosen by a hash of the prompt's columns. where: only lines with these
    values. about: prose, which does not affect any run.
    """

    kind: str | None = None
    about: str | None = None
    hub: str | None = None
    config: str | None = None
    train: Names = ()
    dev: Names = ()
    test: Names = ()
    dev_share: float = Field(0.0, strict=False)
    test_share: float = Field(0.0, strict=False)
    where: dict[str, str | int | float | bool] = {}
    prompt: str | None = None
    prompt_column: str | None = None
    target: str | None = None
    target_column: str | None = None
    choices: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    choices_column: str | None = None
    id_column: str | None = None
    metrics: Names = ()
    headline: str | None = None
    extract: str | None = None
    separator: str = ","
    tolerance: float = Field(0.0, strict=False)
    ignore_case: bool = False

    @property
    def shown(self) -> str:
        """The metric that leaderboards show: ``headline``, or else the first."""
        return self.headline or self.metrics[0]

    def given(self, split: str) -> tuple[str, ...]:
        """The files or hub splits that the split is read from, before it is divided."""
        own: tuple[str, ...] = getattr(self, split)
        return own or (self.train if self.share(split) else ())

    def share(self, split: str) -> float:
        """The share of ``train`` that is this split; 0 for a split with files of its own, and for train."""
        shares = {"dev": self.dev_share, "test": self.test_share}
        return 0.0 if getattr(self, split) else shares.get(split, 0.0)


class Definition(_Keys):
    """The content of a suite's file. name: as runs record it. about: prose, which does not affect any run."""

    name: str = ""
    about: str | None = None
    task: dict[str, TaskKeys] = {}

    def content(self) -> dict[str, Any]:
        """What identifies the suite, as JSON values: every key that differs from its default, without prose."""
        prose: Any = {"about": True, "task": {"__all__": {"about"}}}
        return self.model_dump(mode="json", exclude=prose, exclude_defaults=True)
