"""What was typed, and how a later command finds a run's data and model again (inputs.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backend import from_anywhere
from harness.clusters import read_clusters
from harness.errors import StoreError
from harness.folders import absolute_keys
from harness.registry import method_class
from harness.resolve import Request, merge, parse_assignments, read_config
from harness.spec import ClusterSpec
from harness.store import RunDirectory


def typed(options: Mapping[str, Any], assignments: Sequence[str], config: Path | None) -> Request:
    """The request of a command line: what was typed wins over the TOML file."""
    line = Request(options=options, keys=parse_assignments(assignments))
    return merge(read_config(config), line) if config is not None else merge(Request(options={}), line)


def to_json(request: Request) -> dict[str, Any]:
    """The request with local paths made absolute, so that it means the same from another folder."""
    options = dict(request.options)
    for name in ("data", "model", "from"):
        if options.get(name) and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    if options.get("backend"):
        options["backend"] = from_anywhere(options["backend"])
    clusters = read_clusters(options.get("clusters"))
    if isinstance(clusters, ClusterSpec):  # what the file says now, whatever becomes of it
        options["clusters"] = clusters.model_dump(mode="json")
    keys = absolute_keys(method_class(options["method"]), request.keys) if options.get("method") else request.keys
    return {"options": options, "keys": dict(keys)}


def of_run(run: RunDirectory, data: str | None = None, model: str | None = None) -> Request:
    """The request that made a run; ``data`` and ``model`` where these have moved. Raises: StoreError."""
    try:
        saved = json.loads((run.path / "inputs.json").read_bytes())
        request = Request(options=saved["options"], keys=saved["keys"])
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{run.path / 'inputs.json'} cannot be read ({error}): give the harness run command again"
        ) from error
    return merge(request, Request(options={"data": data, "model": model}))
