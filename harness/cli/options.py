"""Options that several commands share, and how every command prints JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from harness.cli.messages import StderrHandler
from harness.cli.output import is_printable
from harness.config.options import OPTIONS
from harness.errors import UsageError


def _no_notes(context: click.Context, _: click.Parameter, value: bool) -> bool:
    """With --json only warnings and errors go to stderr: a program does not read notes."""
    handler = context.find_object(StderrHandler)
    if value and handler is not None:
        handler.only_warnings()
    return value


JSON = click.option("--json", "as_json", is_flag=True, callback=_no_notes, help="Print JSON instead of tables.")
OUT = click.option(
    "--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder that holds the runs."
)
PROTOCOL = click.option("--protocol", help="Scoring protocol to print (default: the suite's first).")
KEYS = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a configuration key; may be repeated. `harness keys` lists the keys.",
)
SUITE_KEYS = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a suite.* key, as in run; may be repeated."
)
EVAL_KEYS = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an eval.* key or an inference field; may be repeated.",
)
SUITE_DATA = click.option("--data", help="Data of the suite: a folder, a file or a hub data set (default: the sample).")


def run_options(command: Any) -> Any:
    """Decorates a command with every option of a run (``harness.config.options``)."""
    for name, option in reversed(list(OPTIONS.items())):
        kind = click.Choice(option.choices) if option.choices else option.type
        command = click.option(f"--{name}", type=kind, metavar=option.metavar, help=option.help)(command)
    return command


# Of a finished run, whose data and model may have been moved since.
DATA = click.option("--data", help="New location of the run's data, if they have moved.")
MODEL = click.option("--model", help="New location of the run's base model, if it has moved.")


def keys_in(assignments: Sequence[str], *sections: str) -> dict[str, dict[str, Any]]:
    """The keys of a command that trains nothing, by section. Raises: UsageError for a key of another section."""
    from harness.config.keys import by_section, parse_assignments
    from harness.config.template import PREFIX

    keys = parse_assignments(assignments)
    for key in keys:
        if key.partition(".")[0] not in sections:
            known = " and ".join({"prompt": PREFIX}.get(name, f"{name}.") + "NAME" for name in sections)
            raise UsageError(f"--set {key}: this command takes {known} keys only")
    return by_section(keys)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; where its encoding lacks a character, with escapes that mean the same."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=_path)
    click.echo(text if is_printable(text) else json.dumps(value, indent=1, default=_path))


def _path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written as JSON")
