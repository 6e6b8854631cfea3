"""Commands of two processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def torchrun(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    """Start two processes on this machine."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *arguments]
    return subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
