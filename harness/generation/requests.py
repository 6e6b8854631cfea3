"""What the generator is asked, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from harness.generation.likelihood import Likelihood
from harness.generation.predictions import PredictionKey


class Prompted(Protocol):
    """A prompt, with the number of tokens that may follow it. ``id`` is unique within a task."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def limit(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A prompt to continue. limit: the largest number of new tokens, eos included."""

    id: str
    task: str
    prompt: Sequence[int]
    limit: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A prompt with a continuation whose likelihood is wanted."""

    id: str
    task: str
    prompt: Sequence[int]
    continuation: Sequence[int]

    @property
    def limit(self) -> int:
        return len(self.continuation)


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """A prompt with the continuations among which the model chooses. limit: tokens of the longest of them."""

    id: str
    task: str
    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def limit(self) -> int:
        return max(map(len, self.continuations))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The likelihood of each continuation of a ``ChoiceRequest``, in order."""

    id: str
    task: str
    likelihoods: tuple[Likelihood, ...]

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.task, self.id)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A prediction: its tokens without eos. truncated: the limit was reached before an eos."""

    id: str
    task: str
    tokens: tuple[int, ...]
    truncated: bool

    @property
    def key(self) -> PredictionKey:
        return PredictionKey(self.task, self.id)


@dataclass(frozen=True, kw_only=True)
class GenerationStats:
    """The cost of a run of the generator.

    tokens: generated, eos included. seconds: wall time. switches: how often another task's fold was applied.
    halved: how often a batch was halved for lack of memory. unfolded: tasks that were routed.
    chosen: where the adapter chooses routes from prompts, how many prompts of each task it routed to which task.
    choices: continuations whose likelihood was computed. truncated_prompts: prompts that were too long, so that
        in-context examples or their middle were left out.
    """

    tokens: int = 0
    seconds: float = 0.0
    choices: int = 0
    switches: int = 0
    halved: int = 0
    unfolded: tuple[str, ...] = ()
    truncated_prompts: int = 0
    chosen: Mapping[str, Mapping[str, int]] | None = None


def together(parts: Sequence[GenerationStats]) -> GenerationStats:
    """The cost of the ranks that have shared an evaluation; what all of them know is that of the first one."""
    return replace(
        parts[0],
        tokens=sum(part.tokens for part in parts),
        seconds=max(part.seconds for part in parts),
        choices=sum(part.choices for part in parts),
        switches=sum(part.switches for part in parts),
        halved=sum(part.halved for part in parts),
    )
