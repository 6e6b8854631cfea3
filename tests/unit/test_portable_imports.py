"""The package can be imported where modules of POSIX do not exist, as on Windows."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import builtins, importlib, pkgutil

import harness, methods, tasks

OURS = ("harness", "methods", "tasks")
MISSING = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
original = builtins.__import__

def without_posix(name, globals=None, *rest, **more):
    importer = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in MISSING and importer.partition(".")[0] in OURS:
        raise ImportError(f"{importer} imports {name}, which Windows does not have")
    return original(name, globals, *rest, **more)

builtins.__import__ = without_posix
skipped = "tasks.sample.generate"  # scripts that only the makers of the sample run
for package in (harness, methods, tasks):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(skipped):
            importlib.import_module(module.name)
print(sum(name.partition(".")[0] in OURS for name in __import__("sys").modules))
"""


@pytest.mark.long
def test_every_module_can_be_imported_without_modules_of_posix() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
