"""A submission to the competition of a run's suite: the predictions for a test split, in the form that its site takes.

Predictions that the run or one of its evaluations has are used; the others are generated as by ``harness predict``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.config.suites import suite_of
from harness.data.read import read_split
from harness.errors import DataError, HarnessError, UsageError
from harness.pipeline.predict_file import ExampleStream, StreamJob, predict_stream
from harness.pipeline.reopen import ReopenedRun, reopen
from harness.registry import SUITES, plugins, suite_class
from harness.reporting.numbers import counted
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.archive import zip_archive
from harness.store.files import write_atomic
from harness.store.finished import open_finished
from harness.store.output_file import OutputFile
from harness.store.record import RunRecord, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import Example, Suite, UnlabelledExample, to_example

LOG: Final = logging.getLogger(__name__)
_WORDING: Final = {"run_id": "run", "test": "test split", "blank": "--blank"}


@dataclass(frozen=True, kw_only=True)
class SubmitRequest:
    """What the user asks for.

    data: where the test split is; None for the run's own data. blank: leave the answers of tasks that the run does not
    have empty. run_data, model: the current locations of the run's data and model, if they have moved.
    """

    run: Path
    out: Path
    data: str | None = None
    blank: bool = False
    run_data: str | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A submission that is written.

    n: examples of the test split; of these, the predictions of n_stored were in the run, those of n_generated were
    generated for the submission, and n_blank are empty, because the run does not have their tasks. fresh: False if the
    same submission had been written before.
    """

    out: Path
    n: int
    n_stored: int
    n_generated: int
    n_blank: int
    fresh: bool


def submit(request: SubmitRequest) -> Submission:
    """Write the submission; the same call again resumes, and does nothing when all is done.

    Raises: UsageError for a suite without a form of a submission, or an output of something else; DataError for the
        test split; RunLocked; Interrupted; errors of ``harness.pipeline.reopen``.
    """
    out = OutputFile(request.out)
    if request.out.suffix.lower() != ".zip":
        raise UsageError(f"--out {request.out}: a submission is a zip. Give a name that ends in .zip")
    out.check_free()
    record = open_finished(request.run).record
    _check_form(suite_of(record.spec.suite), record)
    finished = reopen(request.run, request.run_data, request.model, data_option="--run-data")
    suite = finished.resolved.suite
    source = finished.resolved.source if request.data is None else suite.pin(request.data)
    examples = [to_example(columns) for columns in read_split(suite, source, "test")]
    own = [example for example in examples if example.task in record.spec.suite.tasks]
    _check_tasks(source, examples, record, blank=request.blank)
    _remark_limit(suite, record)
    stored = _stored(finished.run, record, own)
    missing = [example for example in own if example.id not in stored]
    identity = {"run_id": record.run_id, "test": dict(suite.fingerprint(source)), "blank": request.blank}
    with out.lock(), stop_gracefully() as stop:
        out.claim(identity, _WORDING)
        fresh = not (out.is_finished() and out.path.exists())
        if fresh:
            generated = _generate(finished, missing, source, out, stop)
            texts = {example.id: stored.get(example.id, generated.get(example.id, "")) for example in examples}
            write_atomic(out.path, zip_archive(suite.submission(source, texts)))
            out.finish()
    return Submission(
        out=request.out,
        n=len(examples),
        n_stored=len(stored),
        n_generated=len(missing),
        n_blank=len(examples) - len(own),
        fresh=fresh,
    )


def _check_form(suite: Suite, record: RunRecord) -> None:
    if _has_form(type(suite)):
        return
    names = ", ".join(name for name in plugins(SUITES) if _has_form(_class(name)))
    raise UsageError(
        f"suite {record.spec.suite.name!r} has no form of a submission. Suites that have one: {names or 'none'}. For "
        "predictions in another form: harness predict"
    )


def _has_form(cls: type[Suite] | None) -> bool:
    return cls is not None and cls.submission is not Suite.submission


def _class(name: str) -> type[Suite] | None:
    """A registered suite; None for one that cannot be imported, which `harness list --check` reports."""
    try:
        return suite_class(name)
    except HarnessError:
        return None


def _check_tasks(source: str, examples: list[Example], record: RunRecord, *, blank: bool) -> None:
    """Raises: DataError for examples of tasks that the run does not have, unless their answers may be blank."""
    counts = Counter(example.task for example in examples if example.task not in record.spec.suite.tasks)
    if not counts:
        return
    of = ", ".join(f"{task} {k}" for task, k in counts.items())
    n = counted(counts.total(), "example")
    if not blank:
        raise DataError(
            f"{source}: the test split has {n} of tasks that the run does not have ({of}), and a submission needs an "
            "answer for each. Give a run on all tasks, or add --blank to leave these answers empty"
        )
    LOG.warning("left empty: the answers of %s of tasks that the run does not have (%s)", n, of)


def _remark_limit(suite: Suite, record: RunRecord) -> None:
    limit, percent = suite.parameter_limit, record.parameters.percent
    if limit is not None and percent is not None and percent > limit.percent:
        LOG.warning(
            "%s: an adapter may have at most %g %% of the base model's parameters, and this one has %.2g %%",
            *(limit.source, limit.percent, percent),
        )


def _stored(run: RunDirectory, record: RunRecord, examples: list[Example]) -> Mapping[str, str]:
    """The predictions for these examples that the run, or an evaluation with its settings, has made; by id."""
    known = {(e.task, e.id, text_hash(e.prompt)): e.id for e in examples}
    found: dict[str, str] = {}
    for directory in _directories(run, record):
        for task in record.spec.suite.tasks:
            for p in directory.recover_predictions(task).predictions:
                id_ = known.get((task, p.id, p.prompt_hash))
                if id_ is not None:
                    found.setdefault(id_, p.text)
    return found


def _directories(run: RunDirectory, record: RunRecord) -> Iterator[RunDirectory]:
    """The run itself, and its finished evaluations that predict with the run's own settings."""
    yield run
    for path in sorted((run.path / "evaluations").glob("*")):
        directory = run.evaluation_directory(path.name)
        evaluation = directory.evaluation()
        if evaluation is None or evaluation.settings.method:
            continue
        if evaluation.settings.eval.max_new_tokens == record.spec.eval.max_new_tokens:
            yield directory


def _generate(
    finished: ReopenedRun, examples: list[Example], source: str, out: OutputFile, stop: StopFlag
) -> Mapping[str, str]:
    """The predictions for examples by id; they are on disk before the zip is written, so that a kill loses little."""
    if not examples:
        return {}

    def read() -> Iterator[UnlabelledExample]:
        for e in examples:
            yield UnlabelledExample(place=f"{source}, test example {e.id!r}", id=e.id, task=e.task, prompt=e.prompt)

    stream = ExampleStream(resolved=finished.resolved, read=read)
    # What is missing changes where the run is evaluated between two attempts.
    ids = text_hash("\n".join(e.id for e in examples))
    generated = OutputFile(out.chunks / f"predictions-{ids}.jsonl")
    job = StreamJob(run=finished.run, resolved=finished.resolved, stream=stream, n=len(examples))
    predict_stream(job, generated, stop)
    return {line["id"]: line["prediction"] for line in generated.lines()}
