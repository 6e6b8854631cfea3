"""The suite that a TOML file defines."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import DataError
from harness.hashing import file_sha256
from harness.json_lines import missing, quoted
from harness.task import SPLITS, Example, Suite, Task, UnlabelledExample
from tasks.common.jsonl import build_dataset

if TYPE_CHECKING:
    from datasets import Dataset

    from tasks.table.examples import PlacedExample, TaskReader
    from tasks.table.keys import Definition, TaskKeys

# The other modules of this package are imported where they are used: `harness list` loads this class and no pydantic.

EXAMPLE = Path(__file__).parent / "example"
_NAME_LINE = re.compile(r'^name = ".*"', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class TableSuite(Suite):
    """Tasks from a TOML file, with data in JSON lines, JSON, CSV, TSV, Parquet or on the hub.

    definition: the content of the file, without prose; see ``tasks.table.keys.Definition``. A source is the folder
        that the file's paths are relative to.
    """

    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = (".toml",)

    definition: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: Path) -> TableSuite:
        """The suite of a file. Raises: UsageError with file, key and remedy."""
        from tasks.table.definition import read_definition

        return cls(definition=read_definition(path).content())

    @classmethod
    def write_example(cls, folder: Path) -> None:
        """Write a commented file and its data; the suite has the folder's name."""
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        name = re.sub(r"[^\w.+-]+", "-", folder.resolve().name).strip("-.+") or "my-suite"
        file = folder / "suite.toml"
        file.write_text(_NAME_LINE.sub(f'name = "{name}"', file.read_text(encoding="utf-8"), count=1), encoding="utf-8")

    @property
    def name(self) -> str:  # type: ignore[override]  # each file has its own
        """The name in the file."""
        return str(self.definition.get("name", ""))

    @cached_property
    def _definition(self) -> Definition:
        from tasks.table.definition import parse_definition

        return parse_definition(self.definition, "the suite's definition")

    @cached_property
    def _tasks(self) -> Mapping[str, Task]:
        from tasks.table.answers import make_task

        return {name: make_task(name, keys) for name, keys in self._keys.items()}

    @property
    def _keys(self) -> Mapping[str, TaskKeys]:
        return self._definition.task if self.definition else {}

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks, in the order of the file."""
        return self._tasks

    def splits(self, source: str) -> Sequence[str]:
        """The splits that some task has."""
        return [split for split in SPLITS if any(keys.given(split) for keys in self._keys.values())]

    def files(self, source: str) -> Sequence[Path]:
        """Every data file, once."""
        readers = self._readers(source)
        return list(dict.fromkeys(file for r in readers for split in SPLITS for file in r.files(split)))

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of the definition and of each data file, and the commit of each data set on the hub."""
        readers = self._readers(source)
        content = json.dumps(self.definition, sort_keys=True, ensure_ascii=False)
        parts = {"definition": hashlib.sha256(content.encode()).hexdigest()}
        for reader in readers:
            if reader.hub is not None:
                parts[reader.hub.id] = str(reader.hub.revision)
                continue
            for name in dict.fromkeys(name for split in SPLITS for name in reader.keys.given(split)):
                if not (reader.folder / name).is_file():
                    raise missing(reader.folder / name)
                parts[name] = file_sha256(reader.folder / name)
        return parts

    def read(self, source: str, split: str) -> Dataset:
        """Read ``train``, ``dev`` or ``test`` of every task; see ``Suite.read``."""
        from tasks.table.examples import RULE

        files = [file for reader in self._readers(source) for file in reader.files(split)]
        options = {"definition": dict(self.definition), "split": split, "rule": RULE}
        return build_dataset(
            lambda: self._examples(source, split), reader="table", version=self.version, files=files, options=options
        )

    def read_unlabelled(self, path: Path, task: str | None) -> Iterator[UnlabelledExample]:
        """A data file of any of the tasks; see ``tasks.table.unlabelled``."""
        from tasks.table.examples import TaskReader
        from tasks.table.unlabelled import unlabelled

        readers = [TaskReader(task=name, keys=keys, folder=path.parent) for name, keys in self._keys.items()]
        return unlabelled(path, readers, task)

    def locate(self, source: str, split: str, ids: Iterable[str]) -> Mapping[str, str]:
        """File and line of examples by id, from one pass over the split."""
        wanted = set(ids)
        placed = self._placed(source, split) if wanted else ()
        return {p.example.id: p.place.replace(", line ", ":") for p in placed if p.example.id in wanted}

    def describe(self, source: str) -> Mapping[str, Any]:
        """Where each split of each task comes from."""
        return {
            name: {split: list(keys.given(split)) for split in SPLITS if keys.given(split)}
            for name, keys in self._keys.items()
        }

    def _readers(self, source: str) -> list[TaskReader]:
        from tasks.table.examples import TaskReader

        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise DataError(f"{source}: not a folder. Give the folder that the paths in the suite's file start from")
        return [TaskReader(task=name, keys=keys, folder=folder) for name, keys in self._keys.items()]

    def _placed(self, source: str, split: str) -> Iterator[PlacedExample]:
        for reader in self._readers(source):
            yield from reader.examples(split)

    def _examples(self, source: str, split: str) -> Iterator[Example]:
        """The examples of a split. Raises: DataError for an id that occurs twice, and a choice that never occurs."""
        for reader in self._readers(source):
            places: dict[str, str] = {}
            targets: set[str] = set()
            for placed in reader.examples(split):
                example = placed.example
                if example.id in places:
                    raise DataError(
                        f"{placed.place}: task.{reader.task}.id_column: {quoted(example.id)} is also the id of "
                        f"{places[example.id]}. Ids must differ, or leave id_column out"
                    )
                places[example.id] = placed.place
                targets.add(example.target)
                yield example
            _check_choices(reader, split, targets)


def _check_choices(reader: TaskReader, split: str, targets: set[str]) -> None:
    """Raise a DataError if a choice of the file is never a target of the training split."""
    if reader.keys.choices is None or split != "train" or not targets:
        return
    from tasks.table.answers import make_task

    parse = make_task(reader.task, reader.keys).protocols["official"].parse
    example = Example(id="", task=reader.task, prompt="", target="", choices=reader.keys.choices)
    answers = {str(parse(target, example)) for target in targets}
    for choice in reader.keys.choices:
        if choice not in answers:
            known = ", ".join(quoted(target, 30) for target in sorted(targets)[:6])
            raise DataError(
                f"{reader.folder / reader.keys.train[0]}: task.{reader.task}.choices: {choice!r} is not the target of "
                f"any line. Targets are {known}. Correct the choice or target, or remove the choice"
            )
