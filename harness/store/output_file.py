"""A file of JSON lines outside the runs that is written in chunks, and can be resumed after a kill.

Next to ``FILE`` is a folder ``FILE.state``: settings.json says what the lines are of, so that no other command appends
to them; done.json, written last, means that all lines are there; a lock keeps other processes away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

from harness.errors import StoreError, UsageError
from harness.store.files import append_lines, explain_write_errors, write_json
from harness.store.lock import hold_lock

STATE: Final = ".state"
_SETTINGS: Final = "settings.json"
_DONE: Final = "done.json"


@dataclass(frozen=True)
class OutputFile:
    """The lines of ``path``. Each has an ``id``, that of the example at the same position."""

    path: Path

    @property
    def state(self) -> Path:
        """The folder of the file's state."""
        return self.path.with_name(self.path.name + STATE)

    @property
    def chunks(self) -> Path:
        """A folder for unfinished chunks."""
        return self.state / "chunks"

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the file. Raises: RunLocked while another process writes it."""
        return hold_lock(self.state)

    def check_free(self) -> None:
        """Raises: UsageError if the path is a folder, or a file that this program has not written."""
        if self.path.is_dir():
            raise UsageError(f"--out {self.path}: this is a folder. Give the name of a file")
        if self.path.exists() and not (self.state / _SETTINGS).exists():
            raise UsageError(
                f"--out {self.path}: the file exists, and it is not the output of this command. Choose another --out, "
                "or delete the file"
            )

    def claim(self, settings: Mapping[str, Any], wording: Mapping[str, str]) -> None:
        """Write the settings, or compare them with those that the lines on disk were written with.

        Args: wording: by top-level key, what it is for the user.
        Raises: UsageError that names what differs.
        """
        now = json.loads(json.dumps(settings))
        if (self.state / _SETTINGS).exists():
            then = self._read(self.state / _SETTINGS)
            differing = [wording.get(key, key) for key in {**then, **now} if then.get(key) != now.get(key)]
            if differing and self.path.exists():
                raise UsageError(
                    f"--out {self.path} has predictions with another {' and another '.join(differing)}. Choose another "
                    f"--out, or delete {self.path} and {self.state} to start over"
                )
            if not differing:
                return
        shutil.rmtree(self.chunks, ignore_errors=True)
        (self.state / _DONE).unlink(missing_ok=True)
        write_json(self.state / _SETTINGS, now)

    def is_finished(self) -> bool:
        """Whether ``finish`` was called."""
        return (self.state / _DONE).exists()

    def finish(self) -> None:
        """Mark the file as complete, and remove what killed processes have left."""
        shutil.rmtree(self.chunks, ignore_errors=True)
        write_json(self.state / _DONE, {"finished_at": datetime.now(UTC).isoformat()})

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append one chunk, flushed to disk."""
        append_lines(self.path, [json.dumps(line, ensure_ascii=False) for line in lines])

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every complete line. Raises: StoreError for a damaged one."""
        for line in self._complete():
            yield line.content

    def recover(self, ids: Iterable[str], chunk: int) -> int:
        """The number of lines on disk, all of complete chunks; anything after them is removed.

        A chunk that is only partly on disk is repeated as a whole, so that no prediction depends on interruptions.

        Args: ids: of all examples, in order.
        Raises: StoreError for a damaged line, or one whose id is not that of its example.
        """
        number = end = kept = kept_bytes = 0
        expected: Iterator[str | None] = chain(ids, repeat(None))
        # The lines come first, so that zip takes no id that has no line.
        for line, id_ in zip(self._complete(), expected, strict=False):
            number, end = line.number, line.end
            if line.content.get("id") != id_:
                raise StoreError(
                    f"{self.path}, line {number}: the id is {line.content.get('id')!r}, but the input has {id_!r} "
                    f"there: the file was edited. Delete {self.path} and {self.state} to start over"
                )
            if number % chunk == 0:
                kept, kept_bytes = number, end
        if next(expected) is None:  # every example has its line, so the last chunk is complete too
            kept, kept_bytes = number, end
        if self.path.exists() and self.path.stat().st_size > kept_bytes:
            with explain_write_errors(self.path):
                os.truncate(self.path, kept_bytes)
        return kept

    def _complete(self) -> Iterator[_Line]:
        """The lines that end in a line break; what follows them was being written when a process was killed."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    return
                end += len(raw)
                yield _Line(number=number, content=self._parse(raw, number), end=end)

    def _parse(self, raw: bytes, number: int) -> dict[str, Any]:
        try:
            content = json.loads(raw)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise StoreError(
                f"{self.path}, line {number} is damaged. Delete {self.path} and {self.state} to start over"
            )
        return content

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Delete {self.path} and {self.state} to start over"
            ) from error
        return content


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A complete line. number: from 1. end: the number of bytes up to its end."""

    number: int
    content: dict[str, Any]
    end: int
