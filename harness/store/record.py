"""The files that describe a run: predictions, scores, and the record, which is written last.

A missing value is None and is never stored as 0, -1 or nan.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, RootModel

from harness.config.spec import EvalConfig, RunSpec, SuiteSpec

# The schema of record.json and evaluation.json. When it is raised, harness.store.migrations needs a step.
SCHEMA_VERSION: Final = 1
Schema = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]


class Frozen(BaseModel):
    """A model that is read from disk: it is immutable, and unknown keys and nan are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def text_hash(text: str) -> str:
    """The first 64 bits of a text's sha256, in hexadecimal: ties a prediction to its prompt and target."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Prediction(Frozen):
    """One line of a run's predictions/<task>.jsonl.

    tokens: number of generated tokens without EOS. cut: the prediction reached the length limit. Both are None if the
    back end does not report them.
    prompt_hash and target_hash: ``text_hash`` of the example's prompt and target as the suite gives them.
    """

    id: str
    prompt_hash: str
    target_hash: str
    text: str
    tokens: int | None
    cut: bool | None


class TaskPrediction(Prediction):
    """One line of a published record's predictions.jsonl.gz, which holds the predictions of all tasks."""

    task: str


class PredictionHash(Frozen):
    """One line of a published record's prediction_hashes.jsonl.gz: a prediction whose text may not be published.

    prompt_hash and target_hash: as in ``Prediction``. text_hash: ``text_hash`` of the prediction's text.
    """

    task: str
    id: str
    prompt_hash: str
    target_hash: str
    text_hash: str


class TaskScore(Frozen):
    """One task under one protocol; value and metrics are between 0 and 1.

    n: number of scored examples. n_train: number of training examples. n_cut: predictions that reached the length
    limit. n_invented: predictions with a label that the task does not have. n_units: number of independent units that
    intervals and tests resample, if units have several examples; None if each example is one.
    """

    headline: str
    value: float | None
    ci95: tuple[float, float] | None
    metrics: dict[str, float]
    n: int
    n_train: int | None
    n_unparsed: int | None
    n_cut: int | None
    n_invented: int | None = None
    n_units: int | None = None


class ProtocolScores(Frozen):
    """The scores under one protocol. mean: over the tasks of ``mean_of``; None unless each of them has a score."""

    mean: float | None
    mean_ci95: tuple[float, float] | None = None
    mean_of: tuple[str, ...]
    tasks: dict[str, TaskScore]


class Scores(RootModel[dict[str, ProtocolScores]]):
    """Scores by protocol, the default protocol first."""


class Parameters(Frozen):
    """Parameter counts: stored (all tasks), active (one task's folded LoRA), base model, stored in percent of base.

    adapted_percent: the share of the model's linear weights that the adapter reaches; None in older records and
    without an adapter.
    """

    stored: int
    active: int
    base: int | None
    percent: float | None
    adapted_percent: float | None = None


class TrainingSummary(Frozen):
    """The cost of the training.

    tokens: prompt and target tokens. final_loss: mean of the last ten steps. n_middle_cut, n_target_cut: examples with
    a truncated prompt and with a truncated target. wait_seconds: the part of ``seconds`` in which the model waited for
    data. search_seconds: the part spent on losses without gradients, as in the search for weights of LoRAs.
    memory_estimate_bytes: the estimate of the dry run. packed: several examples in one sequence instead of padding.
    micro_tokens: tokens of a micro-batch, after any halving. attention: the attention kernel, by its name.
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
    n_target_cut: int = 0
    search_seconds: float = 0.0
    wait_seconds: float = 0.0
    memory_estimate_bytes: int | None = None
    packed: bool | None = None
    attention: str | None = None
    micro_tokens: int | None = None


class GenerationSummary(Frozen):
    """The cost of the evaluation.

    halved: batches halved after running out of memory (such a run is not published). unfolded: tasks evaluated routed,
    because their adapter cannot be folded. router_accuracy: the share of prompts that the adapter routed to their own
    task, without labels, averaged over the tasks; None if routes are those of the tasks. choices: continuations whose
    likelihood was computed, for tasks that are answered by choosing; ``tokens`` has none of theirs.
    peak_memory_bytes: as for the training; None if the system does not report it.
    """

    tokens: int | None
    seconds: float
    choices: int = 0
    halved: int = 0
    unfolded: tuple[str, ...] = ()
    router_accuracy: float | None = None
    peak_memory_bytes: int | None = None


class Provenance(Frozen):
    """The origin of a run. commit and dirty are None outside a git checkout of the project."""

    commit: str | None
    dirty: bool | None
    packages: dict[str, str]
    python: str
    hardware: dict[str, Any]
    command: list[str]
    data: dict[str, Any]
    settings: dict[str, Any]  # processes, micro-batch, compile, …: equal bits are promised only for equal settings


class RunRecord(Frozen):
    """record.json: written last, after success only, and never changed."""

    schema_version: Schema = SCHEMA_VERSION
    run_id: str
    spec: RunSpec
    parameters: Parameters
    training: TrainingSummary | None
    generation: GenerationSummary | None
    provenance: Provenance
    n_train: dict[str, int]  # training examples of each task
    sample: bool  # on the embedded sample, so it is not a result on the benchmark
    started_at: datetime
    finished_at: datetime


class Failure(Frozen):
    """failure.json: where and why a run failed. where: the stage and step, or the task."""

    stage: str
    where: str | None
    error: str
    message: str
    traceback: str
    failed_at: datetime


class EvaluationSettings(Frozen):
    """The settings of an evaluation without training; their hash names its folder.

    method: the inference fields that differ from the run's.
    """

    run_id: str
    eval: EvalConfig
    method: dict[str, Any]
    suite: SuiteSpec  # with the current versions of reader and tasks


class Evaluation(Frozen):
    """evaluation.json: the settings, cost and provenance of an evaluation without training."""

    schema_version: Schema = SCHEMA_VERSION
    settings: EvaluationSettings
    generation: GenerationSummary | None
    provenance: Provenance
    n_train: dict[str, int]
    sample: bool
    started_at: datetime
    finished_at: datetime
