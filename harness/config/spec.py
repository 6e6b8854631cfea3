"""The spec of a run: every choice that can change its result, and the identity whose hash is in the run's name.

The identity of a run (``RunSpec.identity``) follows one rule: every field that differs from its default belongs to it,
unless the field's annotation says otherwise (``NotInIdentity``, ``IdentityDefault``, ``KeptWhenEmpty``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic.fields import FieldInfo

LOCAL: Final = "hf"  # the back end that is this process
Quantisation = Literal["nf4", "int8"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "nf4", "int8"]
M = TypeVar("M")


@dataclass(frozen=True)
class NotInIdentity:
    """Annotates a field that is recorded and does not identify a run.

    leaves_default: a section that differs from its default in such fields only is identified as the default is. Fields
    of the first versions do not have this: their sections have always been hashed as ``KeptWhenEmpty`` says.
    """

    why: str
    leaves_default: bool = False


@dataclass(frozen=True)
class IdentityDefault:
    """Annotates a field whose default has changed: the identity omits ``value``, the default that the key began with.

    Records from before the change omit the key for that value, and so they keep their run_id.
    """

    value: Any


@dataclass(frozen=True)
class KeptWhenEmpty:
    """Annotates a section that differs from its default and yet may have nothing in the identity.

    Other sections are omitted then. This one has always been hashed as ``{}``, which run_ids depend on.
    """


Runtime: Final = NotInIdentity("changes speed or memory, and no result")
Placement: Final = NotInIdentity("says where weights are, and changes no result", leaves_default=True)
Label: Final = NotInIdentity("is shown to readers")


class Section(BaseModel):
    """A frozen group of keys; a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that identify a run, as JSON values: those that differ from their defaults and are not exempt."""
        content = self.model_dump(mode="json")
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if _annotation(field, NotInIdentity):
                continue
            changed = not _is_default(field, value)
            if not isinstance(value, Section):
                found |= {name: content[name]} if changed else {}
            elif (part := value.identity()) or (value._differs() and _annotation(field, KeptWhenEmpty) is not None):
                found[name] = part
        return found

    def _differs(self) -> bool:
        """Whether a field differs from its default, apart from those that leave the section as its default."""
        changed = [f for name, f in type(self).model_fields.items() if not _is_default(f, getattr(self, name))]
        marks = [_annotation(field, NotInIdentity) for field in changed]
        return any(mark is None or not mark.leaves_default for mark in marks)


def _annotation(field: FieldInfo, kind: type[M]) -> M | None:
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def _is_default(field: FieldInfo, value: Any) -> bool:
    first = _annotation(field, IdentityDefault)
    if first is not None:
        return bool(value == first.value)
    return not field.is_required() and bool(value == field.get_default(call_default_factory=True, validated_data={}))


class BalanceSpec(Section):
    """A balancer of tasks (``train.balance``). fields: its settings that differ from their defaults."""

    name: str
    version: int
    fields: dict[str, Any] = {}


class TrainConfig(Section):
    """``train.*`` keys: how every method is trained."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    steps: int | None = Field(None, ge=1, description="number of optimiser steps; overrides train.epochs")
    epochs: float = Field(5.0, gt=0, description="passes over the training examples, if train.steps is not given")
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    loss: Literal["token", "example", "task"] = Field(
        "token", description="average the loss over tokens, over examples, or over tasks"
    )
    balance: BalanceSpec | None = Field(
        None,
        description="how much each task of a step counts: a balancer (`harness list` shows all), with balance.* as its"
        " settings (none: what train.loss and the mixture give)",
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
    precision: Precision = Field(
        "auto",
        description="precision of the model; auto: bf16 if the GPU supports it, else fp32; nf4, int8: frozen weights of"
        " 4 or 8 bits, computing as auto does",
    )
    eval_every: int | None = Field(
        None, ge=1, description="evaluate on the dev split every N steps and keep the best adapter"
    )
    patience: int | None = Field(
        None, ge=1, description="early stopping: number of evaluations without improvement (needs train.eval_every)"
    )
    eval_rows: int = Field(
        20, ge=1, description="dev examples per task, with train.eval_every or a train.balance that reads dev"
    )
    gradient_checkpointing: Annotated[bool, Runtime] = Field(
        False,
        description="recompute activations in the backward pass: less memory, more time",
    )
    compile: Annotated[bool, Runtime] = Field(False, description="run each block as a graph of torch.compile")
    deterministic: Annotated[bool, Runtime] = Field(
        False,
        description="train with kernels that give the same bits every time on the same GPU, which are slower; an"
        " operation without one is an error",
    )
    packing: Annotated[Literal["auto", "off"], Runtime] = Field(
        "auto",
        description="pack several examples into one sequence where the model supports it (otherwise pad)",
    )
    cache_frozen: Annotated[bool, Runtime] = Field(
        False,
        description="compute the hidden states below the first adapted block once and keep them on disk, in --out, for"
        " all runs; see method.targets",
    )
    shard_base: Annotated[bool, Placement] = Field(
        False,
        description="divide the frozen base model over the GPUs of torchrun (FSDP2), for one that does not fit a single"
        " GPU; the adapter is whole on each",
    )
    micro_tokens: Annotated[int | None, Runtime] = Field(
        None,
        ge=16,
        description="maximum number of tokens per micro-batch (default: 4096 on a GPU, else 512)",
    )
    affinity: Annotated[Literal["gradients", "lookahead"] | None, Runtime] = Field(
        None,
        description="measure how much training on one task helps another (true or gradients: to first order; lookahead:"
        " also with a forward pass for each task); see harness affinity",
    )
    affinity_every: Annotated[int, Runtime] = Field(10, ge=1, description="with train.affinity: measure every N steps")
    checkpoint_steps: Annotated[int, Runtime] = Field(100, ge=1, description="save a checkpoint at least every N steps")
    checkpoint_minutes: Annotated[float, Runtime] = Field(
        5.0, gt=0, description="save a checkpoint at least every N minutes"
    )

    @field_validator("affinity", mode="before")
    @classmethod
    def _affinity_is_on_or_off(cls, value: Any) -> Any:
        return {True: "gradients", False: None}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _belong_together(self) -> TrainConfig:
        if (self.mixture == "temperature") != (self.temperature is not None):
            raise ValueError("set both train.mixture=temperature and train.temperature, or neither")
        if self.patience is not None and self.eval_every is None:
            raise ValueError("train.patience counts evaluations on the dev split: set train.eval_every too")
        if self.cache_frozen and self.compile:
            raise ValueError("set train.cache_frozen=true or train.compile=true, not both")
        if self.compile and self.precision in get_args(Quantisation):
            raise ValueError(f"train.compile=true does not support train.precision={self.precision}: leave one out")
        if self.shard_base:
            self._check_sharded()
        return self

    def _check_sharded(self) -> None:
        refused = {
            "train.compile=true": self.compile,
            "train.cache_frozen=true": self.cache_frozen,
            f"train.precision={self.precision}": self.precision in get_args(Quantisation),
            f"train.affinity={self.affinity}": self.affinity is not None,
        }
        for key, given in refused.items():
            if given:
                raise ValueError(f"train.shard_base=true does not support {key}: leave one of the two out")


class EvalConfig(Section):
    """``eval.*`` keys: what is evaluated and how predictions are generated (always by greedy decoding)."""

    split: Literal["train", "dev", "test"] = Field("test", description="split to evaluate: test, dev or train")
    part: Literal["tune", "report"] | None = Field(
        None,
        description="only this part of the split's examples, which are divided by a hash of their content: a sweep"
        " chooses learning rates on one part of dev and reports the other where both would be on dev",
    )
    per_task: int | None = Field(None, ge=1, description="maximum number of evaluated examples per task (default: all)")
    batch_tokens: Annotated[int, IdentityDefault(8192)] = Field(
        16384,
        ge=16,
        description="maximum tokens per generation batch: (prompt length + max new tokens) × number of sequences",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="maximum length of a prediction in tokens (default: from the training targets)"
    )


class MethodSpec(Section):
    """A method. fields: what differs from its defaults; resolved: every field.

    files: for each field that names folders, the hashes of their content; the identity has them in place of the paths.
    """

    name: str
    version: int
    ablation: str | None = None
    preset: str | None = None
    fields: dict[str, Any] = {}
    resolved: Annotated[dict[str, Any], Label] = {}
    files: Annotated[dict[str, tuple[str, ...]], NotInIdentity("takes the place of paths in fields")] = {}

    def identity(self) -> dict[str, Any]:
        """See ``Section.identity``; fields that name folders are identified by what the folders hold."""
        return super().identity() | ({"fields": self.deciding()} if self.files else {})

    def deciding(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON has them, with hashes in place of paths."""
        content: dict[str, Any] = self.model_dump(mode="json", include={"fields", "files"})
        fields: dict[str, Any] = content["fields"]
        return fields | {name: prints for name, prints in content["files"].items() if name in fields}


class SuiteSpec(Section):
    """A suite with its options, the tasks that are run and the version of each.

    reader: for a suite from a file or with an argument, the registered suite that has read it; ``fields`` then has its
        whole definition.
    """

    name: str
    version: int
    tasks: dict[str, int]
    fields: dict[str, Any] = {}
    reader: str | None = None


class ModelSpec(Section):
    """A base model. label: as shown in tables; fingerprint: hub commit or hash of the files."""

    label: Annotated[str, Label]
    fingerprint: str


class DataSpec(Section):
    """The source of the examples. fingerprints: see ``Suite.fingerprint``. sample: the suite embeds them."""

    label: Annotated[str, Label]
    sample: bool
    fingerprints: dict[str, str]


class ClusterSpec(Section):
    """Tasks that share an adapter, by the cluster's name. label: as shown in tables ("kind", or a file's name)."""

    label: Annotated[str, Label]
    groups: dict[str, tuple[str, ...]]


class ParentSpec(Section):
    """The finished run that a run starts from. adapter: the hash of its weights."""

    run_id: str
    adapter: str


class RunSpec(Section):
    """Everything that determines a run's result. ``model`` is None for methods that predict without one.

    template: arguments of the chat template (``prompt.template.*`` keys), by name.
    """

    method: MethodSpec
    suite: SuiteSpec
    model: ModelSpec | None
    data: DataSpec
    train: Annotated[TrainConfig, KeptWhenEmpty()] = TrainConfig()
    eval: EvalConfig = EvalConfig()
    prompt: Literal["plain", "chat"] = "plain"
    template: dict[str, JsonValue] = {}
    shots: int = Field(0, ge=0)
    budget: str | None = None
    clusters: ClusterSpec | None = None
    backend: str = LOCAL
    seed: int = 0
    parent: ParentSpec | None = None


def canonical(spec: RunSpec) -> bytes:
    """The identity of a run as JSON with sorted keys: equal bytes mean the same run."""
    return json.dumps(spec.identity(), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def run_id(spec: RunSpec) -> str:
    """sha256 of the run's identity, in hexadecimal."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def display_name(spec: RunSpec) -> str:
    """``cgc_lora`` or ``cgc_lora+no_gate``."""
    ablation = spec.method.ablation
    return f"{spec.method.name}+{ablation}" if ablation else spec.method.name


def directory_name(spec: RunSpec) -> str:
    """``<method>[+<ablation>]-<suite>-<run_id[:8]>``."""
    return f"{display_name(spec)}-{spec.suite.name}-{run_id(spec)[:8]}"
