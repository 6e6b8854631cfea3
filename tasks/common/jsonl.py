"""What suites of JSON lines share: the target of a line, and a data set in a cache on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import DataError
from harness.json_lines import missing, quoted
from tasks.common.dataset_cache import open_or_build, source_hash

if TYPE_CHECKING:
    from datasets import Dataset

    from harness.task import Example

VERSION: Final = 3  # raise it when equal files would give other examples, to rebuild caches
# Names under which other formats keep the answer, in lower case.
_ANSWERS: Final = frozenset(
    {"answer", "answers", "completion", "gold", "label", "labels"}
    | {"output", "outputs", "reference", "references", "response"}
)


def target_of(line: Mapping[str, Any], where: str, *, known: Collection[str], needed: bool) -> str:
    """The target of a line; "" if it is missing, null or blank.

    Args:
        where: the place of the line, for errors.
        known: the names of the format's columns.
        needed: the split is trained on, so that a line without ``target`` must not have any column that is not known.

    Raises: DataError if ``target`` is not a text, or if it is blank and the answer is in another column.
    """
    target = line.get("target")
    if not isinstance(target, str | None):
        raise DataError(f"{where}: 'target' must be text, or null if it is withheld, not {quoted(target)}")
    if target is not None and target.strip():
        return target
    others = [name for name, value in line.items() if name not in known and _is_given(value)]
    if "target" in line or not needed:
        others = [name for name in others if name.casefold() in _ANSWERS]
    if others:
        names = ", ".join(quoted(name, 30) for name in others[:6])
        raise DataError(
            f"{where}: {'a blank' if 'target' in line else 'no'} 'target' (the line has {names}). If the answer is in "
            "another column, rename that column to 'target' in all lines; if not, remove the column"
        )
    return ""


def _is_given(value: object) -> bool:
    return value not in (None, [], {}) and str(value).strip() != ""


def build_dataset(
    examples: Callable[[], Iterator[Example]],
    *,
    reader: str,
    version: int,
    files: Sequence[Path],
    options: Mapping[str, Any],
    documents: bool = False,
) -> Dataset:
    """Build a memory-mapped data set of a suite's examples, or open it from the cache if no file has changed.

    Args:
        examples: returns an iterator over the examples; called only if the cache does not have them. The source of the
            package that defines it is part of the cache's key.
        reader, version: name and version of the suite that reads them.
        files: the files they are read from; path, size and modification time are part of the cache's key.
        options: everything else that the examples depend on, as JSON values.
        documents: the examples have documents.

    Returns: a datasets.Dataset with columns id, task, prompt, target (str), group (str or None), choices and references
        (list[str] or None) and, with ``documents``, document (str).
    Raises: DataError for a missing file or a cache that cannot be used; what ``examples`` raises, unchanged.
    """
    from datasets import Features, List, Value

    features = Features(
        {
            **{name: Value("string") for name in ("id", "task", "prompt", "target", "group")},
            **{name: List(Value("string")) for name in ("choices", "references")},
            **({"document": Value("string")} if documents else {}),
        }
    )

    def generate() -> Iterator[dict[str, Any]]:
        for e in examples():
            texts = {"id": e.id, "task": e.task, "prompt": e.prompt, "target": e.target, "group": e.group}
            lists = {"choices": e.choices, "references": e.references}
            columns = {name: None if values is None else list(values) for name, values in lists.items()}
            document = {"document": e.document} if documents else {}
            yield {**texts, **columns, **document}

    key = [VERSION, reader, version, source_hash(examples), [_stamp(f) for f in files], dict(options)]
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    with _no_progress_bars():
        return open_or_build(generate, features, fingerprint)


def _stamp(path: Path) -> list[str | int]:
    try:
        stat = path.stat()
    except OSError:
        raise missing(path) from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
