"""One process at a time works on a run, on one machine or on several that share a folder.

Two files in the run's directory do this:

- ``.lock`` is locked by the operating system (``filelock``). The lock disappears with its process, however it ends, so
  a killed run can be resumed at once on the same machine.
- ``.owner`` names the process that holds the lock: host, process id and time. It is created exclusively, which is
  atomic on shared file systems too. It is needed because some of them grant the same lock to two machines (NFS with
  ``local_lock`` or ``nolock``, Lustre with ``localflock``).

An owner on this machine that does not hold ``.lock`` has died, and its file is replaced. An owner on another machine
may be running, which cannot be checked from here: the user decides, and deletes ``.owner`` if it is not.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from harness.errors import RunLocked, StoreError
from harness.store.files import explain_write_errors

LOCK_FILE: Final = ".lock"
OWNER_FILE: Final = ".owner"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Long enough for another process that only tests the lock (``is_locked``) to release it.
_PATIENCE_SECONDS: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class LockOwner:
    """The process that works on a run.

    boot: identifies the running kernel, so that two containers on one machine count as the same machine; None if the
    system has no such number (only Linux has).
    """

    host: str
    pid: int
    since: str
    boot: str | None = None

    def on_this_machine(self) -> bool:
        """True if the lock of this machine decides about this owner. After a reboot only the host name is the same."""
        return self.host == platform.node() or (self.boot is not None and self.boot == _boot_id())

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, started {self.since}"


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's directory, which is created if it does not exist.

    Raises: RunLocked while another process works on the run; StoreError if the folder cannot be written or its file
        system cannot lock files.
    """
    from filelock import FileLock, Timeout

    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # A soft lock would stay behind a killed process, so a file system without locks is an error instead.
    lock = FileLock(folder / LOCK_FILE, timeout=_PATIENCE_SECONDS, fallback_to_soft=False)
    with _lock_errors(folder):
        try:
            lock.acquire()
        except Timeout:
            raise RunLocked(
                f"{folder} is in use by {read_owner(folder) or 'another process'}. Wait for it to finish, or stop it "
                "and run the same command again to resume."
            ) from None
    try:
        owner = _claim(folder)
        try:
            yield
        finally:
            _release(folder, owner)
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """True while a process works on the run, or while an owner on another machine has not released it."""
    from filelock import FileLock, Timeout

    path = folder / OWNER_FILE
    if not path.exists():
        return False
    owner = read_owner(folder)
    if owner is None or not owner.on_this_machine():
        return path.exists()  # it may have been released between the two calls
    lock = FileLock(folder / LOCK_FILE, timeout=0, fallback_to_soft=False)
    with _lock_errors(folder):
        try:
            with lock:
                return False
        except Timeout:
            return True


def read_owner(folder: Path) -> LockOwner | None:
    """The owner that a run's directory names; None if there is none or its file is damaged."""
    try:
        return LockOwner(**json.loads((folder / OWNER_FILE).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _claim(folder: Path) -> LockOwner:
    """Create the owner file; the lock of this machine is held. Raises: RunLocked for an owner on another machine."""
    path = folder / OWNER_FILE
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    owner = LockOwner(host=platform.node(), pid=os.getpid(), since=since, boot=_boot_id())
    with explain_write_errors(path):
        for _ in range(2):
            try:
                _create(path, owner)
            except FileExistsError:
                _remove_dead(path, read_owner(folder))
            else:
                return owner
    raise RunLocked(f"{folder} has just been claimed by another process. Wait for it to finish.")


def _remove_dead(path: Path, owner: LockOwner | None) -> None:
    if owner is None or not owner.on_this_machine():
        raise RunLocked(
            f"{path.parent} is claimed by {owner or 'a process that its owner file does not name'}. If that process is "
            f"running, wait for it. If it was killed, delete {path} and run the same command again to resume."
        )
    path.unlink(missing_ok=True)  # its process would hold the lock of this machine if it were running


def _create(path: Path, owner: LockOwner) -> None:
    with path.open("x", encoding="utf-8") as file:  # "x" fails if the file exists, on every machine that shares it
        try:
            file.write(json.dumps(asdict(owner)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _release(folder: Path, owner: LockOwner) -> None:
    if read_owner(folder) == owner:  # after a user has deleted it, it may be another machine's
        (folder / OWNER_FILE).unlink(missing_ok=True)


@contextmanager
def _lock_errors(folder: Path) -> Iterator[None]:
    try:
        with explain_write_errors(folder / LOCK_FILE):
            yield
    except OSError as error:
        raise StoreError(
            f"{folder / LOCK_FILE} cannot be locked ({error.strerror or error}): this file system does not support "
            "file locks, so two processes could write to one run. Choose an --out on a local disk, or mount the share "
            "with locks (NFS: version 4 or a running lock daemon; Lustre: -o flock)."
        ) from error


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return None
