"""lm-eval's own scoring of one document at a time, as additive statistics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.choosing import Choice, read_choice
from harness.errors import DataError
from harness.task import NOT_PARSED, Example, Floats, NotParsed, Protocol, Statistics, Task
from tasks.lm_eval_groups.definition import TaskDefinition, described, until

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

VERSION: Final = 1
"""Raise it when equal predictions would be scored differently: it is the version of every task."""

INVALID: Final = "[invalid]"
"""What lm-eval's filters give for a text that has no answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """A prediction as lm-eval's tasks get it: its document, and the filtered text or the scored choices."""

    document: str
    results: Any


class TaskScoring:
    """lm-eval's task without its data set: a document brings all that a score needs.

    Args: folder: of the user's task files, for tasks whose functions are there; asked for at the first prediction.
    """

    def __init__(self, name: str, definition: TaskDefinition, folder: Callable[[], Path | None]) -> None:
        self.name, self.definition, self._folder = name, definition, folder
        self._task: ConfigurableTask | None = None

    def protocol(self, filter_name: str) -> Protocol:
        """The rule of one of the task's filters."""
        parse = partial(self.parse, filter_name=filter_name)
        return Protocol(parse=parse, statistics=self.statistics, headline=next(iter(self.definition.metrics)))

    def task(self) -> Task:
        """The task with one protocol for each filter, the first as the official one."""
        official, *others = self.definition.filters
        protocols = {"official": self.protocol(official)} | {name: self.protocol(name) for name in others}
        return Task(
            name=self.name,
            version=VERSION,
            kind=self.definition.kind,
            protocols=protocols,
            answer="choose" if self.definition.chooses else "generate",
        )

    def parse(self, text: str, example: Example, *, filter_name: str) -> Response | NotParsed:
        """The response; NOT_PARSED if the filter finds no answer, or if a text is none of the choices.

        Raises: DataError if a filter of the task fails.
        """
        if example.document is None:
            return NOT_PARSED
        if self.definition.chooses:
            choice = read_choice(text, example)
            return choice if isinstance(choice, NotParsed) else Response(document=example.document, results=choice)
        results = self._filtered(text, example.document, filter_name)
        if results == INVALID and text != example.target:
            return NOT_PARSED
        return Response(document=example.document, results=results)

    def _filtered(self, text: str, document: str, filter_name: str) -> Any:
        from lm_eval.api.instance import Instance

        task = self._loaded(document)
        instance = Instance(request_type="generate_until", doc=json.loads(document), arguments=("", {}), idx=0)
        instance.resps = [until(text, self.definition.stops)]
        self._call(lambda: _ensemble(task, filter_name).apply([instance]), document)
        return instance.filtered_resps[filter_name]

    def values(self, response: Response) -> Mapping[str, Any]:
        """What lm-eval computes for one document, by metric. Raises: DataError if the task's function fails."""
        task = self._loaded(response.document)
        results = response.results
        if isinstance(results, Choice):
            results = list(zip(results.log_likelihoods, results.greedy, strict=True))
        else:
            results = [results]
        found: Mapping[str, Any] = self._call(
            lambda: task.process_results(json.loads(response.document), results), response.document
        )
        return found

    def statistics(self, golds: Sequence[Response], answers: Sequence[Response | NotParsed]) -> Statistics:
        """The columns of ``_Columns``, one row for each document."""
        columns = _Columns(definition=self.definition)
        rows = [self._row(columns, gold, answer) for gold, answer in zip(golds, answers, strict=True)]
        return Statistics(per_unit=np.array(rows, np.float64).reshape(len(rows), columns.n), values=columns.metrics)

    def _row(self, columns: _Columns, gold: Response | NotParsed, answer: Response | NotParsed) -> list[float]:
        if isinstance(gold, NotParsed):  # its target is withheld, so that nothing is right
            return columns.wrong(None)
        if not isinstance(answer, NotParsed):
            return columns.row(self.values(answer))
        if self.definition.chooses:
            return columns.wrong(self.values(gold))
        return columns.row(self.values(Response(document=gold.document, results=INVALID)))

    def _loaded(self, document: str) -> ConfigurableTask:
        if self._task is None:
            from tasks.lm_eval_groups.load import scoring_task

            self._task = scoring_task(self.name, self.definition, json.loads(document), self._folder())
        return self._task

    def _call(self, function: Callable[[], Any], document: str) -> Any:
        from tasks.lm_eval_groups.examples import FAILURES

        try:
            return function()
        except FAILURES as error:
            raise DataError(
                f"{self.name}: lm-eval cannot score a prediction for the document {document[:80]}… "
                f"({described(error)}). Correct the functions of the task, "
                "or leave it out with --tasks"
            ) from error


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a task's statistics: sums and numbers of documents of each mean, counts of f1, the matrix of mcc.

    A task's function may leave a metric out for a document. As in lm-eval, the mean is over the others then.
    """

    definition: TaskDefinition

    @cached_property
    def means(self) -> list[str]:
        return [name for name, how in self.definition.metrics.items() if how == "mean"]

    @cached_property
    def n(self) -> int:
        """The number of columns."""
        return 2 * len(self.means) + 3 * ("f1" in self.definition.metrics) + self._n_matrix

    @property
    def _n_matrix(self) -> int:
        labels = self.definition.n_labels
        return labels * (labels + 1) if "mcc" in self.definition.metrics else 0

    def row(self, values: Mapping[str, Any]) -> list[float]:
        """One document's columns."""
        sums = [float(values.get(name, 0.0)) for name in self.means]
        counts = [float(name in values) for name in self.means]
        return self._with_pairs([*sums, *counts], values, wrong=False)

    def wrong(self, values: Mapping[str, Any] | None) -> list[float]:
        """The columns of an answer that is none of the choices. values: of the gold answer; None if it is withheld."""
        return self._with_pairs([0.0] * len(self.means) + [1.0] * len(self.means), values, wrong=True)

    def _with_pairs(self, row: list[float], values: Mapping[str, Any] | None, *, wrong: bool) -> list[float]:
        if "f1" in self.definition.metrics:
            gold, found = _pair(values, "f1", wrong=wrong)
            row += [gold == found == 1, gold != 1 and found == 1, gold == 1 and found != 1]
        if "mcc" in self.definition.metrics:
            gold, found = _pair(values, "mcc", wrong=wrong)
            matrix = np.zeros((self.definition.n_labels, self.definition.n_labels + 1))
            if gold is not None:
                matrix[gold, self.definition.n_labels if found is None else found] = 1
            row += matrix.ravel().tolist()
        return [float(value) for value in row]

    def metrics(self, sums: Floats) -> Mapping[str, Floats]:
        """The metrics of column sums, (..., n) -> {name: (...)}."""
        k = len(self.means)
        found = {name: sums[..., i] / np.maximum(sums[..., k + i], 1.0) for i, name in enumerate(self.means)}
        at = 2 * k
        if "f1" in self.definition.metrics:
            found["f1"] = f1_of_counts(sums[..., at : at + 3])
            at += 3
        if "mcc" in self.definition.metrics:
            labels = self.definition.n_labels
            found["mcc"] = matthews(sums[..., at : at + self._n_matrix].reshape(*sums.shape[:-1], labels, labels + 1))
        return {name: found[name] for name in self.definition.metrics}


def _pair(values: Mapping[str, Any] | None, metric: str, *, wrong: bool) -> tuple[int | None, int | None]:
    """The positions of the gold choice and of the answer; None for an answer that is none of the choices."""
    if values is None:
        return None, None
    gold, found = values[metric]
    return int(gold), None if wrong else int(found)


def f1_of_counts(counts: Floats) -> Floats:
    """F1 of the second of two labels from (true positive, false positive, false negative), (..., 3) -> (...)."""
    right, false, missed = np.moveaxis(counts, -1, 0)
    whole = 2 * right + false + missed
    return np.asarray(np.divide(2 * right, whole, out=np.zeros_like(whole), where=whole > 0))


def matthews(matrix: Floats) -> Floats:
    """Matthews' correlation coefficient of confusion matrices, gold by answer, (..., k, k + 1) -> (...).

    The last column is for answers that are none of the k labels. A coefficient below 0 counts as 0, since scores are
    between 0 and 1. Source: Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation
    coefficient".
    """
    k = matrix.shape[-2]
    n = matrix.sum((-2, -1))
    golds, answers = matrix.sum(-1), matrix.sum(-2)
    right = np.trace(matrix[..., :k], axis1=-2, axis2=-1)
    above = right * n - (golds * answers[..., :k]).sum(-1)
    below = np.sqrt((n**2 - (answers**2).sum(-1)) * (n**2 - (golds**2).sum(-1)))
    return np.asarray(np.clip(np.divide(above, below, out=np.zeros_like(n), where=below > 0), 0.0, 1.0))


def _ensemble(task: ConfigurableTask, name: str) -> Any:
    """The task's filter of that name, built as lm-eval builds it."""
    from lm_eval.filters import build_filter_ensemble

    for filter_ in task.config.filter_list or ():
        if filter_["name"] == name:
            steps = [[f["function"], {k: v for k, v in f.items() if k != "function"}] for f in filter_["filter"]]
            return build_filter_ensemble(name, steps)
    return build_filter_ensemble(name, [["take_first", None]])
