"""Messages to the user: one handler on stderr, with a level that fits the reader."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import click
import pytest

from harness.cli.main import cli
from harness.cli.messages import messages_on_stderr


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_rank(number: int) -> None:
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")

    return set_rank


def _send() -> None:
    logging.getLogger("harness.data.splits").info("3 tasks")
    logging.getLogger("methods.moa").warning("unused field")
    logging.getLogger("tasks.firefly").error("100 % wrong")
    logging.getLogger("another.library").info("not for the user")


def test_notes_warnings_and_errors_of_the_project_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        _send()
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err == "note: 3 tasks\nwarning: unused field\nerror: 100 % wrong\n"


def test_a_line_that_applies_to_several_runs_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        for tasks in (3, 3, 4):
            logging.getLogger("harness.data.splits").info("%d tasks", tasks)
    assert capsys.readouterr().err == "note: 3 tasks\nnote: 4 tasks\n"


def test_the_handler_is_gone_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    level, show = logging.getLogger("harness").level, warnings.showwarning
    with messages_on_stderr():
        pass
    _send()
    assert "note:" not in capsys.readouterr().err
    assert (logging.getLogger("harness").level, warnings.showwarning) == (level, show)


def test_a_python_warning_is_one_line_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), messages_on_stderr():
        warnings.simplefilter("always")
        warnings.warn("old\n  format", UserWarning, stacklevel=1)
    seen = capsys.readouterr().err
    assert seen.startswith("warning: old format (UserWarning, ")
    assert "test_messages.py:" in seen
    assert seen.count("\n") == 1


@pytest.mark.parametrize(("number", "lines"), [(0, 3), (1, 1)])
def test_other_ranks_write_errors_only(rank: Any, capsys: pytest.CaptureFixture[str], number: int, lines: int) -> None:
    rank(number)
    with messages_on_stderr():
        _send()
    assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize(("arguments", "notes"), [(["--json"], 0), ([], 1)])
def test_json_leaves_notes_out(arguments: list[str], notes: int, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli.options import JSON

    @click.command()
    @JSON
    def command(as_json: bool) -> None:
        _send()

    with messages_on_stderr() as handler:
        command.main(arguments, standalone_mode=False, obj=handler)
    seen = capsys.readouterr().err
    assert (seen.count("note:"), seen.count("warning:")) == (notes, 1)


def test_every_command_says_in_one_line_what_it_does_and_describes_its_options() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert not command.get_short_help_str(limit=60).endswith("..."), name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help or option.type.name == "choice", (name, option.name)


def test_warnings_between_installed_packages_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("COBYLA: Invalid RHOEND; it should be a positive number", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
