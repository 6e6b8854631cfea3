"""The command that measures training steps: `bench`."""

from __future__ import annotations

from typing import Any

import click

from harness.cli.options import JSON, print_json
from harness.errors import UsageError


@click.command("bench")
@click.option("--method", "methods", metavar="A,B,…", help="Methods to measure (default: all that train).")
@click.option("--model", help="A registered name, a hub id, a folder, or a .gguf file.")
@click.option("--shape", help="Instead of --model, random weights of this size: 135m (default), 1b or 7b.")
@click.option("--blocks", type=click.IntRange(min=1), help="With --shape: transformer blocks (4 on a CPU, else all).")
@click.option("--tokens-per-step", "tokens", type=click.IntRange(min=8), help="Default: 1024 on a CPU, 8192 on a GPU.")
@click.option("--tasks", default=8, show_default=True, type=click.IntRange(min=1), help="Number of tasks.")
@click.option(
    "--routes",
    default="tokens",
    show_default=True,
    type=click.Choice(["tokens", "rows"]),
    help="Route every token (as packed training does) or whole sequences.",
)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1), help="Measurements per method.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Number of CPU threads.")
@click.option("--device", help="Device to measure on (default: CUDA if it is available).")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Precision of the model.",
)
@click.option(
    "--launches",
    is_flag=True,
    help="Count kernel launches, waits and copies instead, on a CPU. Takes --method, --tasks and --json.",
)
@JSON
def bench_command(
    methods: str | None,
    model: str | None,
    shape: str | None,
    blocks: int | None,
    launches: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the cost of a method's training step.

    Each method is compared with PEFT's LoRA, with a plain loop over its experts, and with the frozen model, in one run.
    """
    names = [name.strip() for name in (methods or "").split(",") if name.strip()]
    if launches:
        if model or shape or blocks or options["tokens"] or options["device"]:
            raise UsageError(
                "--launches counts a small model of its own: leave out --model, --shape, --blocks, --tokens-per-step "
                "and --device"
            )
        _count(names, options["tasks"], as_json)
        return
    if model and (shape or blocks):
        raise UsageError("--model cannot be combined with --shape or --blocks: give one or the other")
    from harness.bench.measure import BenchPlan, bench, chosen
    from harness.bench.random_model import random_model
    from harness.bench.report import render, to_json
    from harness.models.loading import load_model

    classes = chosen(names)
    place: dict[str, Any] = {k: options.pop(k) for k in ("precision", "device")}
    loaded = load_model(model, **place) if model else random_model(shape or "135m", blocks, **place)
    options["tokens"] = options["tokens"] or (8192 if loaded.device.type == "cuda" else 1024)
    label = model or f"random {shape or '135m'}, {loaded.model.config.num_hidden_layers} blocks"
    report = bench(loaded, label, classes, BenchPlan(**options))
    if as_json:
        print_json(to_json(report))
    else:
        click.echo(render(report))


def _count(names: list[str], n_tasks: int, as_json: bool) -> None:
    from harness.bench.launch_report import render, to_json
    from harness.bench.launches import count_launches
    from harness.bench.measure import chosen

    report = count_launches(chosen(names), n_tasks)
    if as_json:
        print_json(to_json(report))
    else:
        click.echo(render(report))


COMMANDS = (bench_command,)
