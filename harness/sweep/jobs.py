"""The runs of a leaderboard's file as jobs: all of them, those that are done, and the chosen learning rates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.config.request import Request
from harness.config.spec import directory_name
from harness.errors import HarnessError
from harness.pipeline.resolve import Resolved, resolve
from harness.store.run_directory import TUNING_FOLDER, RunDirectory
from harness.sweep.entries import Entry, entries, request
from harness.sweep.spec import BoardSpec, RowSpec
from harness.sweep.tuning import Tuning, tuning_of


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
                if entry.tuned_as is not None:
                    self.tuning_jobs(entry.tuned_as)
            except HarnessError as error:
                self.impossible[entry.label] = str(error)
            else:
                possible.append(entry)
        return possible

    def example(self, entry: Entry) -> Request:
        """One of the entry's runs: the first seed, and the first learning rate of its grid."""
        return request(self.board, entry.config, entry.seeds[0], lr=self._lrs(entry)[0])

    def resolved(self, asked: Request) -> Resolved:
        """``resolve``, once for each request."""
        key = json.dumps([asked.options, asked.keys], sort_keys=True, default=str)
        if key not in self._resolved:
            self._resolved[key] = resolve(self._pinned(asked))
            self._source = self._resolved[key].source
        return self._resolved[key]

    def _pinned(self, asked: Request) -> Request:
        """The request on the data as they were when the sweep began: a data set of the hub may change meanwhile."""
        if self._source is None or not asked.options.get("data"):
            return asked
        return replace(asked, options={**asked.options, "data": self._source})

    def tuning_jobs(self, config: RowSpec) -> dict[float, Job]:
        """The runs of a learning-rate search, by learning rate."""
        assert self.board.tune is not None
        seed, split = self.board.seeds[0], self.board.tune.by
        by_lr = {}
        for lr in self.board.tune.lr:
            asked = request(self.board, config, seed, lr=lr, split=split)
            job = self._job(f"{config.label}, lr {lr:g} on {split}", asked, self.out / TUNING_FOLDER)
            by_lr[lr] = replace(job, tuning=True)
        return by_lr

    def tuning(self, config: RowSpec) -> Tuning | None:
        """The result of a learning-rate search; None while its runs are not done."""
        assert self.board.tune is not None
        runs = {lr: job.run for lr, job in self.tuning_jobs(config).items()}
        return tuning_of(config.label, runs, self.board.tune.by, self.board.seeds[0])

    def final_jobs(self, entry: Entry, lr: float | None) -> Iterator[Job]:
        """The entry's run for every seed, with the chosen learning rate (None: not tuned)."""
        for seed in entry.seeds:
            asked = request(self.board, entry.config, seed, lr=lr)
            yield self._job(f"{entry.label}, seed {seed}", asked, self.out)

    def all_jobs(self) -> list[Job]:
        """Every job once; until a learning rate is chosen, the first of its grid is used."""
        by_path: dict[Path, Job] = {}
        for job in self.tuning_stage():
            by_path.setdefault(job.run.path, job)
        for entry in self.entries:
            lr = self.chosen(entry)
            for job in self.final_jobs(entry, self._lrs(entry)[0] if lr is None else lr):
                by_path.setdefault(job.run.path, job)
        return list(by_path.values())

    def tuning_stage(self) -> Iterator[Job]:
        """Every job of every learning-rate search, in the file's order."""
        for config in self.tuned():
            yield from self.tuning_jobs(config).values()

    def tuned(self) -> list[RowSpec]:
        """Every configuration with a learning-rate search, once."""
        configs = {e.tuned_as.model_dump_json(): e.tuned_as for e in self.entries if e.tuned_as is not None}
        return list(configs.values())

    def chosen(self, entry: Entry) -> float | None:
        """The learning rate of an entry; None if it is not tuned, or not yet."""
        tuning = None if entry.tuned_as is None else self.tuning(entry.tuned_as)
        return None if tuning is None else tuning.chosen

    def _lrs(self, entry: Entry) -> list[float | None]:
        return [None] if entry.tuned_as is None or self.board.tune is None else list(self.board.tune.lr)

    def _job(self, label: str, asked: Request, out: Path) -> Job:
        name = directory_name(self.resolved(asked).spec)
        return Job(label=label, asked=self._pinned(asked), out=out, run=RunDirectory(out / name))
