"""What a Ray worker does, in processes of this machine without Ray."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.sweep.engines import EngineOptions, open_executor
from harness.sweep.ray_engine import check_probes, parse_engine
from harness.sweep.ray_worker import Probe, RunRequest, probe, run

PRINTS = "import os, sys; print(os.getcwd(), os.environ['PYTHONPATH'], sys.argv[1:]); sys.exit(7)"
SAVES = """
import signal, sys, time
from pathlib import Path

def save(*_):
    Path("saved").write_text("state")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
Path("started").write_text("")
time.sleep(60)
"""
# A process that was started in the background ignores SIGINT; Ray raises KeyboardInterrupt for a cancelled task anyway.
WORKS = """
import signal, sys
from harness.sweep.ray_worker import RunRequest, run
signal.signal(signal.SIGINT, signal.default_int_handler)
run(RunRequest(command=(sys.executable, "saves.py"), folder=".", log_file="log"))
"""


def appears(path: Path) -> bool:
    """Wait for a file."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not path.exists():
        time.sleep(0.02)
    return path.exists()


def test_a_command_runs_in_the_folder_of_the_sweep_with_its_output_in_the_log(tmp_path: Path) -> None:
    request = RunRequest(
        command=(sys.executable, "-c", PRINTS, "run", "--seed", "3"),
        folder=str(tmp_path),
        log_file=str(tmp_path / "logs" / "m.log"),
        search_path="/somewhere",
    )
    assert run(request) == 7
    assert (tmp_path / "logs" / "m.log").read_text() == f"{tmp_path} /somewhere ['run', '--seed', '3']\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process whose parent was killed")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "cancelled"])
def test_a_command_saves_its_state_when_its_worker_is_killed_or_cancelled(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    worker = subprocess.Popen([sys.executable, "-c", WORKS], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert appears(tmp_path / "started")
    worker.send_signal(how)
    assert worker.wait(60) != 0
    assert appears(tmp_path / "saved")


def test_a_node_reports_the_token_of_the_folder_of_runs(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc")
    found = probe(str(token), str(tmp_path), ("pytest", "no-such-package"))
    assert (found.host, found.token, found.has_folder) == (platform.node(), "abc", True)
    assert found.versions == {"pytest": pytest.__version__, "no-such-package": None}
    assert probe(str(tmp_path / "none"), str(tmp_path / "none"), ()) == Probe(
        host=platform.node(), token=None, has_folder=False
    )


def node(**fields: object) -> Probe:
    return Probe(**{"host": "n2", "token": "abc", "has_folder": True, "versions": {"torch": "2.9"}, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"token": None}, "--out runs: the Ray node n2 does not share this folder"),
        ({"token": "other"}, "--out runs: the Ray node n2 does not share this folder"),
        ({"has_folder": False}, f"the Ray node n2 has no folder {Path.cwd()}"),
    ],
)
def test_a_node_without_the_shared_folder_is_an_error_that_names_it(fields: dict[str, object], fault: str) -> None:
    good = node(host="n1")
    with pytest.raises(UsageError) as raised:
        check_probes([good, node(**fields)], expected="abc", out=Path("runs"), versions={"torch": "2.9"})
    assert str(raised.value).startswith(fault)


def test_other_versions_on_a_node_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_probes([node()], expected="abc", out=Path("runs"), versions={"torch": "2.9"})
    assert caplog.text == ""
    check_probes([node()], expected="abc", out=Path("runs"), versions={"torch": "2.8"})
    assert "the Ray node n2 has torch 2.9, and this machine 2.8" in caplog.text


def test_an_engine_is_local_or_ray_with_or_without_an_address() -> None:
    assert parse_engine("local") is None
    assert parse_engine("ray") == ""
    assert parse_engine("ray:10.0.0.1:6379") == "10.0.0.1:6379"


@pytest.mark.parametrize("text", ["", "rya", "ray:", "slurm", "local:1"])
def test_another_engine_is_an_error_that_lists_the_choices(text: str) -> None:
    with pytest.raises(UsageError, match=r"give local, ray, or ray:ADDRESS"):
        parse_engine(text)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"devices": "0,1"}, "leave --devices out"),
        ({"per_device": "auto"}, "such as --per-device 2"),
        ({"per_device": "0"}, "1 or more"),
    ],
)
def test_options_of_one_machine_are_refused_for_a_cluster(tmp_path: Path, options: dict[str, str], fault: str) -> None:
    with (
        pytest.raises(UsageError, match=fault),
        open_executor(EngineOptions(engine="ray", **options), tmp_path),  # type: ignore[arg-type]
    ):
        pass


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'mtlora-harness\[ray\]'"),
        open_executor(EngineOptions(engine="ray"), tmp_path),
    ):
        pass
