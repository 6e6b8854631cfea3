"""The runs of a leaderboard's file as jobs: those of searches for learning rates, and those that are reported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.config.request import Request
from harness.config.spec import directory_name
from harness.errors import HarnessError
from harness.pipeline.resolve import Resolved, resolve
from harness.store.run_directory import TUNING_FOLDER, RunDirectory
from harness.store.tuning import LR, Tuning
from harness.sweep.entries import Entry, entries, request, toml, tunable
from harness.sweep.search import Point, Search
from harness.sweep.spec import BoardSpec, RowSpec, Settings, Tune
from harness.sweep.tuning import TuningData, results_of, tuning_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run. out: the folder of its directory. tuning: whether it is one point of a learning-rate search."""

    label: str
    asked: Request
    out: Path
    run: RunDirectory
    tuning: bool = False

    @property
    def log_file(self) -> Path:
        """The file with the output of the run's process."""
        return self.out / "logs" / f"{self.run.name}.log"


class Jobs:
    """Every job of a leaderboard's file. Their states are read from disk each time, so a killed sweep loses nothing.

    impossible: reasons why entries cannot be run (a budget that is too small, an unknown name), by label.
    """

    def __init__(self, board: BoardSpec, out: Path) -> None:
        self.board, self.out = board, out
        self.impossible: dict[str, str] = {}
        self._resolved: dict[str, Resolved] = {}
        self._source: str | None = None  # the board's data, pinned by the first request that was resolved

    @cached_property
    def entries(self) -> list[Entry]:
        """The entries that can be run; ``impossible`` has the others."""
        possible = []
        for entry in entries(self.board):
            try:
                self.resolved(self.example(entry))
            except HarnessError as error:
                self.impossible[entry.label] = str(error)
            else:
                possible.append(entry)
        return possible

    def example(self, entry: Entry) -> Request:
        """One of the entry's runs: the first seed, and the first point of its grid."""
        return request(self.board, entry.config, entry.seeds[0], chosen=self.first(entry))

    def resolved(self, asked: Request) -> Resolved:
        """``resolve``, once for each request."""
        key = json.dumps([asked.options, asked.keys], sort_keys=True, default=str)
        if key not in self._resolved:
            self._resolved[key] = resolve(self._pinned(asked), out=self.out)
            self._source = self._resolved[key].source
        return self._resolved[key]

    def _pinned(self, asked: Request) -> Request:
        """The request on the data as they were when the sweep began: a data set of the hub may change meanwhile."""
        if self._source is None or not asked.options.get("data"):
            return asked
        return replace(asked, options={**asked.options, "data": self._source})

    def tuning_jobs(self, config: RowSpec) -> dict[Point, tuple[Job, ...]]:
        """The runs of a search by point: all that are known so far. More follow while the grid grows."""
        search, known = self._search(config), dict[Point, tuple[Job, ...]]()
        following = search.start()
        while following:
            known |= {point: self._tuning_jobs(config, search, point) for point in following}
            results = results_of(_runs(known))
            following = [] if results is None else search.following(results)
        return known

    def tuning(self, config: RowSpec) -> Tuning | None:
        """The result of a search; None while its runs are not done."""
        runs = _runs(self.tuning_jobs(config))
        return tuning_of(
            config.label, self._search(config), runs, TuningData(split=self._tune.by, seeds=self.tuning_seeds)
        )

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds whose mean decides a search."""
        return self._tune.seeds or self.board.seeds[:1]

    def most_tuning_jobs(self, config: RowSpec) -> int:
        """The largest number of runs that the search of a configuration may take."""
        return self._search(config).max_points * len(self.tuning_seeds)

    def final_jobs(self, entry: Entry, chosen: Settings | None) -> Iterator[Job]:
        """The entry's run for every seed, with the keys that its search has chosen."""
        for seed in entry.seeds:
            asked = request(self.board, entry.config, seed, chosen=chosen, evaluation=self._reported)
            yield self._job(f"{entry.label}, seed {seed}", asked, self.out)

    def all_jobs(self) -> list[Job]:
        """Every job once that is known; until a search has ended, the first point of its grid stands for its result."""
        by_path: dict[Path, Job] = {}
        for job in self.tuning_stage():
            by_path.setdefault(job.run.path, job)
        for entry in self.entries:
            for job in self.final_jobs(entry, self.chosen(entry) or self.first(entry)):
                by_path.setdefault(job.run.path, job)
        return list(by_path.values())

    def tuning_stage(self) -> Iterator[Job]:
        """Every job of every search, in the file's order."""
        for config in self.tuned():
            for of_point in self.tuning_jobs(config).values():
                yield from of_point

    def tuned(self) -> list[RowSpec]:
        """Every configuration with a search, once."""
        configs = {e.tuned_as.model_dump_json(): e.tuned_as for e in self.entries if e.tuned_as is not None}
        return list(configs.values())

    def chosen(self, entry: Entry) -> Settings | None:
        """The keys that an entry's search has chosen; None if it is not tuned, or not yet."""
        tuning = None if entry.tuned_as is None else self.tuning(entry.tuned_as)
        return None if tuning is None or tuning.chosen is None else {LR: tuning.chosen, **tuning.chosen_others}

    @property
    def _tune(self) -> Tune:
        assert self.board.tune is not None
        return self.board.tune

    @cached_property
    def _reported(self) -> Settings:
        """``eval.*`` keys of the runs that are reported: only a part of dev where learning rates are chosen on dev too.

        This is so where the file asks for dev, and where the data have no targets for test.
        """
        if self.board.tune is None:
            return {}
        for entry in self.entries:
            split = self.resolved(self.example(entry)).spec.eval.split
            return {"eval.part": "report"} if split == self._tune.by else {}
        return {}

    def _search(self, config: RowSpec) -> Search:
        return self._tune.search(tunable(config))

    def first(self, entry: Entry) -> Settings:
        """The first point of the entry's grid; empty if it is not tuned."""
        if entry.tuned_as is None or self.board.tune is None:
            return {}
        search = self._search(entry.tuned_as)
        return _settings(search, search.start()[0])

    def _tuning_jobs(self, config: RowSpec, search: Search, point: Point) -> tuple[Job, ...]:
        """The run of each seed at one point of a search."""
        chosen = _settings(search, point)
        evaluation: Settings = {"eval.split": self._tune.by}
        if self._reported:
            evaluation["eval.part"] = "tune"
        at = ", ".join(f"{key.removeprefix('train.')} {toml(value)}" for key, value in chosen.items())
        jobs = []
        for seed in self.tuning_seeds:
            asked = request(self.board, config, seed, chosen=chosen, evaluation=evaluation)
            label = f"{config.label}, {at} on {self._tune.by}"
            label += f", seed {seed}" if len(self.tuning_seeds) > 1 else ""
            jobs.append(replace(self._job(label, asked, self.out / TUNING_FOLDER), tuning=True))
        return tuple(jobs)

    def _job(self, label: str, asked: Request, out: Path) -> Job:
        name = directory_name(self.resolved(asked).spec)
        return Job(label=label, asked=self._pinned(asked), out=out, run=RunDirectory(out / name))


def _settings(search: Search, point: Point) -> Settings:
    return {axis.key: value for axis, value in zip(search.axes, point, strict=True)}


def _runs(jobs: Mapping[Point, Sequence[Job]]) -> dict[Point, list[RunDirectory]]:
    return {point: [job.run for job in of_point] for point, of_point in jobs.items()}
