"""Task files of lm-eval about toys, over JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("red", "blue", "green")
MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True, kw_only=True)
class TaskFolder:
    """A folder of task files. Every task reads train.jsonl and test.jsonl, unless its keys say otherwise."""

    path: Path

    def write(self, name: str, lines: Sequence[Mapping[str, Any]]) -> Path:
        file = self.path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        return file

    def task(self, name: str, **keys: Any) -> None:
        """One task file. A key that is None is left out."""
        files = {split: str(self.path / f"{split}.jsonl") for split in ("train", "test")}
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "training_split": "train",
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
        }
        content = {k: v for k, v in {**common, **keys}.items() if v is not None}
        (self.path / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML

    def choices(self, name: str, **keys: Any) -> None:
        """A task that is answered by choosing a colour."""
        metrics = [{"metric": name, **MEAN} for name in ("acc", "acc_norm")]
        default = {"doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": metrics}
        self.task(name, **{"output_type": "multiple_choice", **default, **keys})

    def text(self, name: str, **keys: Any) -> None:
        """A task that is answered by writing a colour; white space around the answer does not count."""
        strip = {"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        settings = {"until": ["!"], "max_gen_toks": 8, "do_sample": False}
        default = {"doc_to_target": "{{colour}}", "generation_kwargs": settings, "filter_list": [strip]}
        metrics = [{"metric": "exact_match", **MEAN}]
        self.task(name, **{"output_type": "generate_until", "metric_list": metrics, **default, **keys})

    def group(self, name: str, members: Sequence[Any], **keys: Any) -> None:
        content = {"group": name, "task": list(members), **keys}
        (self.path / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")


def colour_lines(split: str, n: int) -> list[dict[str, Any]]:
    """Sentences that say a colour: the choices, the position of the right one, and the colour."""
    toys = ("car", "doll", "kite", "drum")
    return [
        {
            "text": f"the {COLOURS[i % 3]} {toys[i % 4]} {split[:2]}{i} is",
            "choices": list(COLOURS),
            "gold": i % 3,
            "colour": COLOURS[i % 3],
        }
        for i in range(n)
    ]


def colour_folder(path: Path) -> TaskFolder:
    """A folder with 40 lines to train on and 12 to test, and no task file."""
    path.mkdir(parents=True, exist_ok=True)
    folder = TaskFolder(path=path)
    folder.write("train", colour_lines("train", 40))
    folder.write("test", colour_lines("test", 12))
    return folder


def toy_group(path: Path) -> TaskFolder:
    """``toygroup``: one task of each kind of answer, one without a training split, and one with a wrong template."""
    folder = colour_folder(path)
    folder.choices("toy_choices")
    folder.text("toy_text", doc_to_text="{{text}} the colour")
    folder.choices("toy_untrained", training_split=None)
    folder.choices("toy_bad", doc_to_text="{{ nowhere.at.all }}")
    folder.group("toygroup", ["toy_choices", "toy_text", "toy_untrained", "toy_bad"])
    return folder
