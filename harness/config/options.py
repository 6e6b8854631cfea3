"""The options of a run: one table for the command line, ``[run]`` in configuration files, and leaderboard files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option. choices: the values that it may have; empty where any value of ``type`` may be given."""

    help: str
    type: type[str] | type[int] = str
    choices: tuple[str, ...] = ()


OPTIONS: Final[Mapping[str, Option]] = {
    "method": Option(help="method to train or evaluate; see: harness list"),
    "suite": Option(help="suite of tasks; see: harness list"),
    "model": Option(help="base model: a registered name, a hub id, a folder, or a .gguf file (default: the suite's)"),
    "data": Option(help="folder, file or hub data set with the examples (default: the embedded sample)"),
    "tasks": Option(help="comma-separated task names (default: all tasks of the suite)"),
    "ablation": Option(help="the method with one named change; see: harness list METHOD"),
    "preset": Option(help="hyper-parameters of the method's paper; see: harness list METHOD"),
    "budget": Option(help="largest rank that the method may use: active:R or stored:R"),
    "clusters": Option(help="one adapter per cluster of tasks: none (default), kind, or a TOML file"),
    "seed": Option(help="random seed (default: 0)", type=int),
    "shots": Option(help="number of in-context examples from the train split (default: 0)", type=int),
    "prompt": Option(help="prompt format: plain (default) or the model's chat template", choices=("plain", "chat")),
    "backend": Option(
        help="what generates the predictions: hf (default), or a back end such as lm-eval:NAME,key=value"
    ),
    "from": Option(help="initialise from a finished run, for methods that support it; see: harness list"),
}
