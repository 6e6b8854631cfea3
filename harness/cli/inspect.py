"""Commands that list and describe: `list`, `keys`, `runs`, `validate`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from harness.cli.options import JSON, OUT, SUITE_DATA, SUITE_KEYS, keys_in
from harness.config.options import OPTIONS
from harness.errors import UsageError


@click.command("list")
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Import every plug-in and show which ones fail.")
@SUITE_KEYS
def list_command(name: str | None, check: bool, assignments: tuple[str, ...]) -> None:
    """List methods, suites and other plug-ins, or describe one.

    With the NAME of a method: its fields, ablations and presets. With the NAME or the file of a suite, or with
    NAME:ARGUMENT: its options and tasks. With the NAME of a balancer: its settings.
    """
    from harness.cli.tables import describe_plugin, installed

    if not name:
        click.echo(installed(check))
        return
    click.echo(describe_plugin(name, keys_in(assignments, "suite")["suite"] if assignments else {}))


@click.command("keys")
def keys_command() -> None:
    """List the configuration keys: train.*, eval.* and others.

    The keys of a method or a balancer: harness list NAME.
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
@click.option("--tasks", metavar="A,B,…", help="Check only these tasks (default: all of the suite).")
@click.option("--model", help="Count tokens with the tokenizer of this model.")
@click.option("--max-length", type=int, help="With --model: maximum length in tokens (default: train.max_length).")
@click.option("--prompt", type=click.Choice(OPTIONS["prompt"].choices), help="With --model: prompt format (plain).")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a prompt.* or suite.* key, as in run; may be repeated.",
)
@JSON
def validate_command(
    suite: str,
    data: str | None,
    tasks: str | None,
    model: str | None,
    max_length: int | None,
    prompt: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check the data of a SUITE before training.

    SUITE is a name, NAME:ARGUMENT, or the file of your own suite.

    Prints the first targets of each task, and reports leaks between splits, duplicates, targets that are empty or do
    not parse, and sequences that would be truncated, with file and line; with --model also targets that its tokenizer
    cannot write. The exit status is 1 if there are errors, or if no prediction could be correct.
    """
    from harness.config.spec import TrainConfig
    from harness.config.suites import open_suite
    from harness.config.template import template_arguments
    from harness.data.splits import choose_tasks, locate_data
    from harness.data.validation import validate
    from harness.data.validation_report import render, to_json

    keys = keys_in(assignments, "prompt", "suite")
    opened = open_suite(suite, keys["suite"])
    located = locate_data(opened.suite, data or opened.data)
    instance, source = located.suite, located.source
    template = template_arguments(keys["prompt"], prompt)
    if prompt is not None and model is None:
        raise UsageError("--prompt decides how many tokens a prompt has: add --model with the name of a model")
    tokenizer = None
    if model is not None:
        from harness.models.loading import load_tokenizer

        tokenizer = load_tokenizer(model)
        max_length = max_length or TrainConfig().max_length
    chosen = None if tasks is None else choose_tasks(instance, tasks)
    report = validate(instance, source, tokenizer, max_length, tasks=chosen, style=prompt or "plain", template=template)
    report = replace(report, remarks=(*opened.notes, *report.remarks))
    if tokenizer is not None:
        from harness.pipeline.round_trip import with_round_trips

        report = with_round_trips(report, instance, source, tokenizer)
    click.echo(to_json(report) if as_json else render(report))
    if report.failed:
        sys.exit(1)


COMMANDS = (list_command, keys_command, runs_command, validate_command)
