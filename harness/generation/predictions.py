"""The files that predictions are appended to, and recovered from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from harness.store.files import append_lines
from harness.store.record import Prediction, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import Example

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PredictionKey:
    """The example that a prediction is for. Ids are unique within a task."""

    task: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The generated text for one example.

    tokens: how many were generated, without eos. truncated: the limit was reached before an eos. Both are None if
    a back end does not report them.
    """

    id: str
    text: str
    tokens: int | None = None
    truncated: bool | None = None


@dataclass(kw_only=True)
class PredictionWriter:
    """Writes the predictions of an evaluation to its files, one for each task.

    Under torchrun rank 0 has the evaluation's own files, and each other rank has files of its own (``of_rank``) until
    rank 0 takes them over (``collect``).

    Args:
        run: the directory that they are written to.
        examples: those to predict, by task.

    Attributes:
        n_tokens: generated tokens of all predictions on disk, those of earlier processes among them.
    """

    run: RunDirectory
    examples: Mapping[str, Sequence[Example]]
    n_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._by_key = {PredictionKey(t, e.id): e for t, examples in self.examples.items() for e in examples}

    def recover(self) -> set[PredictionKey]:
        """The predictions that earlier processes have written. Removes incomplete lines and outdated predictions."""
        done: set[PredictionKey] = set()
        self.n_tokens = 0
        for task, examples in self.examples.items():
            known = {e.id: e for e in examples}
            found = self.run.recover_predictions(task)
            path = self.run.prediction_file(task)
            if path.exists() and path.stat().st_size > found.n_bytes:
                LOG.warning("%s: removed an incomplete last line; its batch is generated again", path.name)
                os.truncate(path, found.n_bytes)
            good = [p for p in found.predictions if p.id in known and _matches(p, known[p.id])]
            if len(good) < len(found.predictions):
                outdated = len(found.predictions) - len(good)
                LOG.warning("%s: removed %d predictions for other prompts; generating them again", path.name, outdated)
                path.unlink()
                append_lines(path, [p.model_dump_json() for p in good])
            done |= {PredictionKey(task, p.id) for p in good}
            self.n_tokens += sum(p.tokens or 0 for p in good)
        return done

    def of_rank(self, rank: int) -> PredictionWriter:
        """The writer of a rank. Ranks share the folder of the run, also if they are on several machines."""
        return self if rank == 0 else PredictionWriter(run=self.run.rank_directory(rank), examples=self.examples)

    def collect(self) -> set[PredictionKey]:
        """``recover``, after the predictions of other ranks, also of an interrupted process, were moved here."""
        done = self.recover()
        for directory in self.run.rank_directories():
            new = PredictionWriter(run=directory, examples=self.examples).recover() - done
            for task, predictions in directory.predictions(self.examples).items():
                lines = [p.model_dump_json() for p in predictions if PredictionKey(task, p.id) in new]
                if lines:
                    append_lines(self.run.prediction_file(task), lines)
            shutil.rmtree(directory.path)
            done = self.recover()
            if not self.run.rank_directories():
                directory.path.parent.rmdir()
        return done

    def write(self, task: str, completions: Iterable[Completion]) -> None:
        """Append predictions for one task, flushed to disk."""
        lines = []
        for completion in completions:
            example = self._by_key[PredictionKey(task, completion.id)]
            prediction = Prediction(
                id=completion.id,
                prompt_hash=text_hash(example.prompt),
                target_hash=text_hash(example.target),
                text=completion.text,
                tokens=completion.tokens,
                cut=completion.truncated,
            )
            lines.append(json.dumps(prediction.model_dump(), ensure_ascii=False))
            self.n_tokens += completion.tokens or 0
        append_lines(self.run.prediction_file(task), lines)


def _matches(prediction: Prediction, example: Example) -> bool:
    same = prediction.prompt_hash == text_hash(example.prompt)
    return same and prediction.target_hash == text_hash(example.target)
