"""Runs as tasks of a Ray cluster, on this machine or on many that share the folder of runs.

A task starts ``harness run`` as a child process, so that its CUDA context and its memory end with it. Ray never repeats
a task: the scheduler starts a lost run again, which resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError
from harness.sweep.entries import arguments
from harness.sweep.executors import LOST, run_command
from harness.sweep.jobs import Job
from harness.sweep.ray_worker import Probe, RunRequest, probe, run

LOG: Final = logging.getLogger(__name__)

NAME: Final = "ray"
# How long a terminated run may take to save its state: one step of a large model, and the checkpoint.
_STOP_SECONDS: Final = 600
_POLL_SECONDS: Final = 0.1
_CONNECT_SECONDS: Final = 10
_PACKAGES: Final = ("mtlora-harness", "torch", "transformers")


@dataclass
class RayExecutor:
    """Runs each job as a task of a Ray cluster, on one GPU of it, or on one CPU if the cluster has no GPU.

    out: the folder of runs. address: of a running cluster, as for ``ray.init``; None for the one of RAY_ADDRESS, or a
    cluster of this machine that ends with the sweep.
    per_device: the number of runs that share a GPU.
    command: the command that is started with ``run`` and the options of the job.

    Raises: UsageError without Ray, without the cluster, or if a node does not share the folder of runs.
    """

    out: Path
    address: str | None = None
    per_device: int = 1
    command: tuple[str, ...] = field(default_factory=run_command)

    def __post_init__(self) -> None:
        self._ray = _ray()
        _connect(self._ray, self.address)
        self._check_nodes()

    def start(self, job: Job) -> RayProcess:
        request = RunRequest(
            command=(*self.command, "run", *arguments(job.asked), "--out", str(job.out.resolve())),
            folder=str(Path.cwd()),
            log_file=str(job.log_file.resolve()),
            search_path=os.environ.get("PYTHONPATH"),
        )
        task = self._ray.remote(max_retries=0, max_calls=1, **self._resources())(run)
        return RayProcess(ray=self._ray, task=task.remote(request), job=job)

    def capacity(self, wanted: int | None, peak: int | None) -> int:
        """As many runs as the cluster has places for now, which may change; further ones would wait in its queue."""
        resources = self._ray.cluster_resources()
        room = int(resources.get("GPU", 0)) * self.per_device or int(resources.get("CPU", 0))
        return max(1, room if wanted is None else min(wanted, room))

    def close(self) -> None:
        """Disconnect. A cluster that this executor has started ends."""
        self._ray.shutdown()

    def _resources(self) -> dict[str, float]:
        if self._ray.cluster_resources().get("GPU", 0):
            return {"num_cpus": 1, "num_gpus": 1 / self.per_device}
        return {"num_cpus": 1}

    def _check_nodes(self) -> None:
        """Compare every node with this machine. Raises: UsageError for a node without the folder of runs."""
        token = self.out / f".shared-{uuid.uuid4().hex}"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(token.name, encoding="utf-8")
        try:
            found = self._probe_nodes(token)
        finally:
            token.unlink(missing_ok=True)
        check_probes(found, expected=token.name, out=self.out, versions=_versions())

    def _probe_nodes(self, token: Path) -> list[Probe]:
        """One task on each node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        tasks = []
        for node in self._ray.nodes():
            if node["Alive"]:
                here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
                task = self._ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=here)(probe)
                tasks.append(task.remote(str(token.resolve()), str(Path.cwd()), _PACKAGES))
        return list(self._ray.get(tasks))


@dataclass
class RayProcess:
    """A run that was given to a cluster; it may still wait for its node."""

    ray: Any
    task: Any
    job: Job
    cancelled: bool = False

    def poll(self) -> int | None:
        """The exit status, ``LOST`` if its worker or node has died, None while it runs or waits."""
        ended, _ = self.ray.wait([self.task], timeout=0)
        return self._status() if ended else None

    def terminate(self) -> None:
        """Cancel the task; its worker passes the signal on to ``harness run``, which saves its state."""
        self.cancelled = True
        self.ray.cancel(self.task, force=False)

    def wait(self) -> int:
        """Wait for the task, and for a run that was cancelled to release its directory."""
        status = self._status()
        until = time.monotonic() + _STOP_SECONDS
        while self.cancelled and self.job.run.is_locked() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        return status

    def _status(self) -> int:
        errors = self.ray.exceptions
        try:
            return int(self.ray.get(self.task))
        except errors.TaskCancelledError:
            return LOST
        except errors.RayTaskError as error:  # The worker could not start the command, as without the package.
            self.job.log_file.parent.mkdir(parents=True, exist_ok=True)
            self.job.log_file.write_text(f"error: the Ray task failed: {error.cause}\n", encoding="utf-8")
            return 1
        except errors.RayError as error:
            first = str(error).strip().partition("\n")[0]
            LOG.warning("%s: its Ray worker was lost (%s: %s)", self.job.label, type(error).__name__, first)
            return LOST


def parse_engine(text: str) -> str | None:
    """The address of ``--engine ray:ADDRESS``; "" for ``ray`` without one, None for ``local``. Raises: UsageError."""
    name, colon, address = text.partition(":")
    if text == "local":
        return None
    if name != NAME or (colon and not address):
        raise UsageError(f"--engine {text!r}: give local, ray, or ray:ADDRESS, such as ray:auto or ray:10.0.0.1:6379")
    return address


def check_probes(found: Sequence[Probe], *, expected: str, out: Path, versions: dict[str, str | None]) -> None:
    """Compare what the nodes report with this machine. Other versions are a warning.

    Raises: UsageError naming a node that does not share the folder of runs, or lacks the working directory.
    """
    for node in found:
        if node.token != expected:
            raise UsageError(
                f"--out {out}: the Ray node {node.host} does not share this folder. Give an --out on a disk that every "
                "node mounts under the same path"
            )
        if not node.has_folder:
            raise UsageError(
                f"the Ray node {node.host} has no folder {Path.cwd()}, where the runs would start. Start the sweep in "
                "a folder that every node mounts under the same path"
            )
        for package, here in versions.items():
            there = node.versions.get(package)
            if there != here:
                LOG.warning("the Ray node %s has %s %s, and this machine %s", node.host, package, there, here)


def _versions() -> dict[str, str | None]:
    return {package: version(package) for package in _PACKAGES}


def _ray() -> Any:
    """The module of Ray, without its reports to its makers. Raises: UsageError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs the package ray: pip install 'mtlora-harness[ray]'") from error
    return ray


def _reach(address: str | None) -> None:
    """Raises: OSError if nothing listens at host:port, for which Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _connect(ray: Any, address: str | None) -> None:
    if ray.is_initialized():
        return
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"--engine ray:{address or ''}: no connection to a Ray cluster from {platform.node()} ({said}). Start one "
            "with ray start --head, or leave the address out for a cluster of this machine"
        ) from error
