"""Resolve a request into a RunSpec that contains every choice."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from harness.config.backend import Backend, parse_backend
from harness.config.balance import require_balance, train_config
from harness.config.clusters import group_tasks
from harness.config.keys import by_section, changed, section_config, validation_error
from harness.config.method_config import absolute, choose_method, data_only, fingerprints, parse_budget, with_preset
from harness.config.options import OPTIONS
from harness.config.request import Request
from harness.config.spec import LOCAL, ClusterSpec, DataSpec, EvalConfig, MethodSpec, ModelSpec, RunSpec, SuiteSpec
from harness.config.suites import OpenSuite, open_suite
from harness.config.template import template_arguments
from harness.data.splits import (
    Choice,
    LocatedData,
    SplitExamples,
    Use,
    choose_tasks,
    load_split,
    locate_data,
    without_targets,
)
from harness.errors import UsageError
from harness.method import Baseline, Method
from harness.models.loading import identify
from harness.pipeline.computed_clusters import RUNS, Question, with_computed_clusters
from harness.pipeline.warm_start import Parent, find_parent
from harness.registry import backend_class, method_class
from harness.scoring.check_rules import check_rules
from harness.task import Suite

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run with every choice resolved, and the objects that its spec names.

    request: what the user asked for. source: where the examples are read from.
    model: what the base model is loaded from; None if none is loaded.
    evaluated: the examples of the split that is evaluated.
    parent: the finished run that this one starts from (``--from``).
    """

    request: Request
    spec: RunSpec
    method: Method
    suite: Suite
    source: str
    model: str | None
    evaluated: SplitExamples
    parent: Parent | None = None

    @property
    def all_tasks(self) -> bool:
        """Whether the user has chosen no tasks, so that data of a task that the suite does not have are an error."""
        return self.request.options.get("tasks") is None


def resolve(request: Request, opened: OpenSuite | None = None, out: Path = RUNS) -> Resolved:
    """Make every choice.

    Args:
        opened: the suite of a finished run; None for the one that the request names. out: the folder of runs.

    Raises: UsageError, DataError or ModelError, each naming the wrong value and the remedy.
    """
    options = _options(request)
    cls = method_class(options["method"])
    sections = by_section(with_preset(request.keys, cls, options["preset"]))
    budget = options["budget"] or sections.pop("", {}).get("budget")
    opened = opened or _opened(options["suite"], sections["suite"])
    request = _with_data(request, opened)
    train = train_config(sections["train"], sections["balance"])
    evaluation = section_config(EvalConfig, "eval", sections["eval"])
    data = locate_data(opened.suite, request.options.get("data"))
    suite = data.suite
    evaluation, examples = _evaluated(suite, data.source, evaluation, options["tasks"], see=options["suite"])
    tasks = list(examples.by_task)
    request = _with_clusters(request, data, tasks, out)
    clusters = group_tasks(request.options.get("clusters"), suite, tasks)
    sizes = [len(of) for of in ([tasks] if clusters is None else clusters.groups.values())]
    check_rules(suite, examples)
    method = absolute(choose_method(cls, sections["method"], options["ablation"], budget, sizes))
    _check_clustered(clusters, method, options["method"])
    require_balance(train, options["method"], method, sizes)
    backend = parse_backend(options["backend"])
    _check_generated(suite, tasks, options["backend"] if backend is not None else None)
    model = _model(method, suite, options, backend)
    _warn_of_a_toy(model, suite, data.spec)
    spec = _spec(
        method=_method_spec(method, options),
        suite=_suite_spec(opened, suite, tasks),
        model=_identity(backend, model),
        data=data.spec,
        train=train if method.trains else data_only(train),
        eval=evaluation,
        budget=str(parse_budget(budget)) if budget else None,
        clusters=clusters,
        backend=options["backend"] or LOCAL,
        template=template_arguments(sections["prompt"], options["prompt"]),
        **{k: options[k] for k in ("prompt", "shots", "seed") if options[k] is not None},
    )
    parent = find_parent(options["from"], method, spec) if options["from"] else None
    if parent is not None:
        spec = spec.model_copy(update={"parent": parent.spec})
    return Resolved(
        request=request,
        spec=spec,
        method=method,
        suite=suite,
        source=data.source,
        model=model,
        evaluated=examples,
        parent=parent,
    )


def _options(request: Request) -> dict[str, Any]:
    """Every option; None if it is not given. Raises: UsageError without a method or a suite."""
    options = {**dict.fromkeys(OPTIONS), **request.options}
    for needed in ("method", "suite"):
        if not options[needed]:
            raise UsageError(f"--{needed} is missing. See: harness list")
    return options


def _opened(given: str, fields: Mapping[str, Any]) -> OpenSuite:
    """The suite that the user names, with notes on what of it is not used."""
    opened = open_suite(given, fields)
    for note in opened.notes:
        LOG.info("%s", note)
    return opened


def _with_data(request: Request, opened: OpenSuite) -> Request:
    """The request with the data of a suite's file, unless it names other ones."""
    if request.options.get("data") is not None or opened.data is None:
        return request
    return dataclasses.replace(request, options={**request.options, "data": opened.data})


def _with_clusters(request: Request, data: LocatedData, tasks: Sequence[str], out: Path) -> Request:
    """The request with the tasks of each cluster, if the choice of clusters has to be computed."""
    model = request.options.get("model") or data.suite.default_model
    return with_computed_clusters(request, Question(suite=data.suite, tasks=tasks, data=data.spec, model=model), out)


def _check_clustered(clusters: ClusterSpec | None, method: Method, name: str) -> None:
    if clusters is not None and not method.trains:
        raise UsageError(f"--clusters does not apply to {name}: it has no trainable parameters. Leave --clusters out")


def _warn_of_a_toy(model: str | None, suite: Suite, data: DataSpec) -> None:
    if model is not None and model == suite.default_model and not data.sample:
        LOG.warning("--model %s is a toy model for the embedded sample. For other data, give a pretrained model", model)


def _suite_spec(opened: OpenSuite, suite: Suite, tasks: Sequence[str]) -> SuiteSpec:
    return SuiteSpec(
        name=opened.name,
        version=suite.version,
        tasks={t: suite.tasks[t].version for t in tasks},
        fields=changed(suite, type(suite)()),
        reader=opened.reader,
    )


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
        raise validation_error(error, "", fields) from error


def _check_generated(suite: Suite, tasks: Sequence[str], backend: str | None) -> None:
    """Raises: UsageError for a task that is answered by choosing, since a back end only generates."""
    choosing = [task for task in tasks if suite.tasks[task].answer == "choose"]
    if choosing and backend is not None:
        raise UsageError(
            f"--backend {backend} generates texts, but {', '.join(choosing)} {'is' if len(choosing) == 1 else 'are'} "
            "answered by choosing, which needs likelihoods: leave --backend out, or choose other tasks with --tasks"
        )


def _model(method: Method, suite: Suite, options: Mapping[str, Any], backend: Backend | None) -> str | None:
    """The source of the base model; None if a baseline or a back end predicts."""
    if backend is None:
        if isinstance(method, Baseline):
            return None
        model: str | None = options["model"] or suite.default_model
        if model is None:
            raise UsageError(
                f"--model is missing: suite {suite.name} has no default model. Give a pretrained one: a hub id such as "
                "HuggingFaceTB/SmolLM2-135M, a folder, or a .gguf file"
            )
        return model
    if method.trains or isinstance(method, Baseline):
        raise UsageError(
            f"--backend {options['backend']} generates with a model of its own, which --method {options['method']} "
            "cannot adapt. Choose a method without training and with a model, for example from: harness list"
        )
    if options["model"]:
        raise UsageError(
            f"--backend {options['backend']} names its own model, so --model cannot be given: leave --model out"
        )
    return None


def _evaluated(
    suite: Suite, source: str, config: EvalConfig, tasks: str | None, *, see: str
) -> tuple[EvalConfig, SplitExamples]:
    """The examples that the run evaluates, and the settings with the split that they come from."""
    wanted = choose_tasks(suite, tasks)
    use = Use(strict=tasks is None, withheld=True)
    examples = load_split(suite, source, config.split, wanted, Choice.of(config), use=use)
    if config.split == "test" and without_targets(examples):
        LOG.warning("the test split has no targets: evaluating on the dev split instead")
        config = config.model_copy(update={"split": "dev"})
        examples = load_split(suite, source, "dev", wanted, Choice.of(config), use=use)
    if examples.missing:
        LOG.warning("tasks without %s examples are left out: %s", config.split, ", ".join(examples.missing))
    return config, examples.with_examples()


def _identity(backend: Backend | None, model: str | None) -> ModelSpec | None:
    """Label and fingerprint of the model that generates; None if there is none."""
    if backend is not None:
        identity = backend_class(backend.name).identify(backend.arguments)
        return ModelSpec(label=identity.label, fingerprint=identity.fingerprint)
    return None if model is None else identify(model)
