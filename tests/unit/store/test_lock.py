"""One process at a time works on a run, and a killed one never blocks its machine."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import RunLocked, StoreError
from harness.store.lock import LOCK_FILE, OWNER_FILE, read_owner
from harness.store.run_directory import RunDirectory, State

HOLD = """
import sys
from pathlib import Path
from harness.store.run_directory import RunDirectory

with RunDirectory(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def other_process(run: RunDirectory) -> subprocess.Popen[str]:
    """A process that holds the lock until it reads a line or is killed."""
    command = [sys.executable, "-c", HOLD, str(run.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def claim(run: RunDirectory, host: str = "node7", **more: Any) -> Path:
    """An owner file as another machine writes it."""
    run.path.mkdir(exist_ok=True)
    path = run.path / OWNER_FILE
    path.write_text(json.dumps({"host": host, "pid": 4321, "since": "2025-01-02 03:04:05 UTC", **more}))
    return path


def test_the_lock_names_its_owner_and_leaves_no_owner_behind(run: RunDirectory) -> None:
    with run.lock():
        owner = read_owner(run.path)
        assert owner is not None
        assert (owner.pid, owner.host) == (os.getpid(), platform.node())
        assert run.state() is State.RUNNING
    assert read_owner(run.path) is None
    assert run.state() is State.STOPPED


def test_an_error_inside_releases_the_lock(run: RunDirectory) -> None:
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        assert run.is_locked()


def test_a_second_process_is_an_error_that_names_the_first(run: RunDirectory) -> None:
    process = other_process(run)
    assert run.state() is State.RUNNING
    with pytest.raises(RunLocked, match=rf"in use by process {process.pid} on host .*same command again"), run.lock():
        pass
    process.communicate("\n", timeout=20)
    with run.lock():
        pass


def test_a_process_killed_on_this_machine_does_not_block_the_run(run: RunDirectory) -> None:
    process = other_process(run)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert (run.path / OWNER_FILE).exists()
    assert run.state() is State.STOPPED
    with run.lock():
        owner = read_owner(run.path)
        assert owner is not None
        assert owner.pid == os.getpid()


def test_an_owner_on_another_machine_blocks_until_its_file_is_deleted(run: RunDirectory) -> None:
    """Even if this machine was given the lock, as some shared file systems do."""
    path = claim(run)
    assert run.state() is State.RUNNING
    with pytest.raises(RunLocked) as error, run.lock():
        pass
    assert "process 4321 on host node7, started 2025-01-02 03:04:05 UTC" in str(error.value)
    assert f"delete {path}" in str(error.value)
    assert path.exists()
    path.unlink()
    assert run.state() is State.STOPPED
    with run.lock():
        pass


def test_a_damaged_owner_file_blocks_and_says_which_file_to_delete(run: RunDirectory) -> None:
    path = claim(run)
    path.write_text("")
    with pytest.raises(RunLocked, match=r"does not name.*delete .*\.owner"), run.lock():
        pass


def test_a_container_on_this_machine_is_the_same_machine(run: RunDirectory) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        pytest.skip("this system has no boot id")
    claim(run, host="3f2a9c0d1e", boot=boot.read_text().strip())
    assert run.state() is State.STOPPED, "the container was killed: it does not hold the lock"
    with run.lock():
        pass


def test_an_owner_that_changed_meanwhile_is_not_removed(run: RunDirectory) -> None:
    with run.lock():
        path = claim(run)
    assert path.exists()


def test_a_directory_of_an_older_version_resumes(run: RunDirectory) -> None:
    """It has a .lock with the process id inside, and no owner file."""
    run.path.mkdir()
    (run.path / LOCK_FILE).write_text("4321")
    assert run.state() is State.STOPPED
    with (run.path / LOCK_FILE).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLocked, match="in use by another process"), run.lock():
            pass
    with run.lock():
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_with_a_remedy(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"does not support file locks.*--out") as error, run.lock():
        pass
    assert not isinstance(error.value, RunLocked)
    claim(run, host=platform.node())
    with pytest.raises(StoreError, match="does not support file locks"):
        run.state()
