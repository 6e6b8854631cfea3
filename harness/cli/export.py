"""The command that writes LoRAs and models; whatever is heavy is imported inside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from harness.errors import UsageError


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", help="whose share of the adapter")
@click.option("--all", "every", is_flag=True, help="one folder for each task, and the command that serves them all")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="a folder that does not exist yet")
@click.option("--merge", is_flag=True, help="a whole model in float32 instead of a LoRA")
@click.option("--pad/--no-pad", default=None, help="fill ranks up to one that vLLM takes (default: with --all)")
@click.option("--data", help="where the run's data are now")
@click.option("--model", help="where the run's base model is now")
@click.option("--json", "as_json", is_flag=True, help="print JSON for programs")
def export_command(
    run: Path,
    task: str | None,
    every: bool,
    out: Path,
    merge: bool,
    pad: bool | None,
    as_json: bool,
    **place: str | None,
) -> None:
    """Write a task's share of a finished RUN as a LoRA that peft and servers load, or as a whole model."""
    if every == (task is not None):
        raise UsageError("which task? Give either --task T or --all")
    if merge and (every or pad is not None):
        raise UsageError("--merge writes the whole model of one --task: leave --all and --pad out")
    from harness.export.from_run import export_all, export_task, export_whole

    data, model = place["data"], place["model"]
    if task is None:
        done = export_all(run, out, pad=pad is not False, data=data, model=model)
    elif merge:
        done = export_whole(run, task, out, data=data, model=model)
    else:
        done = export_task(run, task, out, pad=bool(pad), data=data, model=model)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(done), ensure_ascii=False, indent=1, default=str))
        return
    for lora in done.loras:
        click.echo(f"{lora.task}: {lora.folder} (rank {lora.rank})")
    if merge:
        click.echo(f"merged model: {done.folder}")
    if done.command:
        click.echo(f"serve them all from one base model:\n{done.command}")
