"""The options of a run: one table for the command line, ``[run]`` in configuration files, and leaderboard files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option. choices: the values that it may have; empty if any value of ``type`` may be given."""

    help: str
    type: type[str] | type[int] = str
    choices: tuple[str, ...] = ()
    metavar: str | None = None


OPTIONS: Final[Mapping[str, Option]] = {
    "method": Option(help="Method to train; `harness list` shows all.", metavar="NAME"),
    "suite": Option(
        help="Suite of tasks: a name (`harness list` shows all), one with an argument such as lm-eval:GROUP, or the "
        "file of your own.",
        metavar="NAME|FILE",
    ),
    "model": Option(
        help="Base model: a registered name, a hub id, a folder, or a .gguf file (default: the suite's toy model)."
    ),
    "data": Option(
        help="Data of the suite: a folder, a file or a hub data set (default: the sample, or a suite file's own)."
    ),
    "tasks": Option(help="Tasks to use (default: all of the suite).", metavar="A,B,…"),
    "ablation": Option(help="Ablation of the method; `harness list METHOD` shows them.", metavar="NAME"),
    "preset": Option(help="Settings of the method's paper; `harness list METHOD` shows them.", metavar="NAME"),
    "budget": Option(help="Rank that the method may use: active:R or stored:R.", metavar="KIND:RANK"),
    "clusters": Option(
        help="Train one adapter per cluster of tasks: none (default), kind, affinity:K[:WAY|:FILE] (the best K "
        "clusters of harness affinity), random:K:DRAW, or a TOML file."
    ),
    "seed": Option(help="Random seed (default 0).", type=int),
    "shots": Option(help="In-context examples from the train split (default 0).", type=int),
    "prompt": Option(help="Prompt format: plain (default), or the model's chat template.", choices=("plain", "chat")),
    "backend": Option(help="Inference back end: hf (default), or another one such as lm-eval:NAME,key=value,…"),
    "from": Option(
        help="Finished run to initialise from; `harness list METHOD` shows whether a method supports it.", metavar="RUN"
    ),
}
