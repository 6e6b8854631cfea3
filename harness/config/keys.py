"""Keys such as ``train.lr``: parsing, sections, building configurations from them."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.config.spec import EvalConfig, TrainConfig
from harness.config.template import PREFIX
from harness.errors import UsageError, unknown

SECTIONS = ("train", "eval", "method", "suite", "prompt", "balance")


T = TypeVar("T")


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``--set key=value`` pairs; values as in TOML or JSON, bare words as strings, ``none`` as None."""
    keys = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text}: expected key=value, for example --set train.lr=3e-4")
        keys[key.strip()] = parse_value(value.strip())
    return keys


def parse_value(text: str) -> Any:
    """A value of TOML or JSON, or the text itself where it is neither."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return without_dates(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return _json_or_text(text)


def _json_or_text(text: str) -> Any:
    """Objects, and lists of them, are written differently in JSON than in TOML; other values are not."""
    try:
        return json.loads(text) if text.startswith(("{", "[")) else text
    except json.JSONDecodeError:
        return text


def without_dates(value: Any) -> Any:
    """A value of TOML as JSON has it: dates and times as text."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list):
        return [without_dates(inner) for inner in value]
    return {name: without_dates(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def build_from_keys(cls: type[T], values: Mapping[str, Any], section: str) -> T:
    """A method or suite from its keys. Raises: UsageError for an unknown field or a wrong value."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown(
                "key", f"{section}.{name}", [f"{section}.{k}" for k in known], see=f"harness list {section.upper()}"
            )
    default = cls()
    lists = {name: _as_list(value) for name, value in values.items() if _is_tuple(default, name)}
    try:
        built: T = _validator(cls).validate_python({**values, **lists})  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        raise validation_error(error, section, values) from error
    return built


# Building the validator of a class takes 5 ms, and a leaderboard builds each of a few classes hundreds of times.
@lru_cache(maxsize=64)
def _validator(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _as_list(value: Any) -> Any:
    """A list may be typed with commas, and one of a single item without brackets: --set suite.kinds=NLI,MRC"""
    if isinstance(value, str):
        return tuple(value.split(","))
    return (value,) if isinstance(value, int | float) else value


def _is_tuple(value: Any, name: str) -> bool:
    return isinstance(getattr(value, name), tuple)


def section_config(cls: type[T], section: str, values: Mapping[str, Any]) -> T:
    """``train.*`` or ``eval.*`` keys. Raises: UsageError for an unknown key or a wrong value."""
    known = list(cls.model_fields)  # type: ignore[attr-defined]
    for name in values:
        if name not in known:
            raise unknown("key", f"{section}.{name}", [f"{section}.{k}" for k in known], see="harness keys")
    try:
        return cls(**values)
    except ValidationError as error:
        raise validation_error(error, section, values) from error


def validation_error(error: ValidationError, section: str, values: Mapping[str, Any]) -> UsageError:
    """The first problem of a pydantic error, worded with the key that the user typed."""
    first = error.errors()[0]
    name = ".".join(str(p) for p in first["loc"])
    key = f"{section}.{name}" if section and name else section or name
    given = first.get("input", values)
    return UsageError(f"{key} = {given!r}: {first['msg'].removeprefix('Value error, ')}")


def by_section(keys: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``train.lr`` as ``["train"]["lr"]``; ``budget`` in "". Raises: UsageError for an unknown key."""
    sections: dict[str, dict[str, Any]] = {s: {} for s in ("", *SECTIONS)}
    for key, value in keys.items():
        section, dot, name = key.partition(".")
        if key == "budget":
            sections[""]["budget"] = value
        elif not dot or section not in SECTIONS:
            known = [f"train.{k}" for k in TrainConfig.model_fields] + [f"eval.{k}" for k in EvalConfig.model_fields]
            raise unknown("key", key, [*known, "budget", "method.", "suite.", "balance.", PREFIX], see="harness keys")
        else:
            sections[section][name] = value
    return sections


def changed(value: Any, default: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from the default's."""
    names = [f.name for f in dataclasses.fields(value)]
    return {n: getattr(value, n) for n in names if getattr(value, n) != getattr(default, n)}
