"""JSON lines read in bounded memory, and the data set that a suite makes of them, cached until the file changes.

Also data sets of the hub by name: which commit a name means now, so that a run reads one revision and records it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from harness.errors import DataError, HarnessError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from harness.task import Example

VERSION: Final = 1  # of this reader; raise it when equal files would give other rows, so that caches are made anew
LONGEST_LINE: Final = 64 * 2**20  # bytes; a longer "line" is a file of another format, and would fill the memory
Columns = Mapping[str, tuple[type, ...]]
_HUB_NAME: Final = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-][\w./-]*))?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS: Final = 20.0  # to wait for the hub's answer before the local cache is searched
_WORDS: Final = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
    dict: "an object",
    type(None): "null",
}


def shown(value: object, limit: int = 60) -> str:
    """A value for an error message: one line, control characters escaped, at most ``limit`` characters and a dot."""
    if isinstance(value, (str, bytes)):
        value = value[: limit + 1]
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def read_json_lines(path: Path | str, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON lines, one line at a time.

    Args:
        path: the file; UTF-8, a byte order mark and blank lines are passed over.
        columns: the columns that each line must have, with the types that their values may have. ``list`` stands for
            a list of texts, ``type(None)`` allows null, ``int`` refuses true and false. Others are left as they are.

    Yields: (line number from 1, the line's object).
    Raises: DataError for a file that is missing, empty or of another format, and for the first line that is not what
        ``columns`` asks for, with file, line, value and remedy. Raised when the first line is asked for, not before.
    """
    path = Path(path)
    number = seen = 0
    for number, raw in _lines(path):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        if not seen and raw.lstrip().startswith(b"["):
            raise DataError(
                f"{path}, line {number}: a JSON array, but JSON lines are expected (one object on each line, no commas "
                f"between). Convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl"
            )
        seen += 1
        yield number, _checked(_parsed(raw, path, number), columns, path, number)
    if not seen:
        raise DataError(f"{path}: empty, not one line among {number}. Is the download complete?")


def build_dataset(
    rows: Callable[[], Iterator[Example]],
    *,
    reader: str,
    version: int,
    files: Sequence[Path],
    options: Mapping[str, Any],
) -> Dataset:
    """Make a data set of a suite's rows, on disk and memory-mapped; equal arguments on unchanged files read the cache.

    Args:
        rows: gives the examples one by one; called only where the cache has none.
        reader, version: whose rows these are (a suite's name and version).
        files: what they are read from; path, size and time of change are part of the cache's key.
        options: JSON values, everything else that the rows depend on.

    Returns: a datasets.Dataset with columns id, task, prompt, target (str) and choices (list[str] or None).
    Raises: DataError of ``rows`` as it is; DataError when a file is missing.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    features = Features(
        {
            **{name: Value("string") for name in ("id", "task", "prompt", "target")},
            "choices": List(Value("string")),
        }
    )

    def generate() -> Iterator[dict[str, Any]]:
        for e in rows():
            choices = None if e.choices is None else list(e.choices)
            yield {"id": e.id, "task": e.task, "prompt": e.prompt, "target": e.target, "choices": choices}

    key = [VERSION, reader, version, [_stamp(f) for f in files], dict(options)]
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    with _no_progress_bars():
        try:
            return Dataset.from_generator(generate, features=features, fingerprint=fingerprint)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, HarnessError):
                raise error.__cause__ from None
            raise


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set of the hub. revision: a branch, a tag or a commit; None for the newest version."""

    id: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """``id`` or ``id@revision``, as ``--data`` takes it."""
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    def pinned(self) -> HubDataset:
        """The same data set at the commit that its revision means now; a commit is returned without asking the hub.

        Where the hub cannot be reached, it is the commit that the local cache has for this revision.

        Raises: DataError where neither knows it.
        """
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        # The hub's client raises OSError and, for a lost connection, the base error of its HTTP library.
        unreachable = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
        try:
            commit = HfApi().dataset_info(self.id, revision=self.revision, timeout=_HUB_SECONDS).sha
        except GatedRepoError as error:
            raise DataError(f"{self.id} is gated: accept its terms on the hub, then `hf auth login`") from error
        except RevisionNotFoundError as error:
            raise DataError(f"{self.id}: the hub has no revision {self.revision!r} of this data set") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise DataError(
                f"{self.id}: no such file or folder here, and no such data set on the hub. Check the name, or "
                "`hf auth login`"
            ) from error
        except unreachable as error:
            commit = self._cached_commit(error)
        if commit is None:
            raise DataError(f"{self.id}: the hub gives no commit for it. Give one: --data {self.id}@COMMIT")
        return HubDataset(id=self.id, revision=commit)

    def _cached_commit(self, error: Exception) -> str:
        """The commit of the local cache: that of the revision, or of the one snapshot where the cache has one."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            repos = [r for r in scan_cache_dir().repos if (r.repo_type, r.repo_id) == ("dataset", self.id)]
        except CacheNotFound:
            repos = []
        by_ref = {ref: found.commit_hash for repo in repos for ref, found in repo.refs.items()}
        commits = sorted(found.commit_hash for repo in repos for found in repo.revisions)
        if (self.revision or "main") in by_ref:
            return by_ref[self.revision or "main"]
        if self.revision is None and len(commits) == 1:
            return commits[0]
        held = f"The local cache has {', '.join(commits)}" if commits else "The local cache does not have it"
        raise DataError(
            f"{self.name}: no such file or folder here, and the hub cannot be reached to say which revision this is "
            f"({type(error).__name__}: {error}). {held}. Give a commit, --data {self.id}@COMMIT, or download the data "
            "and give their path"
        ) from error


def hub_dataset(source: str) -> HubDataset | None:
    """The data set that ``id`` or ``id@revision`` names; None for a text that cannot be a name on the hub."""
    found = _HUB_NAME.fullmatch(source)
    return None if found is None else HubDataset(id=found["id"], revision=found["revision"])


def missing(path: Path) -> DataError:
    """The error for a file that is not there: names what its folder holds instead."""
    folder = path.parent
    if path.is_dir():
        return DataError(f"{path}: a folder, where a file of JSON lines is expected")
    if not folder.is_dir():
        return DataError(f"{path}: there is no folder {folder}")
    names = sorted(p.name for p in folder.iterdir())
    beside = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return DataError(f"{path}: no such file.{nearest(path.name, names)} Its folder holds {beside or 'nothing'}.")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise missing(path)
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB. JSON lines hold one object on "
                        f"each line; this begins {shown(raw)}"
                    )
                yield number, raw
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _parsed(raw: bytes, path: Path, number: int) -> object:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
        raise DataError(
            f"{path}, line {number}: byte {error.start + 1} is no UTF-8: {shown(raw[error.start :][:12])}. "
            f"If the file is {guess}: iconv -f {guess} -t UTF-8 {path.name} > utf8.jsonl"
        ) from None
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}, character {error.pos + 1}: broken JSON ({error.msg}): {shown(text.strip())}. "
            "Each line must hold one whole JSON object; mend or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: JSON that cannot be read ({error}): {shown(text.strip())}. Mend or remove the line"
        ) from None
    if b"\\u" in raw:
        _whole_characters(value, path, number)
    return value


def _whole_characters(value: object, path: Path, number: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(
            f"{path}, line {number}: {half!r} is half a character (a lone surrogate). Write the text again as UTF-8"
        ) from None


def _checked(value: object, columns: Columns, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, line {number}: {_word(value)}, but an object with {', '.join(columns)} is expected: "
            f"{shown(value)}"
        )
    for name, types in columns.items():
        if name not in value:
            there = ", ".join(shown(k, 30) for k in list(value)[:12]) or "nothing"
            raise DataError(f"{path}, line {number}: no column {name!r}.{nearest(name, value)} The line has {there}.")
        if not _fits(value[name], types):
            wanted = " or ".join(_WORDS[t] for t in types)
            raise DataError(
                f"{path}, line {number}: {name!r} must be {wanted}, not {_word(value[name])}: {shown(value[name])}"
            )
    return value


def _fits(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    if isinstance(value, list):
        return list in types and all(isinstance(item, str) for item in value)
    return isinstance(value, types)


def _word(value: object) -> str:
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return "a list of other things"
    return _WORDS[type(value)]


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
