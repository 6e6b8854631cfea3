"""The cache of data sets on disk (``HF_DATASETS_CACHE``): built once, and built again where a file in it is damaged."""

from __future__ import annotations

import errno
import hashlib
import inspect
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

LOG: Final = logging.getLogger(__name__)
# The cache's folder itself cannot be used, so that building again would fail in the same way.
_UNUSABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def open_or_build(generate: Callable[[], Iterator[dict[str, Any]]], features: Features, fingerprint: str) -> Dataset:
    """The data set with this fingerprint from the cache; it is generated where the cache lacks or has damaged it.

    Raises: whatever ``generate`` raises, unchanged; DataError if the cache's folder cannot be used.
    """
    from datasets import Dataset, config
    from datasets.exceptions import DatasetGenerationError

    failed: list[Exception] = []

    def recorded() -> Iterator[dict[str, Any]]:
        try:
            yield from generate()
        except Exception as error:  # raised again below, in place of the error that datasets makes of it
            failed.append(error)
            raise

    root = Path(config.HF_DATASETS_CACHE)
    for attempt in (1, 2):
        try:
            dataset = Dataset.from_generator(recorded, features=features, fingerprint=fingerprint)
            _check_complete(dataset)
        # ValueError: pyarrow's error for a damaged file.
        except (DatasetGenerationError, OSError, ValueError) as error:
            if failed:
                raise failed[0] from None
            cause = error.__cause__ or error
            unusable = isinstance(cause, OSError) and cause.errno in _UNUSABLE
            damaged = [] if unusable else list(root.glob(f"generator/*{fingerprint}*"))
            if attempt == 2 or not damaged:
                raise _unusable(root, cause) from error
            LOG.info("the cached data set in %s is damaged (%s): it is built again", damaged[0], _reason(cause))
            for folder in damaged:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            return dataset
    raise AssertionError("the second attempt returns or raises")


def source_hash(function: Callable[..., Any]) -> str:
    """A hash of the Python files of the package that defines a function (of its one file outside a package).

    With it in a cache's key, examples that an earlier version of a reader made are not used after an edit.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return ""  # typed at a prompt: there is no file that could be edited
    files = sorted(Path(file).parent.rglob("*.py")) if module.__package__ else [Path(file)]
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.name} ".encode() + path.read_bytes())
    return content.hexdigest()


def _check_complete(dataset: Dataset) -> None:
    """Raises: ValueError if the file has fewer examples than were written; a file may end between two batches."""
    for split in (dataset.info.splits or {}).values():
        if split.num_examples != len(dataset):
            raise ValueError(f"{len(dataset)} of {split.num_examples} examples")


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return text or type(error).__name__


def _unusable(root: Path, error: BaseException) -> DataError:
    return DataError(
        f"the cache of data sets in {root} cannot be used ({_reason(error)}). Set the environment variable "
        "HF_DATASETS_CACHE to a folder that can be written and has space for a copy of the data"
    )
