"""The runs that a leaderboard's file asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.config.clusters import KIND, clusters_of
from harness.config.keys import by_section, changed, section_config
from harness.config.method_config import choose_method, data_only, fingerprints, parse_budget, with_preset
from harness.config.request import Request
from harness.config.spec import LOCAL, EvalConfig, RunSpec, TrainConfig, canonical
from harness.errors import HarnessError
from harness.registry import method_class
from harness.sweep.spec import NO_BUDGET, BoardSpec, RowSpec, Settings

LR = "train.lr"


class Part(StrEnum):
    """What a run is for."""

    ROW = "row"
    TRIVIAL = "trivial"
    NULL = "null"
    SWEEP = "sweep"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration with its seeds.

    sweep, point: the sweep's name and the grid's keys, for PART.SWEEP. tuned_as: the configuration whose grid of
    learning rates decides this one's; None where nothing is tuned.
    """

    part: Part
    config: RowSpec
    seeds: tuple[int, ...]
    tuned_as: RowSpec | None
    sweep: str | None = None
    point: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """The configuration's, and what it is for where that is not a plain row."""
        what = {Part.NULL: " [null]", Part.SWEEP: f" [{self.sweep}]"}.get(self.part, "")
        return self.config.label + what


def entries(board: BoardSpec) -> Iterator[Entry]:
    """Every configuration of the file: trivial rows, rows, the null row, the points of the sweeps."""
    for name in board.trivial:
        yield Entry(part=Part.TRIVIAL, config=RowSpec(method=name), seeds=board.seeds[:1], tuned_as=None)
    for row in board.row:
        seeds = board.seeds if row.backend is None else board.seeds[:1]  # an API is paid for once
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
    """The configuration whose learning rate is tuned; None where it is given, or where nothing is trained."""
    cls = method_class(config.method)
    given = {**cls.presets.get(config.preset or "", {}), **common(board, config), **config.settings}
    if board.tune is None or fixed or LR in given:
        return None
    return config if cls.trains else None


def common(board: BoardSpec, config: RowSpec) -> Settings:
    """The file's settings for a row; a preset keeps its paper's training, so it takes none of ``train.*``."""
    return {k: v for k, v in board.settings.items() if config.preset is None or not k.startswith("train.")}


def request(
    board: BoardSpec, config: RowSpec, seed: int, *, lr: float | None = None, split: str | None = None
) -> Request:
    """What ``harness run`` is asked for. Settings of the row win over the file's and over a preset's."""
    trains = method_class(config.method).trains
    clusters = config.clusters or board.clusters
    options = {
        "method": config.method,
        "ablation": config.ablation,
        "preset": config.preset,
        "suite": board.suite,
        "model": board.model if config.backend is None else None,
        "backend": config.backend,
        "data": board.data,
        "tasks": board.tasks,
        "prompt": config.prompt or board.prompt,
        "shots": board.shots if config.shots is None else config.shots,
        "budget": budget(board, config) if config.backend is None else None,
        "clusters": clusters if trains and clusters != "none" else None,
        "seed": seed,
    }
    keys: Settings = {**common(board, config), **config.settings, "eval.split": split or board.split}
    if lr is not None:
        keys[LR] = lr
    return Request(options={k: v for k, v in options.items() if v is not None}, keys=keys)


def budget(board: BoardSpec, config: RowSpec) -> str | None:
    """The budget of a row: its own, else the file's; none for a preset, or where the row says "none"."""
    chosen = config.budget or (NO_BUDGET if config.preset else board.budget)
    return None if chosen == NO_BUDGET else chosen


def arguments(asked: Request) -> list[str]:
    """The same request as arguments of ``harness run``."""
    found: list[str] = []
    for name, value in asked.options.items():
        found += [f"--{name}", str(value)]
    for key, value in asked.keys.items():
        found += ["--set", f"{key}={toml(value)}"]
    return found


def toml(value: object) -> str:
    """A value as ``--set`` reads it."""
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


def with_place(board: BoardSpec, data: str | None, model: str | None) -> BoardSpec:
    """The file with data and model from the command line."""
    given = {k: v for k, v in (("data", data), ("model", model)) if v is not None}
    return board.model_copy(update=given)


def _bare(row: RowSpec) -> RowSpec:
    return RowSpec(**{name: getattr(row, name) for name in RowSpec.model_fields})


class Matcher:
    """The entries of a leaderboard's file, to compare runs with."""

    def __init__(self, board: BoardSpec) -> None:
        self.board = board
        self.entries = list(entries(board))

    def entries_of(self, spec: RunSpec) -> list[Entry]:
        """Every entry that asks for this run, whatever learning rate was chosen for it."""
        return [e for e in self.entries if spec.seed in e.seeds and self._asks_for(e, spec)]

    def _asks_for(self, entry: Entry, spec: RunSpec) -> bool:
        config, method = entry.config, spec.method
        if (config.method, config.ablation, config.preset) != (method.name, method.ablation, method.preset):
            return False
        if spec.parent is not None:  # a file's runs begin by themselves
            return False
        if not _clustered(request(self.board, config, spec.seed).options.get("clusters"), spec):
            return False
        try:
            return canonical(self._expected(entry, spec)) == canonical(spec)
        except HarnessError:  # a method or a key of another version: nothing of today's file is that run
            return False

    def _expected(self, entry: Entry, spec: RunSpec) -> RunSpec:
        """The run's spec with every choice that the entry makes."""
        asked = request(self.board, entry.config, spec.seed, lr=None if entry.tuned_as is None else spec.train.lr)
        cls = method_class(entry.config.method)
        tables = by_section(with_preset(asked.keys, cls, entry.config.preset))
        sizes = [len(c.tasks) for c in clusters_of(spec)]
        budget = asked.options.get("budget")
        method = choose_method(cls, tables["method"], entry.config.ablation, budget, sizes)
        train = section_config(TrainConfig, "train", tables["train"])
        fields = changed(method, type(method)())
        split = {"split": spec.eval.split}  # dev stands in where the data withhold the targets of test
        return spec.model_copy(
            update={
                "method": spec.method.model_copy(update={"fields": fields, "files": fingerprints(method)}),
                "train": train if method.trains else data_only(train),
                "eval": section_config(EvalConfig, "eval", {**tables["eval"], **split}),
                "prompt": asked.options["prompt"],
                "shots": asked.options["shots"],
                "backend": asked.options.get("backend", LOCAL),
                "budget": None if budget is None else str(parse_budget(budget)),
            }
        )


def _clustered(choice: str | None, spec: RunSpec) -> bool:
    if spec.clusters is None:
        return choice is None
    return choice is not None and spec.clusters.label == (KIND if choice == KIND else Path(choice).stem)


def only_sweeps(found: Sequence[Entry]) -> bool:
    """True for a run that is a point of a sweep and no row."""
    return bool(found) and all(e.part is Part.SWEEP for e in found)
