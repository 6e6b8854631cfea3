"""The ``harness`` command for shell scripts, without the seconds that importing torch takes.

A server imports everything once, listens on a Unix socket, and forks a child for each call. The child takes over the
caller's arguments, folder and standard streams. ``write_command`` writes a script named ``harness`` that calls the
server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

_CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd()}}).encode()
socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
server.sendall(call)
status = server.recv(1)
sys.exit(status[0] if status else "harness was killed")
"""


def write_command(folder: Path, address: Path) -> None:
    """Write the script ``harness`` into a folder that goes on PATH."""
    script = folder / "harness"
    script.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    script.chmod(0o755)


def _answer(connection: socket.socket) -> None:
    """One call, in the forked child. Never returns."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(65536)
    call = json.loads(content)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(call["folder"])
    sys.argv = ["harness", *call["arguments"]]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status]))
        os._exit(status)


def serve(address: str) -> None:
    """Answer calls until the process is ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children report their status on the socket and need no wait
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection)
        connection.close()


if __name__ == "__main__":
    import datasets  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import harness.export.from_run
    import harness.generation.backend
    import harness.pipeline.dry_run
    import harness.pipeline.execute
    import harness.training.trainer  # noqa: F401
    from harness.cli.main import main

    torch.set_num_threads(1)
    serve(sys.argv[1])
