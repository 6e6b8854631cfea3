"""The TOML file that defines a leaderboard: its models, and how it is read and checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from harness.config.clusters import absolute_clusters, label_of
from harness.config.keys import parse_value
from harness.config.options import OPTIONS
from harness.config.suites import absolute_suite, open_suite
from harness.config.toml_file import read_toml
from harness.errors import UsageError, unknown
from harness.store.record import Frozen
from harness.store.tuning import LR
from harness.sweep.search import Axis, Search

Settings = dict[str, JsonValue]
NO_BUDGET = "none"
_NAMED_BY_POSITION = ("method", "ablation", "preset")


class Tune(Frozen):
    """The learning rates that are tried for every trained row on dev; see ``harness.sweep.search`` for how they grow.

    fields: values of one or two other keys, tried together with the learning rates (``"method.gate_lr" = [1, 10]``).
        A row whose method has no such field is tuned without it.
    seeds: the seeds whose mean decides; default the file's first seed.
    max_points: the largest number of points that are tried for one row.
    """

    lr: tuple[float, ...] = Field(min_length=1)
    fields: dict[str, list[JsonValue]] = Field(default={}, max_length=2)
    by: Literal["dev"] = "dev"
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    max_points: int = Field(9, ge=1)

    @field_validator("lr")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if min(values) <= 0:
            raise ValueError("learning rates must be greater than 0")
        return tuple(sorted(set(values)))

    @field_validator("fields", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Settings:
        return flatten(value)

    @field_validator("fields")
    @classmethod
    def _are_fields(cls, fields: dict[str, list[JsonValue]]) -> dict[str, list[JsonValue]]:
        for key, values in fields.items():
            if key == LR or not key.startswith(("method.", "train.")):
                raise ValueError(f"{key} cannot be tuned: give keys of method or train other than {LR}")
            if not values or len({repr(v) for v in values}) < len(values):
                raise ValueError(f"{key} = {values}: give a list of different values")
        return fields

    @model_validator(mode="after")
    def _fits(self) -> Tune:
        n = len(self.lr) * math.prod(len(values) for values in self.fields.values())
        if n > self.max_points:
            raise ValueError(f"the grid has {n} points at the start, but max_points is {self.max_points}: raise it")
        return self

    def search(self, keys: Collection[str]) -> Search:
        """The search of a row that has these keys."""
        others = [Axis.of(key, values) for key, values in self.fields.items() if key in keys]
        return Search(axes=(Axis.of(LR, self.lr), *others), max_points=self.max_points)


class RowSpec(Frozen):
    """One row of a leaderboard: a method with its options. All fields but ``settings`` are options of ``harness run``.

    preset: the ranks, learning rate and training of the method's paper; the file's ``train.*`` settings do not apply.
    budget: default the file's, and none for a preset; "none" removes it.
    backend: the back end that generates, such as an API; the row is listed "for orientation" and is never ranked.
    prompt, shots: default the file's; rows with other values are in a table of their own.
    settings: keys such as ``method.rank``, flat (``"method.rank" = 8``) or as tables (``method.rank = 8``).
    """

    method: str
    ablation: str | None = None
    preset: str | None = None
    budget: str | None = None
    clusters: str | None = None
    backend: str | None = None
    prompt: Literal["plain", "chat"] | None = None
    shots: int | None = Field(None, ge=0)
    settings: Settings = {}

    @field_validator("settings", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Settings:
        return flatten(value)

    @property
    def label(self) -> str:
        """``cgc_lora+no_gate (paper) method.rank=8``."""
        words = [self.method + (f"+{self.ablation}" if self.ablation else "")]
        words += [f"({self.preset})"] if self.preset else []
        for name in OPTIONS:
            value = getattr(self, name, None)
            if value is not None and name not in _NAMED_BY_POSITION:
                words.append(f"{name}={label_of(value) if name == 'clusters' else value}")
        return " ".join([*words, *(f"{k}={v}" for k, v in sorted(self.settings.items()))])


class SweepSpec(RowSpec):
    """A method at each point of a grid, with a figure.

    grid: values by key; several keys give every combination. tune: whether the learning rate is tuned at each point;
    otherwise all points use the rate that was chosen for the method without the grid's keys.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    grid: dict[str, list[JsonValue]] = Field(min_length=1)
    tune: bool = True

    @field_validator("grid", mode="before")
    @classmethod
    def _flat_grid(cls, value: Any) -> Settings:
        return flatten(value)

    def points(self) -> Iterator[Settings]:
        """Every grid point as keys and values, in the order of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield {k: _plain(v) for k, v in zip(self.grid, values, strict=True)}


class NullSpec(RowSpec):
    """A row's method again under seeds that no other row has: the difference between the two is seed noise."""

    seeds: tuple[int, ...] = Field(min_length=1)


class Orientation(Frozen):
    """A value from a publication, listed in a table of its own and never ranked. value: in percent."""

    name: str
    value: float = Field(ge=0, le=100)
    note: str


class Claim(Frozen):
    """A published claim that one row is better than another; the leaderboard reports whether the runs support it."""

    above: str
    below: str
    by: str


class BoardSpec(Frozen):
    """A leaderboard's file. ``row``, ``sweep``, ``orientation`` and ``claim`` are arrays of tables (``[[row]]``).

    suite: a name, or the path of a suite's file, relative to the leaderboard's file; once read, absolute.
    model: default the suite's own default model. baselines: methods without training, each with the first seed.
    """

    suite: str
    model: str | None = None
    data: str | None = None
    tasks: str | None = None
    split: Literal["train", "dev", "test"] = "test"
    prompt: Literal["plain", "chat"] = "plain"
    shots: int = Field(0, ge=0)
    budget: str = "active:16"
    clusters: str | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    tune: Tune | None = None
    settings: Settings = {}
    row: tuple[RowSpec, ...] = ()
    baselines: tuple[str, ...] = ()
    reference: str | None = None  # The method that trains each task alone, against which transfer is measured.
    null: NullSpec | None = None
    sweep: tuple[SweepSpec, ...] = ()
    orientation: tuple[Orientation, ...] = ()
    claim: tuple[Claim, ...] = ()

    @property
    def suite_options(self) -> Settings:
        """The suite's own keys among the settings, without ``suite.``."""
        return {k.removeprefix("suite."): v for k, v in self.settings.items() if k.startswith("suite.")}

    @field_validator("settings", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Settings:
        return flatten(value)

    @field_validator("sweep")
    @classmethod
    def _names_differ(cls, sweeps: tuple[SweepSpec, ...]) -> tuple[SweepSpec, ...]:
        names = [s.name for s in sweeps]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sweeps have the name {name!r}: give each a name of its own")
        return sweeps


def read_board(path: Path) -> BoardSpec:
    """Read a leaderboard's file. Raises: UsageError naming file, key, value and remedy."""
    content = read_toml(path, hint="For examples, see leaderboards/*.toml")
    for key in content:
        if key not in BoardSpec.model_fields:
            raise unknown(f"key of {path.name}", key, BoardSpec.model_fields)
    try:
        board = BoardSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p + 1) if isinstance(p, int) else p for p in first["loc"])
        raise UsageError(f"{path}: {where} = {first.get('input')!r}: {first['msg']}") from error
    if not (board.row or board.baselines or board.sweep):
        raise UsageError(f"{path} compares nothing: add a [[row]] with a method")
    if board.null is not None and set(board.null.seeds) & set(board.seeds):
        raise UsageError(f"{path}: null.seeds and seeds have a seed in common: give the null row seeds of its own")
    board = board.model_copy(
        update={
            "suite": absolute_suite(board.suite, path.parent),
            "clusters": absolute_clusters(board.clusters, path.parent),
            "row": tuple(
                row.model_copy(update={"clusters": absolute_clusters(row.clusters, path.parent)}) for row in board.row
            ),
        }
    )
    if board.model is None:
        return board.model_copy(update={"model": open_suite(board.suite, board.suite_options).suite.default_model})
    return board


def flatten(value: Any, prefix: str = "") -> Settings:
    """Nested tables as ``{"train.lr": …}``; the word "none" means None."""
    if not isinstance(value, Mapping):
        raise ValueError("expected a table of keys such as train.steps = 100")
    flat: Settings = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{name}.")
        else:
            flat[name] = _plain(inner)
    return flat


def _plain(value: Any) -> Any:
    return parse_value(value) if isinstance(value, str) and value.lower() == "none" else value
