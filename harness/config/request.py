"""The request of a user, and how a later command finds a run's data and model again (inputs.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.backend import portable_backend
from harness.config.clusters import read_clusters
from harness.config.keys import SECTIONS, parse_assignments, without_dates
from harness.config.method_config import absolute_keys
from harness.config.options import OPTIONS
from harness.config.spec import ClusterSpec
from harness.config.suites import absolute_suite
from harness.config.toml_file import read_toml
from harness.errors import unknown
from harness.registry import method_class


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a user: options by name (see ``OPTIONS``) and keys such as ``train.lr``, parsed or not."""

    options: Mapping[str, Any]
    keys: Mapping[str, Any] = field(default_factory=dict)


def typed(options: Mapping[str, Any], assignments: Sequence[str], config: Path | None) -> Request:
    """The request of a command line; the command line takes precedence over the TOML file."""
    line = Request(options=options, keys=parse_assignments(assignments))
    return merge(read_config(config), line) if config is not None else merge(Request(options={}), line)


def to_json(request: Request, source: str) -> dict[str, Any]:
    """What a later command needs to find data and model again (inputs.json; not part of the run_id).

    Local paths are made absolute, so that the request means the same from another folder.

    Args: source: the data as the run resolved them; later commands read a hub data set at the run's revision.
    """
    options = dict(request.options)
    if options.get("data"):
        options["data"] = source
    for name in ("data", "model", "from"):
        if options.get(name) and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    if options.get("suite"):
        options["suite"] = absolute_suite(options["suite"])
    if options.get("backend"):
        options["backend"] = portable_backend(options["backend"])
    clusters = read_clusters(options.get("clusters"))
    if isinstance(clusters, ClusterSpec):  # The content is kept, since the file may change later.
        options["clusters"] = clusters.model_dump(mode="json")
    keys = absolute_keys(method_class(options["method"]), request.keys) if options.get("method") else request.keys
    return {"options": options, "keys": dict(keys)}


def read_config(path: Path) -> Request:
    """A TOML file: the options in a table ``[run]``, keys in ``[train]``, ``[eval]`` and so on."""
    tables = read_toml(path, option="--config", hint="Give a TOML file")
    options = tables.pop("run", {})
    keys: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise unknown("table", section, ["run", *SECTIONS], see="harness keys")
        keys |= {f"{section}.{name}": without_dates(value) for name, value in table.items()}
    for name in options:
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS, see="harness run --help")
    return Request(options=options, keys=keys)


def merge(low: Request, high: Request) -> Request:
    """Both requests in one; ``high`` takes precedence."""
    given = {k: v for k, v in high.options.items() if v is not None}
    return Request(options={**low.options, **given}, keys={**low.keys, **high.keys})
