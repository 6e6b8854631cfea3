"""The command line. Every command is a few lines; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from harness.cli.bench import bench_command
from harness.cli.board import COMMANDS
from harness.cli.export import export_command
from harness.errors import HarnessError, UsageError

OUT = click.option("--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="folder of runs")
JSON = click.option("--json", "as_json", is_flag=True, help="print JSON for programs")
DATA = click.option("--data", help="where the run's data are now")
MODEL = click.option("--model", help="where the run's base model is now")
PROTOCOL = click.option("--protocol", help="scoring rule that is shown (default: the suite's first)")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mtlora-harness")
def cli() -> None:
    """Train and compare multi-task LoRA methods on one frozen language model."""


@cli.command("run")
@click.option("--method", help="see: harness list")
@click.option("--suite", help="see: harness list")
@click.option("--model", help="tiny (default), a hub id, a folder, or a .gguf file")
@click.option("--data", help="folder, file or hub data set (default: the embedded sample)")
@click.option("--tasks", help="comma-separated task names (default: all)")
@click.option("--ablation", help="the method with a named change; see: harness list METHOD")
@click.option("--preset", help="settings of the method's paper; see: harness list METHOD")
@click.option("--budget", help="rank that the method may use: active:R or stored:R")
@click.option("--clusters", help="one adapter per cluster of tasks: none (default), kind, or a TOML file")
@click.option("--seed", type=int, help="default 0")
@click.option("--shots", type=int, help="in-context examples from the train split (default 0)")
@click.option("--prompt", type=click.Choice(["plain", "chat"]), help="plain (default) or the model's chat template")
@click.option("--backend", help="hf (default), or a model of lm-eval: lm-eval:NAME,key=value,…")
@click.option("--from", help="a finished run to go on from: add, drop or further train domains of moa")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="any key; see: harness keys")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file; the command line wins over it")
@click.option("--dry-run", is_flag=True, help="show the resolved run and its costs, train nothing")
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
    """Train a method on a suite, evaluate it, score it. The same command again resumes."""
    from harness.config import request as inputs
    from harness.pipeline.resolve import resolve

    request = inputs.typed(options, assignments, config)
    resolved = resolve(request)
    _notes(resolved.notices)
    if dry_run:
        from harness.pipeline.dry_run import dry_run as make
        from harness.pipeline.dry_run import render, to_json

        plan = make(resolved)
        if as_json:
            _print_json({"spec": resolved.spec.model_dump(mode="json"), "plan": to_json(plan)})
        else:
            click.echo(render(plan, resolved))
        return
    from harness.pipeline.execute import execute

    outcome = execute(resolved, out, inputs.to_json(request), _note)
    if outcome is not None:
        _show(outcome, protocol, as_json)


@cli.command("list")
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="import everything and show what is broken")
def list_command(name: str | None, check: bool) -> None:
    """Methods and suites; with NAME its keys, ablations, presets or tasks."""
    from harness.cli.tables import about, installed

    click.echo(about(name) if name else installed(check))


@cli.command("keys")
def keys_command() -> None:
    """Every train.* and eval.* key. A method's own keys: harness list METHOD."""
    from harness.cli.tables import config_keys

    click.echo(config_keys())


@cli.command("runs")
@OUT
def runs_command(out: Path) -> None:
    """What exists, in which state, and how far it is."""
    from harness.cli.tables import runs_table
    from harness.store.run_directory import find_runs

    runs = find_runs(out)
    click.echo(runs_table(runs) if runs else f"no runs in {out}. Make one: harness run --help")


@cli.command("score")
@click.argument("what", type=click.Path(path_type=Path))
@click.option("--suite", help="for a file: the suite whose form it has")
@click.option("--gold", type=click.Path(path_type=Path), help="for a file: the rows with their answers")
@click.option("--data", help="for a run: where its data are now")
@PROTOCOL
@JSON
def score_command(
    what: Path, suite: str | None, gold: Path | None, data: str | None, protocol: str | None, as_json: bool
) -> None:
    """Score a run (or RUN/evaluations/X) again, or a FILE of predictions against --gold. All protocols, no model."""
    from harness.scoring.score import to_json

    if what.is_dir():
        from harness.pipeline.rescore import rescore

        scored, record = rescore(what, data)
    else:
        from harness.registry import suite_class
        from harness.scoring.prediction_file import score_file

        if suite is None or gold is None:
            raise UsageError(f"{what} is no run: to score a file of predictions give --suite and --gold too")
        scored, record = score_file(suite_class(suite)(), what, gold), None
    if as_json:
        _print_json(to_json(what if what.is_dir() else None, record, scored.scores))
    else:
        _table(scored.scores, protocol)


@cli.command("validate")
@click.argument("suite")
@click.option("--data", help="folder, file or hub data set (default: the embedded sample)")
@click.option("--model", help="count tokens with this model's tokenizer")
@click.option("--max-length", type=int, help="of a row, in tokens; with --model (default: train.max_length)")
@JSON
def validate_command(suite: str, data: str | None, model: str | None, max_length: int | None, as_json: bool) -> None:
    """Look for what would spoil a run: leaks, duplicates, targets that do not parse, rows that are cut."""
    from harness.config.spec import TrainConfig
    from harness.data.rows import locate_data
    from harness.data.validation import validate
    from harness.data.validation_report import render, to_json
    from harness.registry import suite_class

    made = suite_class(suite)()
    source, _ = locate_data(made, data)
    tokenizer = None
    if model is not None:
        from harness.models.loading import load_tokenizer

        tokenizer = load_tokenizer(model)
        max_length = max_length or TrainConfig().max_length
    report = validate(made, source, tokenizer, max_length)
    click.echo(to_json(report) if as_json else render(report))
    if report.errors:
        sys.exit(1)


class _TwoGroups(click.Command):
    """``A… --with B…``: every name after --with is of the second group, not only the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--with" in args:
            at = args.index("--with")
            rest = args[at + 1 :]
            n = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
            args = args[:at] + [word for other in rest[:n] for word in ("--with", other)] + rest[n:]
        return super().parse_args(ctx, args)


@cli.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", type=click.Choice(["dev", "train", "test"]), help="default: the run's own")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="eval.*, or a method's inference field")
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
    """Evaluate a finished RUN again: another split or inference setting, no training. The run stays as it is."""
    from harness.config.keys import parse_assignments
    from harness.pipeline.evaluate import evaluate_again, to_json

    keys = parse_assignments(assignments) | ({"eval.split": split} if split else {})
    done = evaluate_again(run, keys, _note, data=data, model=model)
    if as_json:
        _print_json(to_json(done))
        return
    if not done.fresh:
        _note("all done before")
    _table(done.scores, protocol)
    click.echo(f"evaluation: {done.directory.path}")


@cli.command("try")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="whose share of the adapter answers")
@DATA
@MODEL
def try_command(run: Path, task: str, data: str | None, model: str | None) -> None:
    """Answer a prompt from standard input as a finished RUN would: harness try RUN --task T < FILE."""
    from harness.pipeline.try_prompt import ask

    prompt = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    asked = ask(run, task, prompt, data, model)
    _notes(asked.notes)
    click.echo(asked.text)


@cli.command("lm-eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", required=True, help="comma-separated names of lm-eval's tasks")
@click.option("--include-path", type=click.Path(path_type=Path, exists=True), help="folder of task files of your own")
@click.option("--limit", type=click.IntRange(min=1), help="documents of each task (default all)")
@click.option("--route", help="the run's task whose share of the adapter is used; needed where the method has routes")
@DATA
@MODEL
@JSON
def lm_eval_command(run: Path, tasks: str, data: str | None, model: str | None, as_json: bool, **options: Any) -> None:
    """Score a finished RUN's model and its base on any tasks of lm-eval: what was kept, what was forgotten."""
    from harness.integrations.lm_eval_tasks import evaluate_tasks, render

    report = evaluate_tasks(run, [t.strip() for t in tasks.split(",") if t.strip()], data=data, model=model, **options)
    if as_json:
        _print_json(report.to_json())
    else:
        click.echo(render(report))


@cli.command("compare", cls=_TwoGroups)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--with", "others", multiple=True, required=True, type=click.Path(path_type=Path), help="the other group")
@PROTOCOL
@JSON
def compare_command(runs: tuple[Path, ...], others: tuple[Path, ...], protocol: str | None, as_json: bool) -> None:
    """Is one method better than another? RUNS against --with RUNS, each group one method under several seeds."""
    from harness.scoring.compare import compare, render, to_json
    from harness.store.run_directory import open_run

    found = compare([open_run(p) for p in runs], [open_run(p) for p in others], protocol)
    if as_json:
        _print_json(to_json(found))
    else:
        click.echo(render(found))


for _command in (*COMMANDS, bench_command, export_command):
    cli.add_command(_command)


def _show(outcome: Any, protocol: str | None, as_json: bool) -> None:
    from harness.scoring.score import to_json

    if as_json:
        _print_json(to_json(outcome.run.path, outcome.record, outcome.scores))
        return
    if not outcome.fresh:
        _note(f"all done before: {outcome.run.path}")
    if outcome.record.sample:
        click.echo(
            f"This is the embedded sample, not {outcome.record.spec.suite.name} itself: no result on any benchmark."
        )
    _table(outcome.scores, protocol)
    click.echo(f"run: {outcome.run.path}")


def _table(scores: Any, protocol: str | None) -> None:
    from harness.scoring.score import render_scores

    click.echo(render_scores(scores, protocol or next(iter(scores.root))))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=1))


def _note(line: str) -> None:
    if _speaks():
        click.echo(f"note: {line}", err=True)


def _speaks() -> bool:
    """Of the processes that torchrun starts, the first one."""
    return os.environ.get("RANK", "0") == "0"


def _notes(lines: tuple[str, ...]) -> None:
    for line in lines:
        _note(line)


def _check_own_packages() -> None:
    """Refuse to start on somebody else's ``methods`` or ``tasks``: their names are common."""
    home = Path(__file__).resolve().parents[2]
    for name in ("methods", "tasks"):
        spec = find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != home:
            raise UsageError(
                f"the package {name!r} comes from {origin}, not from {home}: harness needs an environment of its own. "
                "Install it in a fresh virtual environment, and start it by its command, not by python -m"
            )


def main() -> None:
    """The console script: errors as one line on stderr, exit status 0 done, 1 failed, 2 wrong use."""
    try:
        _check_own_packages()
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("stopped; what was finished is kept. Give the same command again to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except HarnessError as error:
        if _speaks() or not getattr(error, "said_by_first", False):
            click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
