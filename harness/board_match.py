"""Which part of a leaderboard's file a finished run belongs to, from its spec alone, without data or model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.board_plan import Entry, Part, entries, request
from harness.board_spec import BoardSpec
from harness.clusters import KIND, clusters_of
from harness.errors import HarnessError
from harness.folders import fingerprints
from harness.method import Trait
from harness.registry import method_class
from harness.resolve import by_section, changed, choose_method, data_only, parse_budget, section_config, with_preset
from harness.spec import LOCAL, EvalConfig, RunSpec, TrainConfig, canonical


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
                "train": train if Trait.TRAINS in method.traits else data_only(train),
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
