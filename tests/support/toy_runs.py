"""Finished runs on a toy suite, defined by the test examples that each of them predicts correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from harness.config.spec import DataSpec, MethodSpec, ModelSpec, RunSpec, SuiteSpec, directory_name, run_id
from harness.scoring.draws import read_draws, write_draws
from harness.scoring.score import score_predictions, write_scored
from harness.store.record import Parameters, Prediction, Provenance, RunRecord, TrainingSummary, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import Example, Protocol, Statistics, Suite, Task


def hits(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    rows = np.array([[float(g == a), 1.0] for g, a in zip(golds, answers, strict=True)])
    return Statistics(per_unit=rows, values=lambda s: {"accuracy": s[..., 0] / s[..., 1]})


@dataclass(frozen=True, kw_only=True)
class Toys(Suite):
    """Label tasks of any names whose every answer is "yes"."""

    name: ClassVar[str] = "toys"
    version: ClassVar[int] = 1
    names: tuple[str, ...] = ("sky",)

    @property
    def tasks(self) -> Mapping[str, Task]:
        rule = Protocol(parse=lambda text, example: text, statistics=hits, headline="accuracy")
        return {
            n: Task(name=n, version=1, kind="label", one_label=True, protocols={"official": rule}) for n in self.names
        }

    def read(self, source: str, split: str) -> Dataset:
        raise NotImplementedError


@dataclass(frozen=True)
class ToyRuns:
    """A factory: ``toy_run("cgc_lora", {"sky": [True, False, ...]}, seed=1)`` writes a finished, scored run.

    Other arguments: fields of the RunSpec, and what the record says (trained, n_train, percent, ...).
    """

    folder: Path

    def __call__(
        self,
        method: str,
        right: Mapping[str, Sequence[bool]],
        *,
        seed: int = 0,
        ablation: str | None = None,
        preset: str | None = None,
        model: str | None = "tiny",
        data: str = "toy data",
        sample: bool = False,
        trained: bool = True,
        finished: bool = True,
        n_train: Mapping[str, int] | None = None,
        percent: float | None = 0.5,
        prefix: str = "",
        fields: Mapping[str, Any] | None = None,
        **spec: Any,
    ) -> RunDirectory:
        chosen = RunSpec(
            method=MethodSpec(name=method, version=1, ablation=ablation, preset=preset, fields=dict(fields or {})),
            suite=SuiteSpec(name="toys", version=1, tasks=dict.fromkeys(right, 1)),
            model=None if model is None else ModelSpec(label=model, fingerprint=f"hash of {model}"),
            data=DataSpec(label=data, sample=sample, fingerprints={"test.json": f"hash of {data}"}),
            seed=seed,
            **spec,
        )
        run = RunDirectory(self.folder / directory_name(chosen))
        run.write("spec.json", chosen)
        if not finished:
            return run
        examples = {
            task: [
                Example(id=f"{task}{i}", task=task, prompt=f"{prefix}{task} {i}?", target="yes")
                for i in range(len(flags))
            ]
            for task, flags in right.items()
        }
        made = {
            task: [answer(e, ok) for e, ok in zip(rows, right[task], strict=True)] for task, rows in examples.items()
        }
        n_rows = dict(n_train) if n_train else dict.fromkeys(right, 9)
        write_scored(run, score_predictions(Toys(names=tuple(right)), examples, made, n_train=n_rows, min_examples=1))
        run.write("record.json", record_of(chosen, n_rows, trained=trained and model is not None, percent=percent))
        return run

    def seeds(self, method: str, right: Mapping[str, Sequence[bool]], n: int = 2, **options: Any) -> list[RunDirectory]:
        """The same predictions under several seeds, so that nothing varies between them."""
        return [self(method, right, seed=seed, **options) for seed in range(n)]


def without_deviations(run: RunDirectory) -> None:
    """The run as an earlier version scored it, with bootstrap draws only."""
    draws = read_draws(run)
    assert draws is not None
    old = {
        task: replace(found, headlines={k: replace(h, deviations=None) for k, h in found.headlines.items()})
        for task, found in draws.items()
    }
    write_draws(run, old)


def answer(example: Example, right: bool) -> Prediction:
    return Prediction(
        id=example.id,
        prompt_hash=text_hash(example.prompt),
        target_hash=text_hash(example.target),
        text=example.target if right else "no",
        tokens=1,
        cut=False,
    )


def record_of(spec: RunSpec, n_train: dict[str, int], *, trained: bool, percent: float | None) -> RunRecord:
    training = TrainingSummary(
        steps=10,
        examples=160,
        target_tokens=500,
        tokens=9000,
        seconds=600.0,
        tokens_per_second=15.0,
        peak_memory_bytes=None,
        final_loss=0.5,
        n_middle_cut=0,
    )
    nowhere = Provenance(
        commit=None, dirty=None, packages={}, python="3", hardware={}, command=[], data={}, settings={}
    )
    return RunRecord(
        run_id=run_id(spec),
        spec=spec,
        parameters=Parameters(stored=4096, active=1024, base=100_000, percent=percent),
        training=training if trained else None,
        generation=None,
        provenance=nowhere,
        n_train=n_train,
        sample=spec.data.sample,
        started_at=datetime(2025, 1, 1, tzinfo=UTC),
        finished_at=datetime(2025, 1, 1, tzinfo=UTC),
    )
