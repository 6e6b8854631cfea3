"""lm-eval's index of tasks: the leaf tasks of groups, tags and task names, each with its whole configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager

from harness.errors import UsageError, nearest

_GROUP_KEYS: Final = frozenset(f.name for f in fields(GroupConfig))
_NOT_OF_TASKS: Final = ("tag", "group", "task_list", "include")
_NAMED: Final = 30
"""Names that an error lists where none is similar."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One task. kind: the group or tag that names it; None if the user names the task itself.

    config: the keys of its file and of the files that it includes, with the changes that its groups make. Functions are
        texts, "FOLDER/MODULE.FUNCTION".
    """

    name: str
    kind: str | None
    config: Mapping[str, Any]


@dataclass(kw_only=True)
class Leaves:
    """The tasks that were found, in order, each once, and why others are not among them."""

    found: dict[str, Leaf] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, leaf: Leaf) -> None:
        self.found.setdefault(leaf.name, leaf)


def open_index(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """lm-eval's index. Its own tasks take many seconds to read: they are left out if no name needs them.

    Raises: UsageError for a folder that is not there, and for an unknown name, with similar ones.
    """
    if include_path is not None:
        if not include_path.is_dir():
            raise UsageError(f"suite.include_path = {str(include_path)!r}: not a folder. Give the folder of task files")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            raise UsageError(_unknown(name, manager, include_path))
    return manager


def _unknown(name: str, manager: TaskManager, include_path: Path | None) -> str:
    folder = "" if include_path is None else f", nor does {include_path}"
    hint = nearest(name, manager.all_tasks)
    if not hint:
        some = manager.all_groups[:_NAMED]
        hint = f" Groups are {', '.join(some)} and others." if some else ""
    return f"lm-eval has no group, tag or task {name!r}{folder}.{hint} All names: lm-eval ls tasks"


def find_leaves(manager: TaskManager, names: Sequence[str]) -> Leaves:
    """The leaf tasks of groups, tags and tasks, as lm-eval expands them."""
    leaves = Leaves()
    for name in names:
        _walk(manager.task_index, name, {}, None, leaves)
    return leaves


def _walk(
    index: Mapping[str, Any], item: str | Mapping[str, Any], changes: Mapping[str, Any], kind: str | None, into: Leaves
) -> None:
    """Expand one member of a group. changes: what the groups around it change in its tasks."""
    if not isinstance(item, str):
        changes = {**changes, **{k: v for k, v in item.items() if k not in ("group", "task")}}
        if "group" in item and item["group"] not in index:
            _group(index, str(item["group"]), item, changes, into)
            return
        item = str(item.get("group", item.get("task")))
    entry = index.get(item)
    if entry is None:
        if "dataset_path" in changes:
            into.left_out[item] = "it is defined inside its group's file: give it a file of its own"
        else:
            into.left_out[item] = "its group names it, but lm-eval has no such task"
    elif entry.kind.name == "GROUP":
        _group(index, item, entry.cfg or {}, changes, into)
    elif entry.kind.name == "TAG":
        for name in sorted(entry.tags):
            _walk(index, name, changes, item, into)
    elif entry.kind.name == "PY_TASK":
        into.left_out[item] = "it is a Python class, whose splits and targets are not stated in a file"
    else:
        config = {k: v for k, v in {**(entry.cfg or {}), **changes}.items() if k not in _NOT_OF_TASKS}
        into.add(Leaf(name=item, kind=kind, config={**config, "task": item}))


def _group(
    index: Mapping[str, Any], name: str, config: Mapping[str, Any], changes: Mapping[str, Any], into: Leaves
) -> None:
    own = {k: v for k, v in config.items() if k not in _GROUP_KEYS and k != "include"}
    changes = {k: v for k, v in {**own, **changes}.items() if k not in _GROUP_KEYS}
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        _walk(index, member, changes, name, into)


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's own log of defaults and the progress bars of data sets; what fails still raises."""
    log = logging.getLogger("lm_eval")
    level, bars = log.level, not are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            enable_progress_bars()
