"""What a run is: every choice that can change its result, in one canonical form whose hash is the run's name."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Runtime: dict[str, JsonValue] = {
    "runtime": True
}  # marks keys that change speed but no result: they stay out of the run_id


LOCAL: Final = "hf"  # the back end that is this process


class Section(BaseModel):
    """A frozen group of keys; a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(Section):
    """``train.*`` keys: how every method is trained."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    steps: int | None = Field(None, ge=1, description="optimiser steps; overrides epochs")
    epochs: float = Field(5.0, gt=0, description="passes over the training rows when steps is not given")
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    loss: Literal["token", "example", "task"] = Field("token", description="what the loss is a mean of")
    per_task: int | None = Field(None, ge=1, description="training rows of each task (default all)")
    mixture: Literal["proportional", "uniform", "temperature"] = Field(
        "proportional", description="how often a task's examples come: by its rows, all tasks the same, or between"
    )
    temperature: float | None = Field(
        None, ge=1, description="with mixture=temperature: shares in proportion to rows ** (1 / temperature)"
    )
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm (none: no clipping)")
    max_length: int = Field(1024, ge=16, description="tokens of prompt, target and eos; longer prompts lose the middle")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: bf16 where the GPU has it")
    eval_every: int | None = Field(None, ge=1, description="steps between looks at dev; the best adapter is kept")
    patience: int | None = Field(None, ge=1, description="with eval_every: looks without a gain that end a stage")
    eval_rows: int = Field(20, ge=1, description="with eval_every: dev rows of each task")
    gradient_checkpointing: bool = Field(
        False, json_schema_extra=Runtime, description="compute activations again in backward: less memory, more time"
    )
    compile: bool = Field(False, json_schema_extra=Runtime, description="torch.compile the model")
    packing: Literal["auto", "off"] = Field(
        "auto", json_schema_extra=Runtime, description="rows behind one another where the model allows it, not padded"
    )
    micro_tokens: int | None = Field(
        None,
        ge=16,
        json_schema_extra=Runtime,
        description="tokens of one micro-batch (default: 4096 on a GPU, else 512)",
    )
    checkpoint_steps: int = Field(100, ge=1, json_schema_extra=Runtime)
    checkpoint_minutes: float = Field(5.0, gt=0, json_schema_extra=Runtime)

    @model_validator(mode="after")
    def _belong_together(self) -> TrainConfig:
        if (self.mixture == "temperature") != (self.temperature is not None):
            raise ValueError("train.mixture=temperature and train.temperature are given together or not at all")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("train.patience counts looks at dev: give train.eval_every too")
        return self


class EvalConfig(Section):
    """``eval.*`` keys: what is evaluated and how texts are generated (always greedily)."""

    split: Literal["train", "dev", "test"] = "test"
    per_task: int | None = Field(None, ge=1, description="rows of each task (default all)")
    batch_tokens: int = Field(16384, ge=16, description="prompts and room for answers of rows that share a forward")
    max_new_tokens: int | None = Field(None, ge=1, description="default: from the lengths of the training targets")


class MethodSpec(Section):
    """A method. fields: what differs from its defaults; resolved: every field, for readers (not part of the run_id).

    files: of the fields that name folders the hashes of their content, which count in place of the paths.
    """

    name: str
    version: int
    ablation: str | None = None
    preset: str | None = None
    fields: dict[str, Any] = {}
    resolved: dict[str, Any] = {}
    files: dict[str, tuple[str, ...]] = {}

    def deciding(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON has them, with hashes in place of paths."""
        content: dict[str, Any] = self.model_dump(mode="json", include={"fields", "files"})
        fields: dict[str, Any] = content["fields"]
        return fields | {name: prints for name, prints in content["files"].items() if name in fields}


class SuiteSpec(Section):
    """A suite with its options, the tasks that are run and the version of each."""

    name: str
    version: int
    tasks: dict[str, int]
    fields: dict[str, Any] = {}


class ModelSpec(Section):
    """A base model. label: as shown in tables; fingerprint: hub commit or hash of the files."""

    label: str
    fingerprint: str


class DataSpec(Section):
    """Where the rows come from. fingerprints: by file name or hub revision. sample: the embedded one."""

    label: str
    sample: bool
    fingerprints: dict[str, str]


class ClusterSpec(Section):
    """Tasks that share an adapter, by the cluster's name. label: as shown in tables ("kind", or a file's name)."""

    label: str
    groups: dict[str, tuple[str, ...]]


class ParentSpec(Section):
    """The finished run that a run goes on from. adapter: the hash of its weights."""

    run_id: str
    adapter: str


class RunSpec(Section):
    """Everything that decides a run's result. ``model`` is None for methods that answer without one."""

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
