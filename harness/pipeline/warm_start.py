"""Initialisation of a run from a finished one (``--from``): the checks and the tasks and adapter that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.config.method_config import method_of
from harness.config.spec import ParentSpec, RunSpec
from harness.errors import HarnessError, StoreError, UsageError
from harness.method import AdapterMethod, Method, Start
from harness.registry import METHODS, method_class, plugins
from harness.store.finished import FinishedRun, open_finished
from harness.store.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The finished run that a run starts from. spec: its entry in the new run's spec; path: where it is now."""

    spec: ParentSpec
    path: Path


def find_parent(path: str, method: Method, spec: RunSpec) -> Parent:
    """The finished run at ``path``, checked as the parent of a run with this method and spec.

    Raises: UsageError if the run cannot start from it, naming what differs; StoreError if it is not finished.
    """
    from harness.store.adapter import read_meta

    if not isinstance(method, AdapterMethod) or not method.continues:
        able = ", ".join(methods_that_continue()) or "none"
        raise UsageError(f"--method {spec.method.name} does not support --from. Methods that support it: {able}")
    parent = open_finished(Path(path))
    _check(parent, spec)
    before = parent.record.spec
    method.check_start(method_of(before), list(before.suite.tasks), list(spec.suite.tasks))
    adapter = read_meta(parent.run.adapter)["sha256"]
    return Parent(spec=ParentSpec(run_id=parent.record.run_id, adapter=adapter), path=parent.run.path.resolve())


def load_start(parent: Parent | None) -> Start | None:
    """The tasks and the adapter of the parent. Raises: StoreError if the adapter has changed meanwhile."""
    from safetensors.torch import load

    from harness.store.adapter import read_meta, read_weights

    if parent is None:
        return None
    folder = RunDirectory(parent.path).adapter
    meta, data = read_meta(folder), read_weights(folder)
    if meta["sha256"] != parent.spec.adapter:
        raise StoreError(f"{folder} has changed since this command started: run the command again")
    return Start(tasks=tuple(meta["tasks"]), state=load(data))


def methods_that_continue() -> list[str]:
    """The installed methods that support ``--from``; a plug-in that cannot be imported is left out."""
    found = []
    for name in plugins(METHODS):
        try:
            cls = method_class(name)
        except HarnessError:
            continue
        if issubclass(cls, AdapterMethod) and cls.continues:
            found.append(name)
    return found


def _check(parent: FinishedRun, spec: RunSpec) -> None:
    then, name = parent.record.spec, parent.run.name
    if not method_class(then.method.name).trains:
        raise UsageError(
            f"--from {name}: this run has no adapter, since {then.method.name} does not train one: choose another run"
        )
    if then.clusters is not None or spec.clusters is not None:
        raise UsageError("--from supports a single adapter: neither of the two runs may use --clusters")
    for what, one, two in (
        ("base model", then.model and then.model.fingerprint, spec.model and spec.model.fingerprint),
        ("--prompt", then.prompt, spec.prompt),
        ("set of prompt.template keys", then.template, spec.template),
    ):
        if one != two:
            raise UsageError(f"--from {name} was trained with another {what} ({one}, not {two}): use the same {what}")
