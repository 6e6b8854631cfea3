"""The score of a perfect model: each target as the tokenizer gives it back, judged by the task's own protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.decode import texts_of
from harness.data.round_trip import RoundTrip, character_changes
from harness.scoring.judge import judge
from harness.task import Example, Task


def round_trips(
    tasks: Mapping[str, Task], examples: Mapping[str, Sequence[Example]], tokenizer: Any
) -> list[RoundTrip]:
    """Encode and decode the targets of each task and score what comes back. Examples without a target are left out."""
    found = []
    for name, of_task in examples.items():
        kept = [e for e in of_task if e.target.strip()]
        if kept:
            found.append(_round_trip(tasks[name], kept, tokenizer))
    return found


def _round_trip(task: Task, examples: Sequence[Example], tokenizer: Any) -> RoundTrip:
    targets = [e.target for e in examples]
    texts = texts_of(tokenizer, tokenizer(targets, add_special_tokens=False)["input_ids"])
    n_changed = sum(a != b for a, b in zip(targets, texts, strict=True))
    changes = character_changes(targets, texts)
    perfect = gold = 1.0
    if n_changed:  # scoring takes longer than all the rest
        perfect = _headline(task, examples, texts)
        gold = _headline(task, examples, targets)
    return RoundTrip(
        task=task.name,
        n=len(examples),
        n_changed=n_changed,
        lost=changes.lost,
        added=changes.added,
        protocol=next(iter(task.protocols)),
        perfect=perfect,
        gold=gold,
    )


def _headline(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> float:
    name, protocol = next(iter(task.protocols.items()))
    statistics = judge(task, name, examples, predictions).statistics
    return float(statistics.values(statistics.per_unit.sum(0))[protocol.headline])
