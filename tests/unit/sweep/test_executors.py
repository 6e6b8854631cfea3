"""Runs on this machine get a GPU each."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from harness.config.request import Request
from harness.errors import UsageError
from harness.store.run_directory import RunDirectory
from harness.sweep.executors import LocalExecutor, RunProcess, parse_devices
from harness.sweep.jobs import Job

FAKE = """
import json, os, sys, time

print(json.dumps({"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "arguments": sys.argv[1:]}), flush=True)
while "--wait" in sys.argv[1:]:
    time.sleep(0.01)
"""


def executor(tmp_path: Path, *devices: str, wait: bool = False) -> LocalExecutor:
    """An executor of a command that prints its environment, and then ends or waits to be terminated."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return LocalExecutor(devices=devices, command=(sys.executable, str(script), *(["--wait"] if wait else [])))


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
