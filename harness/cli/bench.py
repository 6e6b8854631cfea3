"""The command that measures training steps; whatever is heavy is imported inside."""

from __future__ import annotations

import json
from typing import Any

import click

from harness.errors import UsageError


@click.command("bench")
@click.option("--method", "methods", help="comma-separated names (default: all that train)")
@click.option("--model", help="a registered name, a hub id, a folder, or a .gguf file")
@click.option("--shape", help="in place of --model, random weights: 135m (default), 1b or 7b")
@click.option("--blocks", type=click.IntRange(min=1), help="of --shape (default: 4 on a CPU, else all)")
@click.option("--tokens-per-step", "tokens", type=click.IntRange(min=8), help="default: 1024 on a CPU, else 8192")
@click.option("--tasks", default=8, show_default=True, type=click.IntRange(min=1), help="how many")
@click.option(
    "--routes",
    default="tokens",
    show_default=True,
    type=click.Choice(["tokens", "rows"]),
    help="packed training routes tokens",
)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="on a CPU")
@click.option("--device", help="default: CUDA where there is one")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16", "fp16"]))
@click.option("--json", "as_json", is_flag=True, help="print JSON for programs")
def bench_command(
    methods: str | None,
    model: str | None,
    shape: str | None,
    blocks: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What a method's training step costs, beside PEFT's LoRA, a loop over its experts, and the frozen model."""
    if model and (shape or blocks):
        raise UsageError("--model and --shape or --blocks: give one or the other")
    from harness.bench.measure import Plan, bench, chosen
    from harness.bench.random_model import random_model
    from harness.bench.report import render, to_json
    from harness.models.loading import load_model

    found = chosen([name.strip() for name in (methods or "").split(",") if name.strip()])
    place: dict[str, Any] = {k: options.pop(k) for k in ("precision", "device")}
    loaded = load_model(model, **place) if model else random_model(shape or "135m", blocks, **place)
    options["tokens"] = options["tokens"] or (8192 if loaded.device.type == "cuda" else 1024)
    label = model or f"random {shape or '135m'}, {loaded.model.config.num_hidden_layers} blocks"
    report = bench(loaded, label, found, Plan(**options), lambda line: click.echo(f"note: {line}", err=True))
    click.echo(json.dumps(to_json(report), ensure_ascii=False, indent=1) if as_json else render(report))
