"""The command in forked processes, so that tests can kill many of them without importing everything each time.

Reads a line of JSON for each run, ``{"arguments": [...], "log": path}``; answers with its process id, and with its exit
status (negative: the signal) when it has ended.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import datasets  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import harness.generation.backend
import harness.pipeline.execute
import harness.training.dev_score
import harness.training.trainer  # noqa: F401
from harness.cli.main import main


def child(arguments: list[str], log: str) -> None:
    """Never returns."""
    torch.set_num_threads(1)
    status = 0
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = ["harness", *arguments]
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def serve() -> None:
    """Until stdin ends."""
    print("ready", 0, flush=True)
    for line in sys.stdin:
        run = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(run["arguments"], run["log"])
        print("pid", pid, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
