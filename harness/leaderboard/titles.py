"""The titles of a leaderboard's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.config.spec import RunSpec
from harness.leaderboard.tables import Table, setting_in_words

_DIGITS = 8  # This many digits of a hash distinguish a few versions of one file.


def titles(tables: Sequence[Table]) -> list[str]:
    """Data, base model and setting of each table. Where two would be equal, the first part of
    the data that differs is added with the start of its hash, or else the start of the model's.
    """
    plain = [_plain(table.spec) for table in tables]
    times = Counter(plain)
    return [
        title if times[title] == 1 else ", ".join([title, *_difference(table.spec, _namesakes(title, plain, tables))])
        for title, table in zip(plain, tables, strict=True)
    ]


def _plain(spec: RunSpec) -> str:
    model = "no base model" if spec.model is None else spec.model.label
    return f"{spec.data.label}, {model}, {setting_in_words(spec)}"


def _namesakes(title: str, plain: Sequence[str], tables: Sequence[Table]) -> list[RunSpec]:
    return [table.spec for other, table in zip(plain, tables, strict=True) if other == title]


def _difference(spec: RunSpec, namesakes: Sequence[RunSpec]) -> Iterable[str]:
    for part, value in spec.data.fingerprints.items():
        if any(other.data.fingerprints.get(part) != value for other in namesakes):
            return [f"{part} {value[:_DIGITS]}"]
    models = {None if other.model is None else other.model.fingerprint for other in namesakes}
    return [f"model {spec.model.fingerprint[:_DIGITS]}"] if spec.model is not None and len(models) > 1 else []
