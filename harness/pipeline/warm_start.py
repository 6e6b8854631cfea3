"""A run that goes on from a finished one (``--from``): whether it can, and what it begins with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.method_config import method_of
from harness.config.spec import ParentSpec, RunSpec
from harness.errors import HarnessError, StoreError, UsageError
from harness.method import AdapterMethod, Start
from harness.registry import METHODS, method_class, plugins
from harness.store.record import RunRecord
from harness.store.run_directory import RunDirectory, open_run

if TYPE_CHECKING:
    from harness.pipeline.resolve import Resolved


def going_on(resolved: Resolved, path: str | None) -> Resolved:
    """The same run, going on from the finished run at ``path``; None: from nothing.

    Raises: UsageError where it cannot, naming what differs; StoreError where there is no finished run.
    """
    if path is None:
        return resolved
    from harness.store.adapter import read_meta

    spec = resolved.spec
    method = resolved.method
    if not (isinstance(method, AdapterMethod) and method.continues):
        able = ", ".join(_able()) or "none"
        raise UsageError(
            f"--method {spec.method.name} cannot go on from another run (--from). Methods that can: {able}"
        )
    run = open_run(Path(path))
    record = run.record()
    if record is None:
        raise StoreError(f"--from {run.path} is not finished ({run.state().value}): give its harness run command again")
    _check(run, record, spec)
    method.check_start(method_of(record.spec), list(record.spec.suite.tasks), list(spec.suite.tasks))
    parent = ParentSpec(run_id=record.run_id, adapter=read_meta(run.adapter)["sha256"])
    return dataclasses.replace(resolved, spec=spec.model_copy(update={"parent": parent}), parent=run.path.resolve())


def load_start(resolved: Resolved) -> Start | None:
    """The tasks and the adapter of the run that a run goes on from. Raises: StoreError where it is another by now."""
    from safetensors.torch import load

    from harness.store.adapter import read_meta, read_weights

    if resolved.parent is None or resolved.spec.parent is None:
        return None
    folder = RunDirectory(resolved.parent).adapter
    meta, data = read_meta(folder), read_weights(folder)
    if meta["sha256"] != resolved.spec.parent.adapter:
        raise StoreError(f"{folder} has changed since this command was started: give the command again")
    return Start(tasks=tuple(meta["tasks"]), state=load(data))


def _check(run: RunDirectory, record: RunRecord, spec: RunSpec) -> None:
    then = record.spec
    if not method_class(then.method.name).trains:
        raise UsageError(f"--from {run.name} has no adapter: {then.method.name} trains none")
    if then.clusters is not None or spec.clusters is not None:
        raise UsageError("--from goes on with one adapter: neither run may have --clusters")
    for what, one, two in (
        ("base model", then.model and then.model.fingerprint, spec.model and spec.model.fingerprint),
        ("--prompt", then.prompt, spec.prompt),
    ):
        if one != two:
            raise UsageError(f"--from {run.name} was made with another {what} ({one}, not {two}): give the same")


def _able() -> list[str]:
    found = []
    for name in plugins(METHODS):
        try:
            cls = method_class(name)
            found += [name] if issubclass(cls, AdapterMethod) and cls.continues else []
        except HarnessError:  # a plug-in that cannot be imported can do nothing
            continue
    return found
