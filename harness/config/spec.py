"""The specification of a run: every choice that can change its result, in a canonical form whose hash is its name."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

# Marks keys that change the speed but not the result: they are not part of the run_id.
Runtime: dict[str, JsonValue] = {"runtime": True}

LOCAL: Final = "hf"  # This process generates the predictions itself, with transformers.


class Section(BaseModel):
    """A frozen group of keys; a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(Section):
    """``train.*`` keys: how every method is trained."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    steps: int | None = Field(None, ge=1, description="number of optimiser steps; overrides train.epochs")
    epochs: float = Field(5.0, gt=0, description="passes over the training examples, if train.steps is not given")
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    loss: Literal["token", "example", "task"] = Field(
        "token", description="average the loss over tokens, over examples, or over tasks"
    )
    per_task: int | None = Field(None, ge=1, description="maximum number of training examples per task (default: all)")
    mixture: Literal["proportional", "uniform", "temperature"] = Field(
        "proportional",
        description="sampling of tasks: proportional to their size, uniform, or in between (temperature)",
    )
    temperature: float | None = Field(
        None, ge=1, description="with mixture=temperature: tasks are sampled in proportion to size ** (1 / temperature)"
    )
    warmup: float = Field(
        0.03, ge=0, le=1, description="fraction of the steps with a linearly increasing learning rate"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    beta1: float = Field(0.9, ge=0, lt=1, description="beta1 of AdamW")
    beta2: float = Field(0.999, ge=0, lt=1, description="beta2 of AdamW")
    eps: float = Field(1e-8, gt=0, description="epsilon of AdamW")
    clip: float | None = Field(1.0, gt=0, description="maximum gradient norm (none: no clipping)")
    max_length: int = Field(
        1024,
        ge=16,
        description="maximum sequence length in tokens (prompt + target + EOS); longer prompts are truncated"
        " in the middle",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the model; auto: bf16 if the GPU supports it, else fp32"
    )
    eval_every: int | None = Field(
        None, ge=1, description="evaluate on the dev split every N steps and keep the best adapter"
    )
    patience: int | None = Field(
        None, ge=1, description="early stopping: number of evaluations without improvement (needs train.eval_every)"
    )
    eval_rows: int = Field(20, ge=1, description="with train.eval_every: dev examples per task")
    gradient_checkpointing: bool = Field(
        False,
        json_schema_extra=Runtime,
        description="recompute activations in the backward pass: less memory, more time",
    )
    compile: bool = Field(False, json_schema_extra=Runtime, description="use torch.compile")
    packing: Literal["auto", "off"] = Field(
        "auto",
        json_schema_extra=Runtime,
        description="pack several examples into one sequence where the model supports it (otherwise pad)",
    )
    micro_tokens: int | None = Field(
        None,
        ge=16,
        json_schema_extra=Runtime,
        description="maximum number of tokens per micro-batch (default: 4096 on a GPU, else 512)",
    )
    checkpoint_steps: int = Field(
        100, ge=1, json_schema_extra=Runtime, description="save a checkpoint at least every N steps"
    )
    checkpoint_minutes: float = Field(
        5.0, gt=0, json_schema_extra=Runtime, description="save a checkpoint at least every N minutes"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> TrainConfig:
        if (self.mixture == "temperature") != (self.temperature is not None):
            raise ValueError("set both train.mixture=temperature and train.temperature, or neither")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("train.patience counts evaluations on the dev split: set train.eval_every too")
        return self


class EvalConfig(Section):
    """``eval.*`` keys: what is evaluated and how predictions are generated (always by greedy decoding)."""

    split: Literal["train", "dev", "test"] = Field("test", description="split to evaluate: test, dev or train")
    per_task: int | None = Field(None, ge=1, description="maximum number of evaluated examples per task (default: all)")
    batch_tokens: int = Field(
        16384,
        ge=16,
        description="maximum tokens per generation batch: (prompt length + max new tokens) × number of sequences",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="maximum length of a prediction in tokens (default: from the training targets)"
    )


class MethodSpec(Section):
    """A method.

    Attributes:
        fields: the fields that differ from their defaults.
        resolved: every field with its value, for readers; not part of the run_id.
        files: for fields that name folders, hashes of the contents, which replace the paths in the run_id.
    """

    name: str
    version: int
    ablation: str | None = None
    preset: str | None = None
    fields: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    files: dict[str, tuple[str, ...]] = {}

    def deciding(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values, with hashes instead of paths."""
        content: dict[str, Any] = self.model_dump(mode="json", include={"fields", "files"})
        fields: dict[str, Any] = content["fields"]
        return fields | {name: prints for name, prints in content["files"].items() if name in fields}


class SuiteSpec(Section):
    """A suite with its options, the tasks that are used, and the version of each task."""

    name: str
    version: int
    tasks: dict[str, int]
    fields: dict[str, Any] = {}


class ModelSpec(Section):
    """A base model. label: its name in tables; fingerprint: the hub commit or a hash of the files."""

    label: str
    fingerprint: str


class DataSpec(Section):
    """The source of the examples. fingerprints: by file name or hub revision. sample: the embedded sample."""

    label: str
    sample: bool
    fingerprints: dict[str, str]


class ClusterSpec(Section):
    """The tasks of each cluster, by the cluster's name. label: its name in tables ("kind", or a file's name)."""

    label: str
    groups: dict[str, tuple[str, ...]]


class ParentSpec(Section):
    """The finished run that a run is initialised from. adapter: a hash of its weights."""

    run_id: str
    adapter: str


class RunSpec(Section):
    """Everything that determines the result of a run. ``model`` is None for baselines without a language model."""

    method: MethodSpec
    suite: SuiteSpec
    model: ModelSpec | None
    data: DataSpec
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    prompt: Literal["plain", "chat"] = "plain"
    shots: int = Field(0, ge=0)
    budget: str | None = None
    clusters: ClusterSpec | None = None
    backend: str = LOCAL
    seed: int = 0
    parent: ParentSpec | None = None


# Of keys whose default has changed, what it was when the key was made: records of that time keep their run_id.
_FIRST_DEFAULTS: Final = {("eval", "batch_tokens"): 8192}


def canonical(spec: RunSpec) -> bytes:
    """The spec as JSON with sorted keys, without defaults, runtime keys and labels: equal bytes, equal run."""
    content = spec.model_dump(mode="json", exclude_defaults=True)
    for (section, key), first in _FIRST_DEFAULTS.items():
        given = content.setdefault(section, {})
        value = getattr(getattr(spec, section), key)
        given.pop(key, None)
        if value != first:
            given[key] = value
        if not given:
            del content[section]
    for section, config in (("train", TrainConfig), ("eval", EvalConfig)):
        for key, info in config.model_fields.items():
            if info.json_schema_extra == Runtime:
                content.get(section, {}).pop(key, None)
    for section in ("model", "data", "clusters"):
        if content.get(section):
            content[section].pop("label", None)
    for name in ("resolved", "files"):
        content["method"].pop(name, None)
    if spec.method.files:
        content["method"]["fields"] = spec.method.deciding()
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def run_id(spec: RunSpec) -> str:
    """sha256 of the canonical spec, in hexadecimal."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def display_name(spec: RunSpec) -> str:
    """``cgc_lora`` or ``cgc_lora+no_gate``."""
    ablation = spec.method.ablation
    return f"{spec.method.name}+{ablation}" if ablation else spec.method.name


def directory_name(spec: RunSpec) -> str:
    """``<method>[+<ablation>]-<suite>-<run_id[:8]>``."""
    return f"{display_name(spec)}-{spec.suite.name}-{run_id(spec)[:8]}"
