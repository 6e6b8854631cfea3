"""Errors that nothing expected are one line, with the file that has the traceback."""

from __future__ import annotations

import errno
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from harness.cli.options import print_json
from harness.cli.output import replace_unprintable
from harness.cli.unexpected import describe
from harness.errors import DataError, add_details


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_bug_is_one_line_with_the_file_of_its_traceback_and_how_to_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line = describe(raised(KeyError("accuracy")), ["runs", "--out", "x"])
    (file,) = tmp_path.glob("harness-failure-*.json")
    assert "unexpected KeyError: 'accuracy'" in line
    assert str(file) in line
    assert "please report it" in line
    assert "\n" not in line
    details = json.loads(file.read_text())
    assert details["command"] == ["harness", "runs", "--out", "x"]
    assert "KeyError" in details["traceback"]


def test_the_failure_of_a_run_is_the_file_that_is_named(tmp_path: Path) -> None:
    error = raised(ValueError("odd"))
    add_details(error, tmp_path / "failure.json")
    assert f"The traceback is in {tmp_path / 'failure.json'}." in describe(error, [])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), ["ALL_PROXY", "socksio"]),
        (ModuleNotFoundError("No module named 'fcntl'", name="fcntl"), ["fcntl", "WSL"]),
        (ConnectionError("offline"), ["network", "HF_HUB_OFFLINE"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["no space left"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/etc/hosts/x"), ["/etc/hosts/x: Not a directory"]),
        (MemoryError(), ["out of memory"]),
    ],
)
def test_what_the_machine_caused_is_not_called_a_bug(
    error: Exception, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:7890")
    for shown in (describe(error, []), describe(raised(RuntimeError("wrapped"), error), [])):
        assert "bug" not in shown
        for word in words:
            assert word in shown


def test_an_error_of_the_project_inside_another_one_keeps_its_message() -> None:
    assert describe(raised(RuntimeError("while generating"), DataError("a.json, line 3: odd")), []) == (
        "a.json, line 3: odd"
    )


def plugin_function(name: str, body: str, **names: Any) -> Any:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    exec(compile(f"def read():\n    {body}\n", f"{name}.py", "exec"), module.__dict__)
    return module.__dict__["read"]


def test_an_error_of_a_plugin_names_the_line_in_its_code(plugin: Path) -> None:
    try:
        plugin_function("toy_plugin.suite", "return {}['colour']")()
    except KeyError as error:
        line = describe(error, [])
    assert "KeyError: 'colour' (raised by a plug-in: toy_plugin.suite.py, line 2, in read)" in line
    assert "bug in" not in line


def test_an_error_that_a_plugin_only_calls_for_stays_a_bug_and_names_the_plugin(plugin: Path) -> None:
    ours = plugin_function("harness.engine", "return 1 / 0")
    try:
        plugin_function("toy_plugin.suite", "return ours()", ours=ours)()
    except ZeroDivisionError as error:
        line = describe(error, [])
    assert "bug in mtlora-harness" in line
    assert "called by a plug-in: toy_plugin.suite.py, line 2" in line


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "ascii"])
def test_a_character_that_the_encoding_lacks_is_replaced_and_never_raises(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    replace_unprintable()
    print("10.4\xa0%, 2 – 3, 🙂", flush=True)
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert shown.replace("\xa0", " ").startswith("10.4 %")
    assert shown.endswith("?\n")


def test_json_keeps_every_character_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    replace_unprintable()
    print_json({"是": "\xa0–"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode("latin-1")) == {"是": "\xa0–"}  # type: ignore[attr-defined]
