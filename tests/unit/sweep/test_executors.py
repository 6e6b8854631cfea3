"""Runs on this machine get a GPU each, or a place on one that has room for several."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.request import Request
from harness.errors import UsageError
from harness.store.run_directory import RunDirectory
from harness.sweep.devices import parse_devices, parse_per_device, places
from harness.sweep.executors import LocalExecutor, RunProcess
from harness.sweep.jobs import Job

FAKE = """
import json, os, sys, time

print(json.dumps({"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "arguments": sys.argv[1:]}), flush=True)
while "--wait" in sys.argv[1:]:
    time.sleep(0.01)
"""


def executor(tmp_path: Path, *devices: str, wait: bool = False, **options: Any) -> LocalExecutor:
    """An executor of a command that prints its environment, and then ends or waits to be terminated."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    command = (sys.executable, str(script), *(["--wait"] if wait else []))
    return LocalExecutor(devices=devices, command=command, **options)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """``smi({"0": "8000"})`` puts an nvidia-smi on the PATH that reports this much free memory (MiB) of each GPU."""

    def write(free: dict[str, str]) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        cases = "".join(f'  {device}) echo "{text}" ;;\n' for device, text in free.items())
        script = folder / "nvidia-smi"
        script.write_text(f'#!/bin/sh\nfor last; do :; done\ncase "$last" in\n{cases}  *) exit 6 ;;\nesac\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return write


def job(tmp_path: Path, name: str) -> Job:
    asked = Request(options={"method": name, "seed": 3}, keys={"train.lr": 0.1})
    return Job(label=name, asked=asked, out=tmp_path, run=RunDirectory(tmp_path / name))


def end(job: Job, process: RunProcess) -> None:
    """Terminate a process, once it has printed its environment."""
    for _ in range(2000):
        if job.log_file.read_text():
            break
        time.sleep(0.01)
    process.terminate()
    process.wait()


def device_of(job: Job, process: RunProcess) -> str | None:
    process.wait()
    device: str | None = json.loads(job.log_file.read_text())["device"]
    return device


def test_parallel_runs_have_a_device_each_and_a_free_one_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    local = executor(tmp_path, "0", "GPU-5c", "2", wait=True)
    jobs = [job(tmp_path, f"m{i}") for i in range(5)]
    processes = [local.start(j) for j in jobs[:3]]
    end(jobs[1], processes[1])
    processes.append(local.start(jobs[3]))
    processes.append(local.start(jobs[4]))  # more runs than devices: the first device is shared
    for each, process in zip(jobs, processes, strict=True):
        end(each, process)
    assert [device_of(j, p) for j, p in zip(jobs, processes, strict=True)] == ["0", "GPU-5c", "2", "GPU-5c", "0"]


def test_runs_one_after_another_use_one_device(tmp_path: Path) -> None:
    local = executor(tmp_path, "4", "5")
    jobs = [job(tmp_path, f"m{i}") for i in range(3)]
    assert [device_of(j, local.start(j)) for j in jobs] == ["4", "4", "4"]


def test_without_devices_the_environment_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    only = job(tmp_path, "m")
    assert device_of(only, executor(tmp_path).start(only)) == "7"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_run_is_started_with_the_options_and_keys_of_its_job(tmp_path: Path) -> None:
    only = job(tmp_path, "cgc_lora")
    executor(tmp_path).start(only).wait()
    words = json.loads((tmp_path / "logs" / "cgc_lora.log").read_text())["arguments"]
    assert words == ["run", "--method", "cgc_lora", "--seed", "3", "--set", "train.lr=0.1", "--out", str(tmp_path)]


def test_devices_are_ids_or_every_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_devices(None) == ()
    assert parse_devices("0, 2,GPU-5c") == ("0", "2", "GPU-5c")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert parse_devices("auto") == ("3", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert parse_devices("auto") == ("0", "1")


@pytest.mark.parametrize("text", ["", "0,,1", "0,0"])
def test_wrong_devices_are_an_error_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as 0,1, or auto"):
        parse_devices(text)


def test_auto_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no GPU is visible"):
        parse_devices("auto")


def test_gpus_on_a_machine_without_any_give_a_warning_that_the_cpu_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parse_devices("0,1") == ("0", "1")
    assert "--devices 0,1: no GPU is available on this machine, so the runs use its CPU" in caplog.text
    caplog.clear()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert parse_devices("0,1") == ("0", "1")
    assert caplog.text == ""


def test_a_number_of_runs_per_gpu_limits_what_runs_at_a_time(tmp_path: Path) -> None:
    shared = executor(tmp_path, "0", "1", per_device=3)
    assert [shared.capacity(wanted, None) for wanted in (None, 4, 9)] == [6, 4, 6]
    for devices, alone in (((), 1), (("0", "1"), 2)):
        local = executor(tmp_path, *devices)
        assert [local.capacity(wanted, None) for wanted in (None, 4)] == [alone, 4]


def test_a_gpu_gets_as_many_runs_as_the_largest_finished_one_fits_into_it(tmp_path: Path, smi: Any) -> None:
    """A run needs a quarter more than its tensors, and 1 GiB for its CUDA context: 6 GiB for tensors of 4 GiB."""
    smi({"0": str(19 * 1024), "7": str(13 * 1024)})
    local = executor(tmp_path, "0", "7", per_device="auto", wait=True)
    assert local.capacity(None, None) == 2  # nothing is measured yet
    assert local.capacity(None, 4 * 2**30) == 3 + 2
    jobs = [job(tmp_path, f"m{i}") for i in range(5)]
    processes = [local.start(j) for j in jobs]
    for each, process in zip(jobs, processes, strict=True):
        end(each, process)
    devices = [device_of(j, p) for j, p in zip(jobs, processes, strict=True)]
    assert (devices.count("0"), devices.count("7")) == (3, 2)
    assert local.capacity(None, 200 * 2**30) == 2  # a run that fills a GPU is still tried


def test_runs_per_gpu_by_hand() -> None:
    gib = 2**30
    assert places(80 * gib, 3 * gib) == 16  # 80 / (3 * 1.25 + 1) = 16.8
    assert places(80 * gib, 79 * gib) == 1


@pytest.mark.parametrize("free", [{"1": "80000"}, {"0": "[N/A]"}], ids=["no such GPU", "not reported"])
def test_memory_that_is_not_reported_is_an_error_with_a_remedy(tmp_path: Path, smi: Any, free: dict[str, str]) -> None:
    smi(free)
    with pytest.raises(UsageError, match=r"free memory of GPU 0 .*such as --per-device 2"):
        executor(tmp_path, "0", per_device="auto")


@pytest.mark.parametrize(
    ("text", "devices", "fault"),
    [
        ("0", ("0",), "1 or more, or auto"),
        ("1.5", ("0",), "1 or more, or auto"),
        ("two", ("0",), "1 or more, or auto"),
        ("2", (), "give --devices too"),
        ("auto", (), "give --devices too"),
    ],
)
def test_wrong_numbers_of_runs_per_gpu_are_an_error(text: str, devices: tuple[str, ...], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse_per_device(text, devices)


def test_runs_per_gpu_are_a_number_or_measured() -> None:
    assert parse_per_device(None, ()) is None
    assert parse_per_device(" 4 ", ("0",)) == 4
    assert parse_per_device("AUTO", ("0",)) == "auto"
