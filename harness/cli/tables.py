"""Tables for people: installed methods and suites, configuration keys, runs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from harness.errors import HarnessError
from harness.method import AdapterMethod
from harness.registry import (
    BACKENDS,
    BALANCERS,
    METHODS,
    SUITES,
    balancer_class,
    broken,
    method_class,
    plugins,
    suite_class,
)
from harness.reporting.numbers import MISSING, counted, or_missing, percent

if TYPE_CHECKING:
    from harness.store.run_directory import RunDirectory

_MEANING_WIDTH: Final = 70  # characters


def installed(check: bool) -> str:
    """Every method, suite, back end and balancer with its distribution; ``check`` imports all of them."""
    parts = []
    words = ((METHODS, "method"), (SUITES, "suite"), (BACKENDS, "back end"), (BALANCERS, "balancer"))
    for group, word in words:
        reasons = broken(group) if check else {}
        rows = []
        for name, plugin in plugins(group).items():
            shown = f"{name}:{argument}" if (argument := _argument(group, name)) else name
            state = "registered by " + " and ".join(plugin.clashes) if plugin.clashes else reasons.get(name, "ok")
            rows.append((shown, plugin.distribution, *((state,) if check else ())))
        parts.append(tabulate(rows, (word, "package", *(("state",) if check else ())), tablefmt="simple"))
    return "\n\n".join(parts)


def _argument(group: str, name: str) -> str | None:
    """What a suite's name is followed by; None without an argument, and for a plug-in that cannot be imported."""
    try:
        return suite_class(name).argument if group == SUITES else None
    except HarnessError:  # the state of the plug-in says why, with --check
        return None


def describe_plugin(name: str, options: Mapping[str, Any]) -> str:
    """One method's fields, ablations and presets, one suite's options (set to ``options``) and tasks, or a balancer."""
    from harness.config.suites import is_suite  # loads pydantic, which the list of everything does not need

    if name in plugins(SUITES) or (name not in plugins(METHODS) and is_suite(name)):
        return _about_suite(name, options)
    if name in plugins(BALANCERS) and name not in plugins(METHODS):
        balancer = balancer_class(name)
        return f"{name}: {balancer.summary}\n\n{fields(balancer, 'balance')}"
    cls = method_class(name)
    traits = [*sorted(cls.traits), *(["supports --from"] if issubclass(cls, AdapterMethod) and cls.continues else [])]
    parts = [f"{name}: {cls.summary}", f"traits: {', '.join(traits) or 'none'}", fields(cls, "method")]
    for word, table in (("ablation", cls.ablations), ("preset", cls.presets)):
        if table:
            rows = [(k, ", ".join(f"{f} = {v!r}" for f, v in changes.items())) for k, changes in table.items()]
            parts.append(tabulate(rows, (f"--{word}", "sets"), tablefmt="simple", disable_numparse=True))
    return "\n\n".join(parts)


def fields(cls: type[Any], section: str) -> str:
    """The keys of a method or suite with their defaults and, from its docstrings, their meanings."""
    default = cls()
    meanings = field_meanings(cls)
    rows = [
        (f"{section}.{f.name}", _value(getattr(default, f.name)), meanings.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]
    header, widths = ("key", "default", "meaning"), (None, 30, _MEANING_WIDTH)
    if not rows:
        return "no keys"
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True, maxcolwidths=list(widths))


def field_meanings(cls: type[Any]) -> dict[str, str]:
    """The meaning of each field of a dataclass, from its docstring and those of its base classes.

    It is what follows ``name:`` or ``name, other:`` at the beginning of a line or a sentence, up to the next one or the
    end of the paragraph; for a field that is not described so, the first sentence that names it.
    """
    names = [f.name for f in dataclasses.fields(cls)]
    word = "|".join(map(re.escape, names))
    described = re.compile(rf"(?:^|(?<=[.;] ))((?:(?:{word})(?:, | and ))*(?:{word})): ") if names else None
    found: dict[str, str] = {}
    for each in cls.__mro__:
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        for paragraph in text.split("\n\n") if described else ():
            for part in re.split(rf"\n(?=(?:(?:{word})(?:, | and ))*(?:{word}): )", paragraph):
                pieces = described.split(" ".join(part.split())) if described else []
                for keys, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
                    found = dict.fromkeys(re.split(", | and ", keys), meaning.strip()) | found
    sentences = re.split(r"(?<=[.;]) ", " ".join(inspect.cleandoc(cls.__doc__ or "").split()))
    for name in names:
        named = [sentence for sentence in sentences if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sentence)]
        found.setdefault(name, named[0] if named and cls.__doc__ else "")
    return {name: text[:1].upper() + text[1:] if text[1:2].isalpha() else text for name, text in found.items() if text}


def config_keys() -> str:
    """Every ``train.*``, ``eval.*``, ``prompt.*`` and ``balance.*`` key with default and meaning."""
    from harness.config.spec import EvalConfig, TrainConfig
    from harness.config.template import MEANING, PREFIX

    rows = [
        (f"{section}.{name}", _value(info.default), info.description or "")
        for section, config in (("train", TrainConfig), ("eval", EvalConfig))
        for name, info in config.model_fields.items()
    ]
    rows.append((f"{PREFIX}NAME", MISSING, MEANING))
    rows.append(("balance.NAME", MISSING, "a setting of the balancer of train.balance: harness list BALANCER"))
    return tabulate(rows, ("key", "default", "meaning"), tablefmt="simple", disable_numparse=True)


def runs_table(runs: list[RunDirectory]) -> str:
    """Every run with its state, its progress, and its mean score."""
    rows = []
    for run in runs:
        spec, scores, failure = run.spec(), run.scores(), run.failure()
        mean = next(iter(scores.root.values())).mean if scores else None
        progress = f"{failure.stage}: {failure.error}" if failure else _progress(run)
        model = spec.model.label if spec and spec.model else MISSING
        rows.append((run.name, run.state().value, progress, model, spec.seed if spec else MISSING, percent(mean)))
    return tabulate(
        rows, ("run", "state", "progress", "model", "seed", "mean"), tablefmt="simple", disable_numparse=True
    )


def _about_suite(name: str, options: Mapping[str, Any]) -> str:
    from harness.config.suites import open_suite

    if name in plugins(SUITES) and (cls := suite_class(name)).argument is not None:
        parts = [_title(name, cls), "" if cls.argument_options is None else fields(cls.argument_options, "suite")]
        return "\n\n".join(filter(None, [*parts, f"its tasks: harness list {name}:{cls.argument}"]))
    opened = open_suite(name, options)
    suite = opened.suite
    cls = type(suite)
    if not suite.tasks and suite.sample is not None:  # Such a suite finds its tasks in the data.
        suite = suite.at(str(suite.sample))
    rows = [
        (t.name, t.kind, ", ".join(t.protocols), next(iter(t.protocols.values())).headline)
        for t in suite.tasks.values()
    ]
    table = tabulate(rows, ("task", "kind", "protocols", "headline"), tablefmt="simple")
    keyed = cls.argument_options if cls.argument is not None else None if cls.reads else cls
    keys = "" if keyed is None else fields(keyed, "suite")
    return "\n\n".join(filter(None, [_title(opened.name, cls), keys, table, "\n".join(opened.notes)]))


def _title(name: str, cls: type[Any]) -> str:
    return f"{name}: {(cls.__doc__ or '').strip().splitlines()[0]}"


def _progress(run: RunDirectory) -> str:
    if (run.path / "record.json").exists():
        return MISSING
    predictions = sum(_lines(p) for p in (run.path / "predictions").glob("*.jsonl"))
    if predictions:
        return counted(predictions, "prediction")
    steps = sum(_lines(p) for p in (run.path / "train.jsonl", *run.path.glob("train/*.jsonl")) if p.exists())
    return counted(steps, "step") if steps else MISSING


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # tabulate takes the texts True and False for bool, and prints both as True
    return ",".join(map(str, value)) if isinstance(value, tuple) else or_missing(value)
