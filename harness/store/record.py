"""What is kept of a run: predictions, scores, and the record that is written last.

Missing is None and is never written as 0, -1 or nan.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, RootModel

from harness.config.spec import EvalConfig, RunSpec, SuiteSpec

SCHEMA_VERSION: Final = 1  # of record.json and evaluation.json; when it is raised, harness.migrations needs a step
Schema = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]


class Frozen(BaseModel):
    """Read from disk: unknown keys are errors, values never change, no nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def text_hash(text: str) -> str:
    """The hash by which a prediction knows the prompt and the target that it was made for (64 bits, hexadecimal)."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Prediction(Frozen):
    """One line of predictions/<task>.jsonl. tokens: generated, without eos; cut: the length limit was reached.

    Both are None where a back end did not tell.
    prompt_hash and target_hash: ``text_hash`` of the example's prompt and target as the suite gives them.
    """

    id: str
    prompt_hash: str
    target_hash: str
    text: str
    tokens: int | None
    cut: bool | None


class TaskScore(Frozen):
    """One task under one protocol; value and metrics between 0 and 1. n: scored rows; n_train: training rows."""

    headline: str
    value: float | None
    ci95: tuple[float, float] | None
    metrics: dict[str, float]
    n: int
    n_train: int | None
    n_unparsed: int | None
    n_cut: int | None
    n_invented: int | None = None


class ProtocolScores(Frozen):
    """A protocol's table. mean: over ``mean_of``; None unless each of them has a score."""

    mean: float | None
    mean_ci95: tuple[float, float] | None = None
    mean_of: tuple[str, ...]
    tasks: dict[str, TaskScore]


class Scores(RootModel[dict[str, ProtocolScores]]):
    """By protocol, the default one first."""


class Parameters(Frozen):
    """Counts of numbers: stored (in all), active (one task's folded LoRA), base model, stored in percent of base."""

    stored: int
    active: int
    base: int | None
    percent: float | None


class TrainingSummary(Frozen):
    """What the training cost.

    tokens: prompt and target tokens seen. final_loss: the mean of the last ten steps. wait_seconds: of ``seconds``,
    those that the model waited for rows. memory_estimate_bytes: what the dry run says. packed: rows behind one another
    instead of padded. micro_tokens: tokens of a micro-batch, after any halving.
    """

    steps: int
    examples: int
    target_tokens: int
    tokens: int
    seconds: float
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    final_loss: float | None
    n_middle_cut: int
    wait_seconds: float = 0.0
    memory_estimate_bytes: int | None = None
    packed: bool | None = None
    micro_tokens: int | None = None


class GenerationSummary(Frozen):
    """What the evaluation cost; ``halved``: batches made smaller after out-of-memory (such a run is unpublishable)."""

    tokens: int | None
    seconds: float
    halved: int = 0
    unfolded: tuple[str, ...] = ()  # tasks evaluated routed because their share does not fold


class Provenance(Frozen):
    """Where a run came from. commit and dirty are None outside a git checkout of the project."""

    commit: str | None
    dirty: bool | None
    packages: dict[str, str]
    python: str
    hardware: dict[str, Any]
    command: list[str]
    data: dict[str, Any]
    settings: dict[str, Any]  # threads, processes, micro-batch, compile: what the promise of equal bits depends on


class RunRecord(Frozen):
    """record.json: immutable, on success only, written last."""

    schema_version: Schema = SCHEMA_VERSION
    run_id: str
    spec: RunSpec
    parameters: Parameters
    training: TrainingSummary | None
    generation: GenerationSummary | None
    provenance: Provenance
    n_train: dict[str, int]  # training rows of each task
    sample: bool  # made on the embedded sample: never shown as a result on the benchmark itself
    started_at: datetime
    finished_at: datetime


class Failure(Frozen):
    """failure.json: what a run that did not finish was doing. where: the stage and step, or the task."""

    stage: str
    where: str | None
    error: str
    message: str
    traceback: str
    failed_at: datetime


class EvaluationSettings(Frozen):
    """How a finished run is evaluated again; its hash names the folder. method: inference fields that differ."""

    run_id: str
    eval: EvalConfig
    method: dict[str, Any]
    suite: SuiteSpec  # with today's versions of reader and tasks


class Evaluation(Frozen):
    """evaluation.json: what an evaluation without training took, and where it was made."""

    schema_version: Schema = SCHEMA_VERSION
    settings: EvaluationSettings
    generation: GenerationSummary | None
    provenance: Provenance
    n_train: dict[str, int]
    sample: bool
    started_at: datetime
    finished_at: datetime
