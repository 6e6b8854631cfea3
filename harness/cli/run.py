"""Commands that use a model: `run`, `evaluate`, `try`, `lm-eval`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import DATA, EVAL_KEYS, JSON, KEYS, MODEL, OUT, PROTOCOL, print_json, run_options
from harness.cli.score import print_scores

if TYPE_CHECKING:
    from harness.pipeline.execute import RunOutcome

LOG = logging.getLogger(__name__)


@click.command("run")
@run_options
@KEYS
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of options and keys; the command line wins.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and its costs without training.")
@OUT
@PROTOCOL
@JSON
def run_command(
    assignments: tuple[str, ...],
    config: Path | None,
    out: Path,
    dry_run: bool,
    protocol: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a method on a suite, evaluate and score it.

    Run the same command again to resume after an interruption. A complete run is not repeated: its scores are printed.
    """
    from harness.config.request import typed
    from harness.pipeline.resolve import resolve

    resolved = resolve(typed(options, assignments, config), out=out)
    if dry_run:
        from harness.pipeline.dry_run import dry_run as make
        from harness.pipeline.dry_run import render, to_json

        plan = make(resolved)
        if plan is None:  # Rank 0 of torchrun prints it.
            return
        if as_json:
            print_json({"spec": resolved.spec.model_dump(mode="json"), "plan": to_json(plan)})
        else:
            click.echo(render(plan, resolved))
        return
    from harness.pipeline.execute import execute
    from harness.scoring.score import check_protocol

    check_protocol(resolved.suite, protocol)
    outcome = execute(resolved, out)
    if outcome is not None:
        _print_outcome(outcome, protocol, as_json)


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["dev", "train", "test"]), help="Split to evaluate (default: as in the run)."
)
@EVAL_KEYS
@DATA
@MODEL
@PROTOCOL
@JSON
def evaluate_command(
    run: Path,
    split: str | None,
    assignments: tuple[str, ...],
    data: str | None,
    model: str | None,
    protocol: str | None,
    as_json: bool,
) -> None:
    """Evaluate a finished RUN with other settings.

    Another split, other eval.* keys, or another inference setting of the method; nothing is trained. The result is
    stored in RUN/evaluations, and the run itself is not changed.
    """
    from harness.config.keys import parse_assignments
    from harness.config.suites import suite_of
    from harness.pipeline.evaluate import evaluate_again, to_json
    from harness.scoring.score import check_protocol
    from harness.store.finished import open_finished

    check_protocol(suite_of(open_finished(run).record.spec.suite), protocol)
    keys = parse_assignments(assignments) | ({"eval.split": split} if split else {})
    done = evaluate_again(run, keys, data=data, model=model)
    if done is None:  # Rank 0 of torchrun prints the result.
        return
    if as_json:
        print_json(to_json(done))
        return
    if not done.fresh:
        LOG.info("this evaluation is already complete: %s", done.directory.path)
    print_scores(done.scores, protocol)
    click.echo(f"evaluation: {done.directory.path}")


@click.command("try")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="Task of the run that the prompt belongs to.")
@DATA
@MODEL
def try_command(run: Path, task: str, data: str | None, model: str | None) -> None:
    """Generate a prediction for a prompt on stdin.

    The model and adapter of a finished RUN are used with its own settings: harness try RUN --task T < FILE
    """
    from harness.pipeline.try_prompt import try_prompt

    prompt = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    click.echo(try_prompt(run, task, prompt, data, model))


@click.command("lm-eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", required=True, metavar="A,B,…", help="Names of lm-eval tasks.")
@click.option("--include-path", type=click.Path(path_type=Path, exists=True), help="Folder of your own task files.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents per task (default: all).")
@click.option("--route", metavar="TASK", help="Task of the run whose weights are used, for methods with routing.")
@DATA
@MODEL
@JSON
def lm_eval_command(run: Path, tasks: str, data: str | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Evaluate a finished RUN on lm-eval tasks.

    The base model is evaluated next to it, which shows what fine-tuning has changed in general ability.
    """
    from harness.integrations.lm_eval_tasks import evaluate_tasks, render

    report = evaluate_tasks(run, [t.strip() for t in tasks.split(",") if t.strip()], data=data, model=model, **options)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(render(report))


def _print_outcome(outcome: RunOutcome, protocol: str | None, as_json: bool) -> None:
    from harness.scoring.score import to_json

    if as_json:
        print_json(to_json(outcome.run.path, outcome.record, outcome.scores))
        return
    if not outcome.fresh:
        LOG.info("this run is already complete: %s", outcome.run.path)
    if outcome.record.sample:
        click.echo(
            f"These scores are for the embedded sample, not for {outcome.record.spec.suite.name} itself: they are not "
            "benchmark results."
        )
    print_scores(outcome.scores, protocol)
    click.echo(f"run: {outcome.run.path}")


COMMANDS = (run_command, evaluate_command, try_command, lm_eval_command)
