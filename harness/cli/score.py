"""Commands about scores: `score`, `compare`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import JSON, PROTOCOL, SUITE_KEYS, keys_in, print_json
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.scoring.score import Scored
    from harness.store.record import Scores

LOG = logging.getLogger(__name__)


@click.command("score")
@click.argument("what", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.option("--suite", metavar="NAME|FILE", help="For a file: the suite that defines its tasks.")
@click.option(
    "--gold",
    type=click.Path(path_type=Path),
    help="For a file: the examples with their targets (default: the data of a suite's file).",
)
@click.option("--tasks", metavar="A,B,…", help="For a file: score only these tasks (default: all of the suite).")
@click.option(
    "--by-order",
    is_flag=True,
    help="For a file without ids: its lines are in the order of --gold, and none is missing.",
)
@SUITE_KEYS
@click.option("--data", help="For a run: the new location of its data, if they have moved.")
@PROTOCOL
@JSON
def score_command(what: Path, data: str | None, protocol: str | None, as_json: bool, **of_file: Any) -> None:
    """Score stored predictions, without a model.

    Scores the predictions of a RUN (or of RUN/evaluations/X) again, or a FILE of predictions that another program
    wrote, against --gold. Every protocol of the suite is computed.

    A FILE has JSON lines with sample_id and the prediction in target, predict, prediction, response or text.
    """
    from harness.scoring.score import to_json

    if what.is_dir():
        from harness.pipeline.rescore import rescore

        if of_file["tasks"] is not None or of_file["by_order"] or of_file["assignments"]:
            raise UsageError(
                "--tasks, --by-order and --set are for a file of predictions; a run has its own tasks, ids and suite"
            )
        again = rescore(what, data)
        scored, record = again.scored, again.record
    else:
        scored, record = _scored_file(what, **of_file), None
    if as_json:
        print_json(to_json(what if what.is_dir() else None, record, scored.scores))
    else:
        print_scores(scored.scores, protocol)


def _scored_file(
    what: Path, *, suite: str | None, gold: Path | None, tasks: str | None, by_order: bool, assignments: tuple[str, ...]
) -> Scored:
    from harness.config.suites import open_suite
    from harness.data.splits import choose_tasks
    from harness.scoring.prediction_file import score_file

    opened = None if suite is None else open_suite(suite, keys_in(assignments, "suite")["suite"])
    targets = gold or (None if opened is None or opened.data is None else Path(opened.data))
    if opened is None or targets is None:
        raise UsageError(f"{what} is not a run. To score a file of predictions, give --suite and --gold too")
    its_suite = opened.suite.at(opened.suite.pin(str(targets)))
    chosen = None if tasks is None else choose_tasks(its_suite, tasks)
    return score_file(its_suite, what, targets, tasks=chosen, in_order=by_order)


class _TwoGroups(click.Command):
    """Reads ``A… --with B…``: every name after --with belongs to the second group, not only the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--with" in args:
            at = args.index("--with")
            rest = args[at + 1 :]
            n = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
            args = args[:at] + [word for other in rest[:n] for word in ("--with", other)] + rest[n:]
        return super().parse_args(ctx, args)


@click.command("compare", cls=_TwoGroups)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--with", "others", multiple=True, required=True, metavar="RUNS...", type=click.Path(path_type=Path),
    help="Runs to compare with: the second group.",
)  # fmt: skip
@PROTOCOL
@JSON
def compare_command(runs: tuple[Path, ...], others: tuple[Path, ...], protocol: str | None, as_json: bool) -> None:
    """Test whether one method is better than another.

    Each group holds the finished runs of one method under several seeds. The difference is printed per task and for the
    mean, with a confidence interval, whether it is significant, and the minimum detectable difference.

    Example: harness compare runs/METHOD-* --with runs/OTHER-*
    """
    from harness.scoring.compare import compare, render, to_json
    from harness.store.run_directory import open_run

    comparison = compare([open_run(p) for p in runs], [open_run(p) for p in others], protocol)
    if as_json:
        print_json(to_json(comparison))
    else:
        click.echo(render(comparison))


def print_scores(scores: Scores, protocol: str | None) -> None:
    """Print the table of one protocol (default: the suite's first)."""
    from harness.scoring.score import render_scores

    click.echo(render_scores(scores, protocol or next(iter(scores.root))))


COMMANDS = (score_command, compare_command)
