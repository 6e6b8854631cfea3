"""What targets lose when a tokenizer encodes and decodes them, and how that is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LISTED: Final = 8
"""Characters that a warning lists, the most frequent first."""
_EXACT: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """The sampled targets of one task, encoded as in training and decoded as predictions are.

    n, n_changed: targets, and those that are given back as another text. lost, added: how often each character is
    missing or new in these texts, the most frequent first. protocol: the task's first. perfect, gold: its headline,
    between 0 and 1, of a model that predicts every target, and of the targets themselves.
    """

    task: str
    n: int
    n_changed: int
    lost: dict[str, int]
    added: dict[str, int]
    protocol: str
    perfect: float
    gold: float

    @property
    def lowers(self) -> bool:
        """Whether a perfect model has a lower score than the targets themselves."""
        return self.perfect < self.gold - _EXACT


@dataclass(frozen=True, kw_only=True)
class CharacterChanges:
    """How often each character is missing (lost) or new (added) in changed texts, the most frequent first."""

    lost: dict[str, int]
    added: dict[str, int]


def character_changes(targets: Sequence[str], texts: Sequence[str]) -> CharacterChanges:
    """Compare the characters of targets with those of the texts that a tokenizer gave back."""
    lost: Counter[str] = Counter()
    added: Counter[str] = Counter()
    for target, text in zip(targets, texts, strict=True):
        if target != text:
            before, after = Counter(target), Counter(text)
            lost += before - after
            added += after - before
    return CharacterChanges(lost=dict(lost.most_common()), added=dict(added.most_common()))


def no_answer_survives(found: Sequence[RoundTrip]) -> bool:
    """Whether a perfect model would score 0 in every task, because of the tokenizer."""
    return bool(found) and all(r.lowers and r.perfect <= _EXACT for r in found)


def in_words(found: Sequence[RoundTrip]) -> list[str]:
    """One line for each group of tasks that lose the same kinds of characters; none where no score is lowered."""
    groups: dict[tuple[str, ...], list[RoundTrip]] = {}
    for one in found:
        if one.lowers:
            groups.setdefault((one.protocol, *_kinds(one)), []).append(one)
    return [_line(group) for group in groups.values()]


def _kinds(one: RoundTrip) -> tuple[str, ...]:
    """The kinds of the characters that are lost, or, where none is, of those that are added."""
    return tuple(sorted({_kind(character) for character in one.lost or one.added}))


def _kind(character: str) -> str:
    if character in "\r\n":
        return "line break"
    if character.isspace():
        return "space"
    return "letter or digit" if character.isascii() and character.isalnum() else "other"


def _line(group: Sequence[RoundTrip]) -> str:
    lost, added = Counter[str](), Counter[str]()
    for one in group:
        lost.update(one.lost)
        added.update(one.added)
    what = f"loses {_listed(lost)}" if lost else f"adds {_listed(added)}" if added else "reorders characters"
    scores = ", ".join(f"{r.task} {100 * r.perfect:.1f}" for r in group)
    changed, n = sum(r.n_changed for r in group), sum(r.n for r in group)
    return (
        f"the tokenizer {what} in {changed} of {n} targets, so that a perfect model would score {scores} percent under "
        f"the protocol {group[0].protocol}. Choose a model whose tokenizer has these characters, or leave the tasks out"
    )


def _listed(characters: Counter[str]) -> str:
    names = [repr(c) for c, _ in characters.most_common(_LISTED)]
    more = len(characters) - len(names)
    return ", ".join(names) + (f" and {more} more characters" if more else "")
