"""A trained adapter on disk: adapter.safetensors and adapter.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.spec import RunSpec, run_id
from harness.errors import StoreError
from harness.method import Adapter
from harness.store.files import write_atomic, write_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, META = "adapter.safetensors", "adapter.json"


def save_adapter(folder: Path, adapter: Adapter, spec: RunSpec, tasks: Sequence[str]) -> None:
    """Save the adapter that some of a run's tasks share.

    The weights are written first, so that an existing adapter.json means a complete adapter.
    """
    from safetensors.torch import save

    data = save({k: v.contiguous() for k, v in trainable_state(adapter.state_dict()).items()})
    write_atomic(folder / WEIGHTS, data)
    meta = {
        "run_id": run_id(spec),
        "method": spec.method.model_dump(mode="json"),
        "tasks": list(tasks),
        "suite": spec.suite.model_dump(mode="json"),
        "model": spec.model.model_dump(mode="json") if spec.model else None,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_json(folder / META, meta)


def has_adapter(folder: Path) -> bool:
    """True if a complete adapter has been saved."""
    return (folder / META).exists()


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of adapter.json: run_id, method, tasks, suite, model, sha256 of the weights. Raises: StoreError."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    return meta


def read_weights(folder: Path) -> bytes:
    """The bytes of a saved adapter's weights, after checking their hash. Raises: StoreError for damaged files."""
    meta = read_meta(folder)
    try:
        data = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != meta["sha256"]:
            raise ValueError(f"wrong hash of {WEIGHTS}")
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(folder, error) from error
    return data


def load_into(folder: Path, adapter: Adapter) -> None:
    """Load saved weights into an adapter. Raises: StoreError for damaged files, or those of another method."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_weights(folder)
    try:
        adapter.load_state_dict(load(data))
    except (ValueError, SafetensorError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> StoreError:
    return StoreError(f"{folder} contains no usable adapter ({error}). Delete the folder to train it again.")


def trainable_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, detached and on the CPU."""
    return {k: v.detach().to("cpu") for k, v in state.items()}
