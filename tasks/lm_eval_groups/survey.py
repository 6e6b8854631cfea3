"""Which of lm-eval's tasks can be trained on and scored here, and how; for each of the others, the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
from lm_eval.api.task import ConfigurableTask

from harness.task import Example
from tasks.lm_eval_groups.config import NotPortable, Portable, to_portable
from tasks.lm_eval_groups.definition import Aggregation, Splits, TaskDefinition, described, until
from tasks.lm_eval_groups.examples import FAILURES, documents, target_of, to_text
from tasks.lm_eval_groups.index import Leaf
from tasks.lm_eval_groups.load import load_task
from tasks.lm_eval_groups.scoring import Response, TaskScoring

_NAME: Final = re.compile(r"\w[\w.+-]*")
_ANSWERED: Final = ("multiple_choice", "generate_until")
_PROBED: Final = 200
"""Documents of a split that are looked through before training."""
# Their targets carry ids by which lm-eval groups answers; a model would learn to write the ids.
_IDS_IN_TARGETS: Final = frozenset({"super_glue-multirc-t5-prompt", "super_glue-record-t5-prompt"})
_ID_FIELD: Final = re.compile(r"\{[{%][^}]*\bidx\b")
_UNSUPPORTED: Final = {
    "doc_to_image": "its prompts have pictures",
    "doc_to_audio": "its prompts have sound",
    "unsafe_code": "it executes generated code",
    "use_prompt": "its prompts are those of promptsource",
}
_COUNTED: Final[Mapping[str, Aggregation]] = {"mean": "mean", "f1": "f1", "matthews_corrcoef": "mcc"}


class LeftOut(Exception):
    """A task cannot be in the suite; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """A task that is in the suite. notes: what the user should know about it."""

    definition: TaskDefinition
    notes: list[str] = field(default_factory=list)


def survey(leaf: Leaf, included: Path | None, headline: str | None) -> Surveyed:
    """Decide splits, delimiter, filters and metrics of a task.

    Args: headline: the metric that is shown where the task has it; None for the task's first one.
    Raises: LeftOut with the reason; DataError for data that are missing.
    """
    reason = next(_objections(leaf), None)
    if reason is not None:
        raise LeftOut(reason)
    try:
        own = _own_metrics(leaf.config)
        portable = to_portable(own.config, included)
    except NotPortable as error:
        raise LeftOut(str(error)) from error
    try:
        task = load_task(leaf.name, portable, included)
        return _surveyed(leaf, portable, task, included, headline, own.refused)
    except FAILURES as error:
        reason = f"lm-eval cannot open it ({described(error)})"
        raise LeftOut(reason) from error


def _objections(leaf: Leaf) -> Iterator[str]:
    """Reasons that the configuration itself gives."""
    config = leaf.config
    output = config.get("output_type", "generate_until")
    if not _NAME.fullmatch(leaf.name):
        yield "files are named after tasks, and its name has other characters than letters, digits and . _ + -"
    if output not in _ANSWERED:
        yield f"its output type is {output}; {' and '.join(_ANSWERED)} can be trained and scored"
    yield from _split_objections(config)
    yield from (reason for key, reason in _UNSUPPORTED.items() if config.get(key))
    if config.get("repeats", 1) != 1:
        yield f"it asks {config['repeats']} times, and predictions are greedy"
    if _samples(config.get("generation_kwargs") or {}):
        yield "its predictions are sampled, and those of the harness are greedy"
    if output == "multiple_choice" and config.get("filter_list"):
        yield "it filters choices"
    templates = [text for key in ("doc_to_target", "doc_to_choice") for text in _texts(config.get(key))]
    if leaf.name in _IDS_IN_TARGETS or any(_ID_FIELD.search(text) for text in templates):
        yield "its targets carry ids for scoring, which a model would learn to write"


def _split_objections(config: Mapping[str, Any]) -> Iterator[str]:
    train = config.get("training_split")
    tested = config.get("test_split") or config.get("validation_split")
    if train is None:
        yield "it has no training split"
    if tested is None:
        yield "it has neither a test nor a validation split"
    elif tested == train:
        yield f"its training split {train!r} is also the split that is scored"


def _texts(value: Any) -> list[str]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]


def _samples(arguments: Mapping[str, Any]) -> bool:
    """Whether lm-eval samples with these arguments: a temperature counts unless do_sample forbids it."""
    asked = arguments.get("do_sample")
    return bool(asked) if asked is not None else float(arguments.get("temperature") or 0.0) > 0.0


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    """A configuration with the metrics that lm-eval itself computes here, and why others are left out."""

    config: Mapping[str, Any]
    refused: list[str]


def _own_metrics(config: Mapping[str, Any]) -> _Metrics:
    """Leave out acc_mutual_info and metrics of the library evaluate, which are code on the hub."""
    kept, refused = [], []
    for metric in config.get("metric_list") or ():
        name = str(metric.get("metric"))
        registered = name in METRIC_REGISTRY or Path(name).is_absolute() or config.get("process_results")
        if name == "acc_mutual_info":
            refused.append(f"{name}, which needs likelihoods of choices without a prompt")
        elif metric.get("hf_evaluate") or not registered:
            refused.append(f"{name}, which is not one of lm-eval's own: code from the hub is not executed")
        else:
            kept.append(metric)
    return _Metrics(config={**config, "metric_list": kept} if config.get("metric_list") else config, refused=refused)


def _surveyed(
    leaf: Leaf,
    portable: Portable,
    task: ConfigurableTask,
    included: Path | None,
    headline: str | None,
    refused: Sequence[str],
) -> Surveyed:
    if task.multiple_input:
        raise LeftOut("its choices are contexts (doc_to_text is a position), not continuations of one prompt")
    config = portable.config
    chooses = config.get("output_type") == "multiple_choice"
    splits = _splits(task)
    filters = tuple(f["name"] for f in config.get("filter_list") or ()) or ("none",)
    found = TaskDefinition(
        kind=leaf.kind or ("multiple_choice" if chooses else "generate_until"),
        config=config,
        modules=portable.modules,
        splits=splits,
        delimiter=task.config.target_delimiter,
        metrics={},
        filters=filters,
        n_labels=0,
        several_targets=bool(task.multiple_target),
    )
    document = next((d for d in _probed(task, splits.train) if target_of(task, d, "")), None)
    if document is None:
        raise LeftOut(f"the first {_PROBED} documents of its training split have no target")
    notes: list[str] = []
    metrics, others = _metrics(leaf.name, found, task, document, lambda: included)
    refused = [*refused, *others]
    if not metrics:
        raise LeftOut(f"none of its metrics can be computed: {'; '.join(refused)}")
    if refused:
        notes.append(f"{leaf.name}: without {'; '.join(refused)}")
    if headline in metrics:
        metrics = {str(headline): metrics[str(headline)], **metrics}
    found = replace(found, metrics=metrics, n_labels=len(task.doc_to_choice(document)) if "mcc" in metrics else 0)
    if not chooses and found.delimiter and _delimiter_fails(leaf.name, found, task, document, lambda: included):
        found = replace(found, delimiter="")
        notes.append(f"{leaf.name}: targets are without lm-eval's target_delimiter, with which none would be right")
    return Surveyed(definition=found, notes=[*notes, *_stopped(leaf.name, found, task)])


def _splits(task: ConfigurableTask) -> Splits:
    """The split that lm-eval scores as test, unless its targets are withheld and there is another one."""
    config = task.config
    test, validation = config.test_split, config.validation_split
    other = validation not in (None, config.training_split)
    if test is not None and other and not any(target_of(task, d, "") for d in _probed(task, test)):
        test = None
    dev = validation if test is not None and validation not in (test, config.training_split) else None
    found = Splits(train=config.training_split, dev=dev, test=test or validation)
    for split in (found.train, found.test):
        if not any(True for _ in _probed(task, split)):
            raise LeftOut(f"its split {split!r} is empty")
    return found


def _probed(task: ConfigurableTask, split: str) -> Iterator[Mapping[str, Any]]:
    return islice(documents(task, split), _PROBED)


def _metrics(
    name: str,
    definition: TaskDefinition,
    task: ConfigurableTask,
    document: Mapping[str, Any],
    folder: Callable[[], Path | None],
) -> tuple[dict[str, Aggregation], list[str]]:
    """The metrics that are sums over documents, and why others are not computed, found with a right answer."""
    scoring = TaskScoring(name, definition, folder)
    values = scoring.values(_right_answer(scoring, task, document, definition.delimiter))
    if definition.delimiter and not definition.chooses and not any(v == 1 for v in values.values()):
        values = scoring.values(_right_answer(scoring, task, document, ""))
    found: dict[str, Aggregation] = {}
    refused = []
    names = {function: key for key, function in AGGREGATION_REGISTRY.items()}
    for metric, value in values.items():
        how = names.get(task.aggregation().get(metric, AGGREGATION_REGISTRY["mean"]))
        counted = _COUNTED.get(how or "")
        if not task.higher_is_better().get(metric, True):
            refused.append(f"{metric}, whose lower values are better")
        elif counted is None:
            refused.append(f"{metric}, which needs all documents at once ({how or 'a function of the task'})")
        elif counted == "mean" and not (_is_number(value) and 0 <= value <= 1):
            refused.append(f"{metric}, which is not between 0 and 1")
        elif counted != "mean" and (metric != counted or not _has_pairs(definition, metric, value)):
            refused.append(f"{metric}, which is computed for a fixed list of choices only, and f1 for two of them")
        else:
            found[metric] = counted
    return found, refused


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _has_pairs(definition: TaskDefinition, metric: str, value: Any) -> bool:
    """Whether lm-eval gives the positions of the gold choice and of the answer, among choices that are always equal."""
    choices = definition.config.get("doc_to_choice")
    if not definition.chooses or not isinstance(choices, list | dict):
        return False
    gives = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int)
    return gives and (metric != "f1" or len(choices) == 2)


def _right_answer(
    scoring: TaskScoring, task: ConfigurableTask, document: Mapping[str, Any], delimiter: str
) -> Response:
    text = to_text(document)
    target = target_of(task, document, delimiter)
    definition = scoring.definition
    choices = tuple(f"{delimiter}{c}" for c in task.doc_to_choice(document)) if definition.chooses else None
    example = Example(id="", task=scoring.name, prompt="", target=target, choices=choices, document=text)
    response = scoring.parse(target, example, filter_name=definition.filters[0])
    assert isinstance(response, Response)
    return response


def _delimiter_fails(
    name: str,
    definition: TaskDefinition,
    task: ConfigurableTask,
    document: Mapping[str, Any],
    folder: Callable[[], Path | None],
) -> bool:
    """Whether a target that begins with the delimiter scores less than one without."""
    scoring = TaskScoring(name, definition, folder)
    headline = next(iter(definition.metrics))
    with_it, without = (
        float(scoring.values(_right_answer(scoring, task, document, delimiter))[headline])
        for delimiter in (definition.delimiter, "")
    )
    return with_it < without


def _stopped(name: str, definition: TaskDefinition, task: ConfigurableTask) -> Iterator[str]:
    """A note where targets have a string at which generated texts end."""
    if definition.chooses:
        return
    targets = [target_of(task, d, definition.delimiter) for d in _probed(task, definition.splits.train)]
    stopped = [target for target in targets if until(target, definition.stops) != target]
    if stopped:
        yield (
            f"{name}: {len(stopped)} of the first {len(targets)} training targets have one of its stop strings "
            f"({', '.join(map(repr, definition.stops))}), at which predictions end, such as {stopped[0][:60]!r}"
        )
