"""The command `affinity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import JSON, KEYS, OUT, print_json, run_options
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.store.affinity import Affinity, Way

_NOT_HERE = ("clusters", "from", "backend", "seed")


@click.command("affinity")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option(
    "--way",
    "ways",
    multiple=True,
    type=click.Choice(["updates", "gradients", "lookahead", "transfer"]),
    help="How affinity is measured; may be repeated (default: what the runs have).",
)
@click.option("--seeds", default="0", show_default=True, metavar="A,B,…", help="Without RUN: the seeds to train.")
@click.option("--min-size", default=1, show_default=True, type=click.IntRange(min=1), help="Fewest tasks of a cluster.")
@click.option("--max-size", type=click.IntRange(min=1), help="Most tasks of a cluster (default: no limit).")
@click.option(
    "--value",
    default="sum",
    show_default=True,
    type=click.Choice(["sum", "mean"]),
    help="A task's affinity from its cluster: the sum or the mean over the other tasks.",
)
@click.option("--overlap", is_flag=True, help="Also find groups that may overlap.")
@run_options
@KEYS
@OUT
@JSON
def affinity_command(
    runs: tuple[Path, ...],
    ways: tuple[Way, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how tasks affect each other, and find clusters.

    RUN: finished runs of one method that differ only in their seeds; runs of two methods give two matrices and how far
    they agree. Without RUN, the runs are trained first, by the options of `harness run` and --seeds.

    \b
    updates    cosine of the tasks' updates of the weights; nothing is trained
    gradients  first-order TAG, measured while a run trains with train.affinity=true
    lookahead  TAG with lookahead, measured with train.affinity=lookahead: slow
    transfer   scores of each task with the weights of another, on dev: T x T evaluations

    Tables, pictures and files for --clusters are stored in OUT/affinity.
    """
    from harness.leaderboard.affinity import agreements, render_agreements

    choices = {name: options.pop(name) for name in ("min_size", "max_size", "value", "overlap")}
    if runs:
        _check_no_training(options)
        found = _of_runs(list(runs), ways, choices, options)
    else:
        found = _of_runs(_train(ways, out, options), ways, choices, {**options, "assignments": ()})
    folders = [_store(out, affinity) for affinity in found]
    compared = agreements(found)
    if as_json:
        print_json(
            {
                "affinities": [
                    {"directory": str(folder), **affinity.model_dump(mode="json")}
                    for folder, affinity in zip(folders, found, strict=True)
                ],
                "agreement": [vars(one) for one in compared],
            }
        )
        return
    for folder in folders:
        click.echo((folder / "affinity.md").read_text("utf-8"))
    if compared:
        click.echo(render_agreements(compared))
    for folder in folders:
        click.echo(f"affinity: {folder}")


def _check_no_training(options: dict[str, Any]) -> None:
    """Raises UsageError for an option that only a training uses."""
    given = [name for name, value in options.items() if value is not None and name not in ("data", "model", "seeds")]
    given = [name for name in given if name != "assignments"]
    if given:
        raise UsageError(
            f"--{given[0]} is for training: give either finished runs, or --method and --suite without RUN"
        )


def _of_runs(
    runs: list[Path], ways: tuple[Way, ...], choices: dict[str, Any], options: dict[str, Any]
) -> list[Affinity]:
    """The matrix of each way, from the runs of each method. Raises: UsageError if nothing can be measured."""
    from harness.cli.options import keys_in
    from harness.pipeline.affinity import Located, measure, ways_of
    from harness.pipeline.affinity_matrix import AffinityChoices, without_seed
    from harness.store.finished import open_finished

    keys = {f"eval.{name}": value for name, value in keys_in(options["assignments"], "eval")["eval"].items()}
    where = Located(data=options.get("data"), model=options.get("model"), keys=keys)
    how = AffinityChoices(
        smallest=choices["min_size"], largest=choices["max_size"], value=choices["value"], overlap=choices["overlap"]
    )
    groups: dict[bytes, list[Path]] = {}
    for run in runs:
        groups.setdefault(without_seed(open_finished(run).record.spec), []).append(run)
    found = []
    for paths in groups.values():
        offered = ways_of(paths[0])
        able = [*offered, "transfer"] if "updates" in offered else offered
        wanted = [way for way in ways if way in able or len(groups) == 1] if ways else offered
        found += [measure(paths, way, how, where) for way in wanted]
    if not found:
        raise UsageError(
            "these runs have measured no affinity, and their tasks have no weights of their own: train with "
            "--set train.affinity=true, or give runs of a method with an adapter for each task"
        )
    return found


def _train(ways: tuple[Way, ...], out: Path, options: dict[str, Any]) -> list[Path]:
    """The folders of the runs of all seeds, which are trained or resumed."""
    from harness.config.request import Request, typed
    from harness.pipeline.execute import execute
    from harness.pipeline.resolve import resolve

    if not options.get("method") or not options.get("suite"):
        raise UsageError("give finished runs, or --method and --suite to train them. See: harness affinity --help")
    for name in _NOT_HERE:
        if options.get(name) is not None:
            raise UsageError(
                f"--{name} does not apply to harness affinity" + ("; use --seeds" if name == "seed" else "")
            )
    asked = typed({k: v for k, v in options.items() if k not in ("seeds", "assignments")}, options["assignments"], None)
    way = "lookahead" if "lookahead" in ways else "gradients"
    keys = asked.keys if ways and not {"gradients", "lookahead"} & set(ways) else {"train.affinity": way, **asked.keys}
    paths = []
    for seed in _seeds(options["seeds"]):
        outcome = execute(resolve(Request(options={**asked.options, "seed": seed}, keys=keys), out=out), out)
        if outcome is not None:
            paths.append(outcome.run.path)
    return paths


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"--seeds {text}: give different whole numbers separated by commas, such as 0,1,2")
    return [int(part) for part in parts]


def _store(out: Path, affinity: Affinity) -> Path:
    """Write affinity.json with its page, files of clusters and pictures. Returns: the folder."""
    from harness.leaderboard.affinity import affinity_pictures, cluster_files, render_affinity
    from harness.pipeline.affinity_matrix import write_affinity
    from harness.store.files import write_atomic

    folder = write_affinity(out, affinity)
    files = {
        "affinity.md": render_affinity(affinity).encode(),
        **cluster_files(affinity),
        **affinity_pictures(affinity),
    }
    for name, content in files.items():
        write_atomic(folder / name, content)
    return folder


COMMANDS = (affinity_command,)
