"""Commands that list and describe: `list`, `keys`, `runs`, `validate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.cli.options import JSON, OUT, SUITE_DATA


@click.command("list")
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Import every plug-in and show which ones fail.")
def list_command(name: str | None, check: bool) -> None:
    """List methods and suites, or describe one.

    With the NAME of a method: its fields, ablations and presets. With the NAME or the file of a suite: its options
    and tasks.
    """
    from harness.cli.tables import describe_plugin, installed

    click.echo(describe_plugin(name) if name else installed(check))


@click.command("keys")
def keys_command() -> None:
    """List the train.* and eval.* configuration keys.

    The keys of a method: harness list METHOD.
    """
    from harness.cli.tables import config_keys

    click.echo(config_keys())


@click.command("runs")
@OUT
def runs_command(out: Path) -> None:
    """List the runs in a folder, with state and mean score."""
    from harness.cli.tables import runs_table
    from harness.store.run_directory import find_runs

    runs = find_runs(out)
    click.echo(runs_table(runs) if runs else f"There are no runs in {out}. To start one, see: harness run --help")


@click.command("validate")
@click.argument("suite")
@SUITE_DATA
@click.option("--model", help="Count tokens with the tokenizer of this model.")
@click.option("--max-length", type=int, help="With --model: maximum length in tokens (default: train.max_length).")
@JSON
def validate_command(suite: str, data: str | None, model: str | None, max_length: int | None, as_json: bool) -> None:
    """Check the data of a SUITE (a name, or the file of your own suite) before training.

    Reports leaks between splits, duplicates, targets that do not parse, and sequences that would be truncated, with
    file and line. The exit status is 1 if there are errors.
    """
    from harness.config.spec import TrainConfig
    from harness.config.suites import open_suite
    from harness.data.splits import locate_data
    from harness.data.validation import validate
    from harness.data.validation_report import render, to_json

    opened = open_suite(suite)
    instance = opened.suite
    source = locate_data(instance, data or opened.data).source
    tokenizer = None
    if model is not None:
        from harness.models.loading import load_tokenizer

        tokenizer = load_tokenizer(model)
        max_length = max_length or TrainConfig().max_length
    report = validate(instance, source, tokenizer, max_length)
    click.echo(to_json(report) if as_json else render(report))
    if report.errors:
        sys.exit(1)


COMMANDS = (list_command, keys_command, runs_command, validate_command)
