"""A run's method: fields, preset, ablation, budget; fields that name folders are identified by what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.keys import build_from_keys, changed
from harness.config.spec import RunSpec, TrainConfig
from harness.errors import StoreError, UsageError, unknown
from harness.hashing import file_sha256
from harness.method import AdapterMethod, Budget, Method, named_folder
from harness.registry import method_class


def absolute(method: Method) -> Method:
    """The same method with absolute paths."""
    changes = {name: tuple(map(_absolute, getattr(method, name))) for name in type(method).folders}
    return dataclasses.replace(method, **changes) if changes else method


def absolute_keys(cls: type[Method], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, as typed, with absolute paths in ``method.<field>``."""
    found = dict(keys)
    for name in cls.folders:
        if value := found.get(f"method.{name}"):
            found[f"method.{name}"] = [_absolute(e) for e in (value.split(",") if isinstance(value, str) else value)]
    return found


def fingerprints(method: Method) -> dict[str, tuple[str, ...]]:
    """One hash of its files for each folder, by field; prefixed with ``name=`` where the folder has a name.

    Raises: UsageError for a folder that lacks a file.
    """
    folders = {name: (getattr(method, name), files) for name, files in type(method).folders.items()}
    return {
        name: tuple(_folder_fingerprint(name, entry, files) for entry in entries)
        for name, (entries, files) in folders.items()
        if entries
    }


def _folder_fingerprint(field: str, entry: str, files: Sequence[str]) -> str:
    named = named_folder(entry)
    folder = named.path
    content = hashlib.sha256()
    for file in files:
        if not (folder / file).is_file():
            what = "is not a folder" if not folder.is_dir() else f"has no {file}"
            raise UsageError(f"method.{field}: {folder} {what}. Give folders with {' and '.join(files)}")
        content.update(f"{file} {file_sha256(folder / file)}\n".encode())
    return (f"{named.name}=" if named.name else "") + content.hexdigest()


def _absolute(entry: str) -> str:
    named = named_folder(entry)
    path = named.path.expanduser().resolve()
    return f"{named.name}={path}" if named.name else str(path)


def method_of(spec: RunSpec) -> Method:
    """The method of a finished run with its fields. Raises: StoreError if another version is installed."""
    cls = method_class(spec.method.name)
    if cls.version != spec.method.version:
        raise StoreError(
            f"the run used version {spec.method.version} of {spec.method.name}, but version {cls.version} is "
            "installed: repeat the run with `harness run`"
        )
    missing = sorted(spec.method.resolved.keys() - {field.name for field in dataclasses.fields(cls)})
    if missing:
        raise StoreError(
            f"the run set {', '.join(missing)}, which the installed {spec.method.name} does not have: repeat the run"
        )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.method.resolved.items()})


def parse_budget(text: str) -> Budget:
    """``active:16`` or ``stored:64``."""
    kind, _, rank = text.partition(":")
    if kind not in ("active", "stored") or not rank.isdigit() or int(rank) < 1:
        raise UsageError(f"budget {text!r}: expected active:R or stored:R with a whole number R, such as active:16")
    return Budget(kind=kind, rank=int(rank))


def with_preset(keys: Mapping[str, Any], cls: type[Method], preset: str | None) -> dict[str, Any]:
    """The preset's keys, overridden by those that were given. Raises: UsageError for an unknown preset."""
    if preset is None:
        return dict(keys)
    if preset not in cls.presets:
        raise unknown("preset", preset, cls.presets, see="harness list METHOD")
    return {**cls.presets[preset], **keys}


def choose_method(
    cls: type[Method], values: Mapping[str, Any], ablation: str | None, budget: str | None, sizes: Sequence[int]
) -> Method:
    """The method with its fields, ablation and budget. sizes: the number of tasks of each cluster."""
    changes: Mapping[str, Any] = {}
    if ablation is not None:
        if ablation not in cls.ablations:
            raise unknown("ablation", ablation, cls.ablations, see="harness list METHOD")
        changes = cls.ablations[ablation]
        both = sorted(set(changes) & set(values))
        if both:
            raise UsageError(f"--ablation {ablation} sets method.{both[0]}: do not set it with --set as well")
    parent = build_from_keys(cls, values, "method")
    if not budget or not isinstance(parent, AdapterMethod):
        return build_from_keys(cls, {**values, **changes}, "method")
    # An ablation keeps the ranks that its method has within the budget, so that it differs in nothing else.
    ranks = changed(within(parent, parse_budget(budget), sizes), parent)
    return build_from_keys(cls, {**values, **ranks, **changes}, "method")


def data_only(train: TrainConfig) -> TrainConfig:
    """The keys that also affect methods without training: of examples, lengths, and how the model is loaded."""
    return TrainConfig(
        per_task=train.per_task, max_length=train.max_length, precision=train.precision, shard_base=train.shard_base
    )


def within(method: AdapterMethod, budget: Budget, sizes: Sequence[int]) -> AdapterMethod:
    """The method within a budget, for clusters of these sizes.

    An active rank applies to one task, so every cluster may use all of it; a stored rank is divided among the clusters.
    Raises: BudgetError naming the smallest possible budget.
    """
    share = Budget(kind=budget.kind, rank=budget.rank // len(sizes)) if budget.kind == "stored" else budget
    return method.within(share, max(sizes))
