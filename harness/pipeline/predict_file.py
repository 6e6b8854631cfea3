"""The predictions of a finished run for the examples of any file, with or without answers; nothing is trained.

Input and output are read and written in chunks, so that their size does not matter. A process that was stopped or
killed is resumed by the same command.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from harness.data.unlabelled import Read, unlabelled_reader
from harness.errors import DataError, UsageError, nearest, unknown
from harness.generation.backend import own_bar
from harness.hashing import file_sha256
from harness.pipeline.evaluate import ChangedSettings, changed_settings
from harness.pipeline.predictor import PredictedExample, Predictor, no_task, why_task_needed
from harness.pipeline.reopen import ReopenedRun, reopen
from harness.pipeline.resolve import Resolved
from harness.registry import list_command
from harness.reporting.numbers import counted
from harness.runtime.signals import StopFlag, stop_gracefully
from harness.store.output_file import OutputFile
from harness.store.run_directory import RunDirectory
from harness.task import Suite, UnlabelledExample

LOG: Final = logging.getLogger(__name__)
CHUNK: Final = 1024
"""Examples that are generated together, and appended to the output together."""
_OF_A_SPLIT: Final = ("eval.split", "eval.part", "eval.per_task")
_WORDING: Final = {
    "run_id": "run",
    "input": "input file (or its content has changed)",
    "task": "--task",
    "prompts": "--prompts",
    "eval": "setting of eval.*",
    "method": "setting of method.*",
}


@dataclass(frozen=True, kw_only=True)
class FileRequest:
    """What the user asks for.

    task: that of the examples that name none. keys: ``eval.*`` and the method's inference fields, as in
    ``harness.pipeline.evaluate``. prompts: write the prompts too. data, model: their current locations, if they have
    moved.
    """

    run: Path
    file: Path
    out: Path
    task: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    prompts: bool = False
    data: str | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class FilePredictions:
    """The predictions for a file.

    n: how many. left_out: examples of tasks that the run does not have, by task. chosen: how many examples without a
    task were routed to which task. fresh: False if all had been made before.
    """

    out: Path
    n: int
    left_out: Mapping[str, int]
    chosen: Mapping[str, int]
    fresh: bool


def _check_generated(suite: Suite, task: str, place: str) -> None:
    if suite.tasks[task].answer == "choose":
        raise DataError(
            f"{place}: {task} is answered by choosing among the choices of an example, which a file of prompts does "
            "not have. Evaluate the run on data of its suite with harness evaluate"
        )


@dataclass(frozen=True, kw_only=True)
class ExampleStream:
    """The examples to predict, as often as they are iterated over: those of the run's tasks, each with its task.

    read: starts to read the file. task: that of the examples that name none.
    """

    resolved: Resolved
    read: Read
    task: str | None = None

    def __iter__(self) -> Iterator[UnlabelledExample]:
        reason = why_task_needed(self.resolved)
        for example in self.read():
            chosen = self._select(example, reason)
            if chosen is not None:
                yield chosen

    def counts(self) -> Counter[str | None]:
        """The number of examples of each task that the file names, all checked; None counts those without a task.

        Raises: DataError for a blank prompt, and for a task that is needed or unknown, with file, line and remedy.
        """
        reason, found = why_task_needed(self.resolved), Counter[str | None]()
        for example in self.read():
            self._select(example, reason)
            found[example.task] += 1
        return found

    def _select(self, example: UnlabelledExample, reason: str | None) -> UnlabelledExample | None:
        """The example with its task; None if the run does not have the task, but its suite may."""
        tasks, suite = self.resolved.spec.suite.tasks, self.resolved.suite
        if not example.prompt.strip():
            raise DataError(f"{example.place}: the prompt is blank. Add the question, or remove the line")
        task = self.task if example.task is None else example.task
        if task is None and reason is not None:
            raise no_task(self.resolved, example.place, reason)
        if task is None or task in tasks:
            _check_generated(suite, task or next(iter(tasks)), example.place)
            return dataclasses.replace(example, task=task)
        if task in suite.tasks or task in suite.other_tasks:
            return None
        hint = nearest(task, tasks) or f" It has {', '.join(tasks)}."
        raise DataError(f"{example.place}: the run has no task {task!r}.{hint} Correct the task, or remove the line")


def predict_file(request: FileRequest) -> FilePredictions:
    """Predict every example of a file; the same call again resumes, and does nothing when all is done.

    Raises: UsageError for an unknown task, a key that cannot change without training, or an output of something else;
        DataError for the file; RunLocked; Interrupted; errors of ``harness.pipeline.reopen``.
    """
    out = OutputFile(request.out)
    out.check_free()
    finished = reopen(request.run, request.data, request.model)
    resolved, settings = _with_keys(finished, request.keys)
    tasks = resolved.spec.suite.tasks
    if request.task is not None and request.task not in tasks:
        raise unknown("task", request.task, tasks, see=list_command(resolved.spec.suite.name))
    read = unlabelled_reader(resolved.suite, request.file, request.task)
    stream = ExampleStream(resolved=resolved, read=read, task=request.task)
    identity = {
        "run_id": finished.record.run_id,
        "input": file_sha256(request.file),
        "task": request.task,
        "prompts": request.prompts,
        "eval": settings.eval.model_dump(mode="json"),
        "method": dict(settings.fields),
    }
    counts = stream.counts()
    left_out = {task: n for task, n in counts.items() if task is not None and task not in tasks}
    n = counts.total() - sum(left_out.values())
    _remark(request, counts, left_out)
    if not n:
        raise DataError(f"{request.file}: no example of the run's tasks, which are {', '.join(tasks)}")
    job = StreamJob(run=finished.run, resolved=resolved, stream=stream, n=n, prompts=request.prompts)
    with out.lock(), stop_gracefully() as stop:
        out.claim(identity, _WORDING)
        fresh = predict_stream(job, out, stop)
    chosen = _chosen(stream, out) if counts[None] and request.task is None else {}
    return FilePredictions(out=request.out, n=n, left_out=left_out, chosen=chosen, fresh=fresh)


@dataclass(frozen=True, kw_only=True)
class StreamJob:
    """A run, as resolved for it, and the n examples to predict. prompts: write the prompts too."""

    run: RunDirectory
    resolved: Resolved
    stream: ExampleStream
    n: int
    prompts: bool = False


def predict_stream(job: StreamJob, out: OutputFile, stop: StopFlag) -> bool:
    """Write the predictions of all examples that are not in the output yet.

    Returns: whether there were any.
    """
    done = out.recover((example.id for example in job.stream), CHUNK)
    if done == job.n and out.is_finished():
        return False
    if done:
        LOG.info("%d of %d predictions are in %s", done, job.n, out.path)
    predictor = Predictor(job.run, job.resolved, stop)
    with own_bar(job.n, done) as progress:
        for chunk in _chunks(islice(job.stream, done, None)):
            directory = RunDirectory(out.chunks / str(done))
            predicted = predictor.predict(chunk, directory, progress)
            out.append([_line(e, p, prompts=job.prompts) for e, p in zip(chunk, predicted, strict=True)])
            done += len(chunk)
            shutil.rmtree(directory.path, ignore_errors=True)
            if done < job.n and not sys.stderr.isatty():  # The progress bar is drawn on a terminal only.
                LOG.info("%d of %d predictions", done, job.n)
    if predictor.n_truncated:
        LOG.warning("truncated prompts: %d (in-context examples or the middle were left out)", predictor.n_truncated)
    out.finish()
    return True


def _with_keys(finished: ReopenedRun, keys: Mapping[str, Any]) -> tuple[Resolved, ChangedSettings]:
    for key in keys:
        if key in _OF_A_SPLIT:
            raise UsageError(
                f"{key} chooses examples of a split, and harness predict reads them from FILE. Leave it out"
            )
    settings = changed_settings(finished.resolved, keys, "harness predict")
    spec = finished.resolved.spec.model_copy(update={"eval": settings.eval})
    return dataclasses.replace(finished.resolved, spec=spec, method=settings.method), settings


def _remark(request: FileRequest, counts: Counter[str | None], left_out: Mapping[str, int]) -> None:
    if left_out:
        of = ", ".join(f"{task} {n}" for task, n in left_out.items())
        n = counted(sum(left_out.values()), "example")
        LOG.warning("left out: %s of tasks that the run does not have (%s)", n, of)
    if request.task is not None and not counts[None] and request.task not in counts:
        LOG.warning("--task %s is not used: every example of %s names its task", request.task, request.file)


def _chosen(stream: ExampleStream, out: OutputFile) -> dict[str, int]:
    """How many examples without a task were routed to which task."""
    pairs = zip(stream, out.lines(), strict=True)
    return dict(Counter(line["task"] for e, line in pairs if e.task is None and line["task"] is not None))


def _line(example: UnlabelledExample, predicted: PredictedExample, *, prompts: bool) -> dict[str, Any]:
    prompt = {"prompt": example.prompt} if prompts else {}
    return {
        "id": example.id,
        "task": predicted.task,
        **prompt,
        "prediction": predicted.text,
        "truncated": predicted.truncated,
    }


def _chunks(examples: Iterable[UnlabelledExample]) -> Iterator[list[UnlabelledExample]]:
    rest = iter(examples)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
