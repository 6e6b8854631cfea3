"""Configurations of lm-eval's tasks as JSON values that hold no path, and the tasks built from them.

A function is "!function PLACE:MODULE.FUNCTION", and a path in the arguments of a data set is "PLACE:PATH". PLACE is
``lm-eval``, the folder of its own tasks, or ``include_path``, the folder of the user's.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask

from harness.errors import DataError
from harness.hashing import file_sha256

TASKS: Final = Path(lm_eval.tasks.__file__).resolve().parent
OWN: Final = "lm-eval"
INCLUDED: Final = "include_path"
_FUNCTION: Final = "!function "
_PATHS: Final = ("dataset_path", "dataset_kwargs")


class NotPortable(Exception):
    """A configuration cannot be recorded; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Portable:
    """A configuration without paths. modules: the sha256 of each Python file whose functions it names, by place."""

    config: dict[str, Any]
    modules: dict[str, str]


def to_portable(config: Mapping[str, Any], included: Path | None) -> Portable:
    """Replace paths and functions by their places. included: the user's folder of tasks.

    Raises: NotPortable for a function whose file is in neither place.
    """
    modules: dict[str, str] = {}
    places = {OWN: TASKS} | ({} if included is None else {INCLUDED: included.resolve()})

    def replaced(value: Any, *, path: bool) -> Any:
        if isinstance(value, Mapping):
            return {str(k): replaced(v, path=path) for k, v in value.items()}
        if isinstance(value, list):
            return [replaced(v, path=path) for v in value]
        if not isinstance(value, str):
            return value if isinstance(value, bool | int | float | None) else str(value)
        module = _module_of(value)
        if module is not None:
            name = _placed(module, places)
            if name is None:
                raise NotPortable(f"its function {value} is not next to its file")
            modules[name] = file_sha256(module)
            return f"{_FUNCTION}{name}.{value.rpartition('.')[2]}"
        # A pattern such as FOLDER/*.jsonl names files without being one.
        is_path = path and (Path(value).is_absolute() or Path(value).exists())
        return (_placed(Path(value), places) or value) if is_path else value

    kept = {k: v for k, v in config.items() if v is not None}
    kwargs = kept.get("dataset_kwargs")
    if isinstance(kwargs, Mapping):
        # Code from the hub is never run: data sets that are scripts are not supported.
        kept["dataset_kwargs"] = {k: v for k, v in kwargs.items() if k != "trust_remote_code"}
    return Portable(config={k: replaced(v, path=k in _PATHS) for k, v in kept.items()}, modules=modules)


def build_task(portable: Portable, included: Path | None, **changes: Any) -> ConfigurableTask:
    """The task of a configuration. This loads its data and renders its first example.

    Args: included: the folder of the user's tasks, where the configuration names it. changes: other values of keys.
    Raises: DataError for a function whose file is missing or has changed; what lm-eval raises for a wrong key.
    """
    config = {**_resolved(portable.config, portable, included), **changes}
    return ConfigurableTask(config=config)


def needs_folder(portable: Portable) -> bool:
    """Whether data or functions are in the folder of the user's tasks."""
    return f"{INCLUDED}:" in str(portable.config)


def _resolved(value: Any, portable: Portable, included: Path | None) -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, portable, included) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, portable, included) for v in value]
    if not isinstance(value, str):
        return value
    if value.startswith(_FUNCTION):
        place, _, name = value.removeprefix(_FUNCTION).rpartition(".")
        return _function(place, name, portable.modules.get(place), included)
    if value.startswith((f"{OWN}:", f"{INCLUDED}:")):
        return str(_located(value, included))
    return value


def _function(place: str, name: str, sha256: str | None, included: Path | None) -> Callable[..., Any]:
    file = _located(place, included).with_suffix(".py")
    if not file.is_file():
        raise DataError(f"{file}: no such file, but a task names its function {name}. Restore it, or repeat the run")
    if sha256 is not None and file_sha256(file) != sha256:
        raise DataError(
            f"{file}: the file has changed since the run used its function {name}. Restore it, or run again"
        )
    function = getattr(_module(file, file.stat().st_mtime_ns), name, None)
    if function is None:
        raise DataError(f"{file}: the function {name}, which a task names, is missing. Correct the task's file")
    found: Callable[..., Any] = function
    return found


@lru_cache(maxsize=256)
def _module(file: Path, _changed_at: int) -> ModuleType:
    name = f"lm_eval_functions.{'.'.join(file.with_suffix('').parts[1:])}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


def _module_of(text: str) -> Path | None:
    """The Python file of "FOLDER/MODULE.FUNCTION", as lm-eval's index has functions; None for any other text."""
    stem, dot, name = text.rpartition(".")
    if not (dot and name.isidentifier() and Path(stem).is_absolute()):
        return None
    folder, _, module = stem.rpartition("/")
    file = Path(folder) / f"{module.replace('.', '/')}.py"
    return file if file.is_file() else None


def _placed(path: Path, places: Mapping[str, Path]) -> str | None:
    """ "PLACE:PATH" of a file or folder, a Python file without its ending; None outside all places."""
    path = path.resolve()
    relative = path.with_suffix("") if path.suffix == ".py" else path
    inside = (
        f"{name}:{relative.relative_to(folder).as_posix()}"
        for name, folder in places.items()
        if path.is_relative_to(folder)
    )
    return next(inside, None)


def _located(place: str, included: Path | None) -> Path:
    name, _, path = place.partition(":")
    if name == OWN:
        return TASKS / path
    if included is None:
        raise DataError(
            f"{path} is in the folder of task files that the run was given: name the folder's location with --data"
        )
    return included / path
