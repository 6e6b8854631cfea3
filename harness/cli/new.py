"""Commands that write what users then change: `new suite`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("new")
def new_command() -> None:
    """Write an example of your own suite, which runs at once."""


@new_command.command("suite")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def suite_command(folder: Path) -> None:
    """Write a suite's file and its data into DIR.

    The file says which tasks there are, where their data are, and how they are asked and scored. No code is needed.
    """
    from harness.config.suites import example_writers
    from harness.errors import StoreError, UsageError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already. Give the name of a new folder")
    writers = example_writers()
    if not writers:
        raise UsageError("no installed suite reads files. See: harness list --check")
    try:
        next(iter(writers.values())).write_example(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror}). Give another folder") from error
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(path)
    click.echo(f"Next: harness validate {folder}, then: harness run --suite {folder} --method NAME (see: harness list)")


COMMANDS = (new_command,)
