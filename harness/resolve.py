"""From what a user typed to a RunSpec in which every choice is made."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.backend import Backend, identify_backend, parse_backend
from harness.clusters import group_tasks, within
from harness.data import Rows, group, without_targets
from harness.errors import DataError, UsageError, unknown
from harness.fingerprint import file_sha256
from harness.folders import absolute, fingerprints
from harness.method import Budget, Method, Trait
from harness.model import identify
from harness.parent import going_on
from harness.registry import method_class, suite_class
from harness.spec import LOCAL, DataSpec, EvalConfig, MethodSpec, RunSpec, SuiteSpec, TrainConfig
from harness.task import Suite

_OPTIONS = {
    "method": str,
    "suite": str,
    "model": str,
    "data": str,
    "tasks": str,
    "ablation": str,
    "preset": str,
    "prompt": str,
    "budget": str,
    "seed": int,
    "shots": int,
    "backend": str,
    "clusters": str,
    "from": str,
}
_SECTIONS = ("train", "eval", "method", "suite")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for: options by name (``_OPTIONS``) and keys such as ``train.lr``, unparsed or parsed."""

    options: Mapping[str, Any]
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run with every choice made, and the objects that the spec names. parent: the run that it goes on from."""

    spec: RunSpec
    method: Method
    suite: Suite
    source: str
    model: str | None
    rows: Rows  # of the split that is evaluated
    notices: tuple[str, ...]
    parent: Path | None = None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """``--set key=value`` pairs; values as in TOML, bare words as strings, ``none`` as None."""
    keys = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {text}: expected key=value, for example --set train.lr=3e-4")
        keys[key.strip()] = parse_value(value.strip())
    return keys


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read_config(path: Path) -> Request:
    """A TOML file: the options in a table ``[run]``, keys in ``[train]``, ``[eval]``, ``[method]``, ``[suite]``."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid TOML: {error}") from error
    options = tables.pop("run", {})
    keys: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in _SECTIONS or not isinstance(table, dict):
            raise unknown("table", section, ["run", *_SECTIONS], see="README, section Configuration")
        keys |= {f"{section}.{name}": value for name, value in table.items()}
    for name in options:
        if name not in _OPTIONS:
            raise unknown("option", name, _OPTIONS, see="harness run --help")
    return Request(options=options, keys=keys)


def merge(low: Request, high: Request) -> Request:
    """Two requests; what ``high`` says wins."""
    given = {k: v for k, v in high.options.items() if v is not None}
    return Request(options={**low.options, **given}, keys={**low.keys, **high.keys})


def resolve(request: Request) -> Resolved:
    """Make every choice.

    Raises: UsageError, DataError or ModelError, each naming the wrong thing and the remedy.
    """
    options = {**dict.fromkeys(_OPTIONS), **request.options}
    for needed in ("method", "suite"):
        if not options[needed]:
            raise UsageError(f"--{needed} is missing. See: harness list")
    cls = method_class(options["method"])
    sections = by_section(with_preset(request.keys, cls, options["preset"]))
    budget = options["budget"] or sections.pop("", {}).get("budget")
    suite = build(suite_class(options["suite"]), sections["suite"], "suite")
    notices: list[str] = []
    train = section_config(TrainConfig, "train", sections["train"])
    evaluation = section_config(EvalConfig, "eval", sections["eval"])
    source, data = locate_data(suite, options["data"])
    evaluation, rows = _rows(suite, source, evaluation, options["tasks"], notices)
    tasks = list(rows.by_task)
    clusters = group_tasks(options["clusters"], suite, tasks)
    sizes = [len(tasks)] if clusters is None else [len(of) for of in clusters.groups.values()]
    method = absolute(choose_method(cls, sections["method"], options["ablation"], budget, sizes))
    if clusters is not None and Trait.TRAINS not in method.traits:
        raise UsageError(f"{options['method']} trains nothing that clusters could have of their own: no --clusters")
    backend = parse_backend(options["backend"])
    model = _model(method, options, backend)
    if model == "tiny" and not data.sample:
        notices.append("--model tiny is a toy made for the embedded sample; on real data give a real model")
    spec = _spec(
        method=_method_spec(method, options),
        suite=SuiteSpec(
            name=options["suite"],
            version=suite.version,
            tasks={t: suite.tasks[t].version for t in tasks},
            fields=changed(suite, type(suite)()),
        ),
        model=identify_backend(backend) if backend else identify(model) if model else None,
        data=data,
        train=train if Trait.TRAINS in method.traits else data_only(train),
        eval=evaluation,
        budget=str(parse_budget(budget)) if budget else None,
        clusters=clusters,
        backend=options["backend"] or LOCAL,
        **{k: options[k] for k in ("prompt", "shots", "seed") if options[k] is not None},
    )
    made = Resolved(
        spec=spec, method=method, suite=suite, source=source, model=model, rows=rows, notices=tuple(notices)
    )
    return going_on(made, options["from"])


def build(cls: type[T], values: Mapping[str, Any], section: str) -> T:
    """A method or suite from its keys. Raises: UsageError for an unknown field or a wrong value."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown("key", f"{section}.{name}", [f"{section}.{k}" for k in known], see="harness list")
    default = cls()
    # A comma list is kind to people: --set suite.kinds=NLI,MRC
    lists = {k: tuple(v.split(",")) for k, v in values.items() if isinstance(v, str) and _is_tuple(default, k)}
    try:
        return TypeAdapter(cls).validate_python({**values, **lists})
    except ValidationError as error:
        raise _wrong(error, section, values) from error


def _is_tuple(value: Any, name: str) -> bool:
    return isinstance(getattr(value, name), tuple)


def parse_budget(text: str) -> Budget:
    """``active:16`` or ``stored:64``."""
    kind, _, rank = text.partition(":")
    if kind not in ("active", "stored") or not rank.isdigit() or int(rank) < 1:
        raise UsageError(f"budget {text!r}: expected active:R or stored:R with a whole number R, such as active:16")
    return Budget(kind=kind, rank=int(rank))


def _method_spec(method: Method, options: Mapping[str, Any]) -> MethodSpec:
    return MethodSpec(
        name=options["method"],
        version=method.version,
        ablation=options["ablation"],
        preset=options["preset"],
        fields=changed(method, type(method)()),
        resolved=dataclasses.asdict(method),
        files=fingerprints(method),
    )


def _spec(**fields: Any) -> RunSpec:
    try:
        return RunSpec(**fields)
    except ValidationError as error:
        raise _wrong(error, "", fields) from error


def section_config(cls: type[T], section: str, values: Mapping[str, Any]) -> T:
    """``train.*`` or ``eval.*`` keys. Raises: UsageError for an unknown key or a wrong value."""
    known = list(cls.model_fields)  # type: ignore[attr-defined]
    for name in values:
        if name not in known:
            raise unknown("key", f"{section}.{name}", [f"{section}.{k}" for k in known], see="harness keys")
    try:
        return cls(**values)
    except ValidationError as error:
        raise _wrong(error, section, values) from error


def _wrong(error: ValidationError, section: str, values: Mapping[str, Any]) -> UsageError:
    first = error.errors()[0]
    name = ".".join(str(p) for p in first["loc"])
    key = f"{section}.{name}" if section and name else section or name
    given = first.get("input", values)
    return UsageError(f"{key} = {given!r}: {first['msg'].removeprefix('Value error, ')}")


def with_preset(keys: Mapping[str, Any], cls: type[Method], preset: str | None) -> dict[str, Any]:
    """The preset's keys, under those that were given. Raises: UsageError for an unknown preset."""
    if preset is None:
        return dict(keys)
    if preset not in cls.presets:
        raise unknown("preset", preset, cls.presets, see="harness list")
    return {**cls.presets[preset], **keys}


def by_section(keys: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``train.lr`` as ``["train"]["lr"]``; ``budget`` in "". Raises: UsageError for an unknown key."""
    sections: dict[str, dict[str, Any]] = {s: {} for s in ("", *_SECTIONS)}
    for key, value in keys.items():
        section, dot, name = key.partition(".")
        if key == "budget":
            sections[""]["budget"] = value
        elif not dot or section not in _SECTIONS:
            known = [f"train.{k}" for k in TrainConfig.model_fields] + [f"eval.{k}" for k in EvalConfig.model_fields]
            raise unknown("key", key, [*known, "budget", "method.", "suite."], see="harness keys")
        else:
            sections[section][name] = value
    return sections


def choose_method(
    cls: type[Method], values: Mapping[str, Any], ablation: str | None, budget: str | None, sizes: Sequence[int]
) -> Method:
    """The method with its fields, ablation and budget; ``sizes``: how many tasks each cluster has."""
    changes: Mapping[str, Any] = {}
    if ablation is not None:
        if ablation not in cls.ablations:
            raise unknown("ablation", ablation, cls.ablations, see="harness list")
        changes = cls.ablations[ablation]
        both = sorted(set(changes) & set(values))
        if both:
            raise UsageError(f"--ablation {ablation} sets method.{both[0]} itself: leave it out of --set")
    method = build(cls, {**values, **changes}, "method")
    return within(method, parse_budget(budget), sizes) if budget and Trait.TRAINS in method.traits else method


def _model(method: Method, options: Mapping[str, Any], backend: Backend | None) -> str | None:
    """The model that is loaded here; None where nothing is, because the method or a back end answers."""
    if backend is None:
        return None if Trait.ANSWERS in method.traits else options["model"] or "tiny"
    if {Trait.TRAINS, Trait.ANSWERS} & method.traits:
        raise UsageError(
            f"--backend {options['backend']} generates with a model of its own, and --method {options['method']} "
            "cannot use it. Give a method that neither trains nor answers by itself, such as no_finetune"
        )
    if options["model"]:
        raise UsageError(f"--model and --backend {options['backend']}: the back end names its model, leave --model out")
    return None


def data_only(train: TrainConfig) -> TrainConfig:
    """What untrained methods use of the keys: rows (answers, in-context examples, length limits), and nothing else."""
    return TrainConfig(per_task=train.per_task, max_length=train.max_length, precision=train.precision)


def changed(value: Any, default: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from the default's."""
    names = [f.name for f in dataclasses.fields(value)]
    return {n: getattr(value, n) for n in names if getattr(value, n) != getattr(default, n)}


def locate_data(suite: Suite, given: str | None) -> tuple[str, DataSpec]:
    """Where the rows are, and what identifies them; without ``given`` the embedded sample."""
    if given is None:
        if suite.sample is None:
            raise UsageError(f"--data is missing: suite {suite.name!r} has no embedded sample")
        source, label = str(suite.sample), "sample"
    else:
        source, label = given, Path(given).name if Path(given).exists() else given
    files = suite.files(source)
    prints = {p.name: file_sha256(p) for p in files}
    prints |= {k: str(v) for k, v in suite.describe(source).items() if k in ("revision", "split")}
    return source, DataSpec(label=label, sample=given is None, fingerprints=prints)


def _rows(
    suite: Suite, source: str, config: EvalConfig, tasks: str | None, notices: list[str]
) -> tuple[EvalConfig, Rows]:
    wanted = list(suite.tasks) if tasks is None else [t.strip() for t in tasks.split(",") if t.strip()]
    for task in wanted:
        if task not in suite.tasks:
            raise unknown("task", task, suite.tasks, see=f"harness list {suite.name}")
    wanted = [t for t in suite.tasks if t in set(wanted)]
    rows = group(suite.read(source, config.split), config.split, wanted, config.per_task)
    if config.split == "test" and without_targets(rows):
        notices.append("the test split has no targets: evaluating on the dev split")
        config = config.model_copy(update={"split": "dev"})
        rows = group(suite.read(source, "dev"), "dev", wanted, config.per_task)
    empty = [t for t, n in rows.counts.items() if n == 0]
    if len(empty) == len(wanted):
        raise DataError(f"{source}: the {config.split} split has no rows of {', '.join(wanted)}")
    if empty:
        notices.append(f"left out, no {config.split} rows: {', '.join(empty)}")
    kept = {t: i for t, i in rows.by_task.items() if len(i)}
    return config, dataclasses.replace(rows, by_task=kept)
