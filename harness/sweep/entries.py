"""The runs that a leaderboard's file lists, as entries and as requests to ``harness run``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.config.balance import train_config
from harness.config.clusters import clusters_of, label_of
from harness.config.keys import by_section, changed, section_config
from harness.config.method_config import choose_method, data_only, fingerprints, parse_budget, with_preset
from harness.config.options import OPTIONS
from harness.config.request import Request
from harness.config.spec import LOCAL, EvalConfig, RunSpec, TrainConfig, canonical
from harness.config.template import template_arguments
from harness.errors import HarnessError
from harness.registry import method_class
from harness.store.tuning import LR
from harness.sweep.spec import NO_BUDGET, BoardSpec, RowSpec, Settings


class Part(StrEnum):
    """The purpose of a run.

    BASELINE: a method without training. NULL: the same method under other seeds. SWEEP: a grid point.
    """

    ROW = "row"
    BASELINE = "baseline"
    NULL = "null"
    SWEEP = "sweep"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration with its seeds.

    sweep, point: the sweep's name and the keys of the grid point, for ``Part.SWEEP``. tuned_as: the configuration whose
    learning-rate search decides this one's rate; None if it is not tuned.
    """

    part: Part
    config: RowSpec
    seeds: tuple[int, ...]
    tuned_as: RowSpec | None
    sweep: str | None = None
    point: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The configuration's label, with the purpose if it is not a row."""
        what = {Part.NULL: " [null]", Part.SWEEP: f" [{self.sweep}]"}.get(self.part, "")
        return self.config.label + what


def entries(board: BoardSpec) -> Iterator[Entry]:
    """Every configuration of the file: baselines, rows, the null row, and the grid points of the sweeps."""
    for name in board.baselines:
        yield Entry(part=Part.BASELINE, config=RowSpec(method=name), seeds=board.seeds[:1], tuned_as=None)
    for row in board.row:
        seeds = board.seeds if row.backend is None else board.seeds[:1]  # calls of an API cost money
        yield Entry(part=Part.ROW, config=row, seeds=seeds, tuned_as=tuned(board, row))
    if board.null is not None:
        row = _bare(board.null)
        yield Entry(part=Part.NULL, config=row, seeds=board.null.seeds, tuned_as=tuned(board, row))
    for sweep in board.sweep:
        base = _bare(sweep)
        for point in sweep.points():
            config = base.model_copy(update={"settings": {**base.settings, **point}})
            yield Entry(
                part=Part.SWEEP,
                config=config,
                seeds=board.seeds,
                tuned_as=tuned(board, config if sweep.tune else base, fixed=LR in point),
                sweep=sweep.name,
                point=tuple((k, str(v)) for k, v in point.items()),
            )


def tuned(board: BoardSpec, config: RowSpec, *, fixed: bool = False) -> RowSpec | None:
    """The configuration whose learning rate is tuned; None if the rate is given, or if nothing is trained."""
    cls = method_class(config.method)
    given = {**cls.presets.get(config.preset or "", {}), **common(board, config), **config.settings}
    if board.tune is None or fixed or LR in given:
        return None
    return config if cls.trains else None


def common(board: BoardSpec, config: RowSpec) -> Settings:
    """The file's settings that apply to a row.

    Those of training do not apply to a preset, which has its paper's training. A field of methods, such as
    ``method.targets``, applies to each method that has it; if none of the file has it, it is kept for all, whose runs
    then name the mistake.
    """
    foreign = _keys_of_others(board, config.method)
    return {
        k: v
        for k, v in board.settings.items()
        if k not in foreign and (config.preset is None or not k.startswith(("train.", "balance.")))
    }


def _keys_of_others(board: BoardSpec, method: str) -> set[str]:
    """The file's ``method.*`` settings that are fields of other methods of the file, and not of this one."""
    asked = {k for k in board.settings if k.startswith("method.")}
    if not asked:
        return set()
    rows = [*board.row, *board.sweep, *([] if board.null is None else [board.null])]
    everyone = {key for name in {row.method for row in rows} for key in _field_keys(name)}
    return asked & everyone - _field_keys(method)


def _field_keys(method: str) -> set[str]:
    return {f"method.{field.name}" for field in dataclasses.fields(method_class(method))}


def tunable(config: RowSpec) -> set[str]:
    """The keys that a search may choose for a row: those of training, and its method's fields that are not given."""
    names = _field_keys(config.method)
    ablated = {f"method.{name}" for name in method_class(config.method).ablations.get(config.ablation or "", {})}
    return (names | {f"train.{name}" for name in TrainConfig.model_fields}) - set(config.settings) - ablated


def request(
    board: BoardSpec, config: RowSpec, seed: int, *, chosen: Settings | None = None, evaluation: Settings | None = None
) -> Request:
    """The request to ``harness run``. A row's settings take precedence over the file's and over a preset's.

    Args: chosen: the keys that a search has chosen. evaluation: ``eval.*`` keys that differ from the file's.
    """
    options = {name: _option(board, config, name) for name in OPTIONS} | {"seed": seed}
    keys: Settings = {**common(board, config), **config.settings, "eval.split": board.split}
    keys |= {**(chosen or {}), **(evaluation or {})}
    return Request(options={k: v for k, v in options.items() if v is not None}, keys=keys)


def _option(board: BoardSpec, config: RowSpec, name: str) -> Any:
    """The value of an option of ``harness run``: the row's own, else the file's; None if it is not given."""
    if name == "budget":
        return None if config.backend is not None else budget(board, config)
    if name == "model" and config.backend is not None:
        return None  # the back end names its model itself
    own = getattr(config, name, None)
    value = getattr(board, name, None) if own is None else own
    if name == "clusters" and (value == "none" or not method_class(config.method).trains):
        return None
    return value


def budget(board: BoardSpec, config: RowSpec) -> str | None:
    """The budget of a row: its own, else the file's; None for a preset, or if the row has ``budget = "none"``."""
    chosen = config.budget or (NO_BUDGET if config.preset else board.budget)
    return None if chosen == NO_BUDGET else chosen


def arguments(asked: Request) -> list[str]:
    """The same request as arguments of ``harness run``."""
    words: list[str] = []
    for name, value in asked.options.items():
        words += [f"--{name}", str(value)]
    for key, value in asked.keys.items():
        words += ["--set", f"{key}={toml(value)}"]
    return words


def toml(value: object) -> str:
    """A value as ``--set`` reads it."""
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


def with_location(board: BoardSpec, data: str | None, model: str | None) -> BoardSpec:
    """The file with the data and model of the command line, where they are given."""
    given = {k: v for k, v in (("data", data), ("model", model)) if v is not None}
    return board.model_copy(update=given)


def _bare(row: RowSpec) -> RowSpec:
    return RowSpec(**{name: getattr(row, name) for name in RowSpec.model_fields})


class Matcher:
    """Finds the entries of a leaderboard's file that a run belongs to."""

    def __init__(self, board: BoardSpec) -> None:
        self.board = board
        self.entries = list(entries(board))

    def entries_of(self, spec: RunSpec) -> list[Entry]:
        """Every entry that this run belongs to, whatever learning rate was chosen for it."""
        return [e for e in self.entries if spec.seed in e.seeds and self._contains(e, spec)]

    def _contains(self, entry: Entry, spec: RunSpec) -> bool:
        config, method = entry.config, spec.method
        if (config.method, config.ablation, config.preset) != (method.name, method.ablation, method.preset):
            return False
        if spec.parent is not None:  # the runs of a file are not initialised from other runs
            return False
        if not _clustered(request(self.board, config, spec.seed).options.get("clusters"), spec):
            return False
        try:
            return canonical(self._expected(entry, spec)) == canonical(spec)
        except HarnessError:  # the run has a method or a key of another version, so it is not one of this file
            return False

    def _expected(self, entry: Entry, spec: RunSpec) -> RunSpec:
        """The run's spec with every choice of the entry in place of the run's."""
        asked = request(self.board, entry.config, spec.seed, chosen=self._chosen(entry, spec))
        cls = method_class(entry.config.method)
        tables = by_section(with_preset(asked.keys, cls, entry.config.preset))
        sizes = [len(c.tasks) for c in clusters_of(spec)]
        budget = asked.options.get("budget")
        method = choose_method(cls, tables["method"], entry.config.ablation, budget, sizes)
        train = train_config(tables["train"], tables["balance"])
        fields = changed(method, type(method)())
        # A run evaluates on dev if the data have no targets for test, and then on the part that is not for tuning.
        both = self.board.tune is not None and spec.eval.split == self.board.tune.by
        split = {"split": spec.eval.split, "part": "report" if both else None}
        return spec.model_copy(
            update={
                "method": spec.method.model_copy(update={"fields": fields, "files": fingerprints(method)}),
                "train": train if method.trains else data_only(train),
                "eval": section_config(EvalConfig, "eval", {**tables["eval"], **split}),
                "prompt": asked.options["prompt"],
                "template": template_arguments(tables["prompt"], asked.options["prompt"]),
                "shots": asked.options["shots"],
                "backend": asked.options.get("backend", LOCAL),
                "budget": None if budget is None else str(parse_budget(budget)),
            }
        )

    def _chosen(self, entry: Entry, spec: RunSpec) -> Settings:
        """The values of the run for the keys that the entry's search chooses."""
        if entry.tuned_as is None or self.board.tune is None:
            return {}
        of = {"train": spec.train.model_dump(mode="json"), "method": spec.method.resolved}
        keys = [axis.key for axis in self.board.tune.search(tunable(entry.tuned_as)).axes]
        parts = {key: key.split(".", 1) for key in keys}
        return {key: of[section][name] for key, (section, name) in parts.items() if name in of[section]}


def _clustered(choice: str | None, spec: RunSpec) -> bool:
    if spec.clusters is None:
        return choice is None
    return choice is not None and spec.clusters.label == label_of(choice)
