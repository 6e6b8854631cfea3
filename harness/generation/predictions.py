"""The file that predictions are appended to, and recovered from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.store.files import append_lines
from harness.store.record import Prediction, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import Example


@dataclass(kw_only=True)
class Answers:
    """The predictions of a run while they are made.

    examples: by task. chosen: how many of each task's prompts the adapter gave to which task, where it chooses alone.
    """

    run: RunDirectory
    examples: Mapping[str, Sequence[Example]]
    warnings: list[str] = field(default_factory=list)
    chosen: dict[str, dict[str, int]] | None = None

    def __post_init__(self) -> None:
        self._by_key = {(t, e.id): e for t, rows in self.examples.items() for e in rows}

    def recover(self) -> set[tuple[str, str]]:
        """(task, id) of what an earlier process has finished; files are cleaned of half lines and stale texts."""
        done: set[tuple[str, str]] = set()
        for task, rows in self.examples.items():
            known = {e.id: e for e in rows}
            found, size = self.run.recover_predictions(task)
            path = self.run.prediction_file(task)
            if path.exists() and path.stat().st_size > size:
                self.warnings.append(f"{path.name}: a half-written last line was dropped; its batch is made again")
                os.truncate(path, size)
            good = [p for p in found if p.id in known and _matches(p, known[p.id])]
            if len(good) < len(found):
                self.warnings.append(f"{path.name}: {len(found) - len(good)} texts for other prompts are made again")
                path.unlink()
                append_lines(path, [p.model_dump_json() for p in good])
            done |= {(task, p.id) for p in good}
        return done

    def write(self, task: str, texts: Iterable[tuple[str, str, int | None, bool | None]]) -> None:
        """Append (id, text, tokens, cut) of one task, flushed to disk; None where a back end did not tell."""
        lines = []
        for key, text, tokens, cut in texts:
            example = self._by_key[task, key]
            prediction = Prediction(
                id=key,
                prompt_hash=text_hash(example.prompt),
                target_hash=text_hash(example.target),
                text=text,
                tokens=tokens,
                cut=cut,
            )
            lines.append(json.dumps(prediction.model_dump(), ensure_ascii=False))
        append_lines(self.run.prediction_file(task), lines)


def _matches(prediction: Prediction, example: Example) -> bool:
    same = prediction.prompt_hash == text_hash(example.prompt)
    return same and prediction.target_hash == text_hash(example.target)
