"""From what a user typed to a RunSpec in which every choice is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config.backend import Backend, parse_backend
from harness.config.clusters import group_tasks
from harness.config.keys import _wrong, build, by_section, changed, section_config
from harness.config.method_config import absolute, choose_method, data_only, fingerprints, parse_budget, with_preset
from harness.config.request import _OPTIONS, Request
from harness.config.spec import LOCAL, EvalConfig, MethodSpec, ModelSpec, RunSpec, SuiteSpec, TrainConfig
from harness.data.rows import Rows, group, locate_data, without_targets
from harness.errors import DataError, UsageError, unknown
from harness.method import Baseline, Method
from harness.models.loading import identify
from harness.pipeline.warm_start import going_on
from harness.registry import method_class, suite_class
from harness.task import Suite


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
    if clusters is not None and not method.trains:
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
        train=train if method.trains else data_only(train),
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


def _model(method: Method, options: Mapping[str, Any], backend: Backend | None) -> str | None:
    """The model that is loaded here; None where nothing is, because the method or a back end answers."""
    if backend is None:
        return None if isinstance(method, Baseline) else options["model"] or "tiny"
    if method.trains or isinstance(method, Baseline):
        raise UsageError(
            f"--backend {options['backend']} generates with a model of its own, and --method {options['method']} "
            "cannot use it. Give a method that neither trains nor answers by itself, such as no_finetune"
        )
    if options["model"]:
        raise UsageError(f"--model and --backend {options['backend']}: the back end names its model, leave --model out")
    return None


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


def identify_backend(backend: Backend) -> ModelSpec:
    """Label and fingerprint: of the files where ``pretrained`` names a model, else what the back end calls it."""
    where = f"lm-eval:{backend.name}"
    pretrained = backend.given.get("pretrained")
    if pretrained is not None:
        found = identify(pretrained, backend.given.get("revision"))
        return ModelSpec(label=f"{found.label} ({where})", fingerprint=f"{where}:{found.fingerprint}")
    name = backend.given.get("model") or ""
    short = Path(name).name if Path(name).exists() else name
    return ModelSpec(label=f"{short} ({where})" if name else where, fingerprint=f"{where}:{name}")
