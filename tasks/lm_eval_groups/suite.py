"""The suite of a group, tag or list of tasks of lm-eval."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from harness.errors import UsageError
from harness.task import FoundSuite, Suite, Task
from tasks.common.jsonl import build_dataset

if TYPE_CHECKING:
    from datasets import Dataset

    from harness.task import Example
    from tasks.lm_eval_groups.definition import TaskDefinition
    from tasks.lm_eval_groups.examples import TaskReader

# The other modules of this package are imported where they are used: they load lm_eval, which `harness list` must not.

LOG: Final = logging.getLogger(__name__)
HUB: Final = "hub"
"""The source of tasks that are not in a folder of the user's: their data sets are on the hub, or in its cache."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The options of a suite of lm-eval's tasks.

    include_path: a folder of task files of your own; lm-eval's are read too only if a name is not in it.
    dev_share: the share of train that becomes dev, in tasks without a validation split besides the one that is scored.
    headline: the metric that leaderboards show, in the tasks that have it; default each task's first one.
    """

    include_path: str | None = None
    dev_share: float = 0.1
    headline: str | None = None


@dataclass(frozen=True, kw_only=True)
class LmEvalGroups(Suite):
    """Tasks of lm-evaluation-harness that have a training split, scored by lm-eval itself.

    group: the names of groups, tags and tasks. lm_eval: its version. definitions: by task, see ``TaskDefinition``. A
        source is the folder of the user's task files, or "hub".
    """

    version: ClassVar[int] = 1
    argument: ClassVar[str | None] = "GROUP[,TASK…]"
    argument_options: ClassVar[type | None] = GroupOptions

    group: str = ""
    lm_eval: str = ""
    dev_share: float = 0.1
    definitions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_argument(cls, argument: str, options: GroupOptions) -> FoundSuite:
        """The suite of some groups, tags and tasks.

        Raises: UsageError for an unknown name, a wrong option, and names without a single task that can be used;
            DataError for data that are missing.
        """
        from tasks.lm_eval_groups.find import find

        if not 0 < options.dev_share < 1:
            raise UsageError(f"suite.dev_share = {options.dev_share}: must be between 0 and 1, such as 0.1")
        names = tuple(dict.fromkeys(name.strip() for name in argument.split(",") if name.strip()))
        included = None if options.include_path is None else Path(options.include_path).expanduser()
        found = find(names, included, options.headline)
        suite = cls(
            group=",".join(names),
            lm_eval=found.version,
            dev_share=options.dev_share,
            definitions={name: definition.to_json() for name, definition in found.definitions.items()},
        )
        source = HUB if included is None else str(included.resolve())
        return FoundSuite(suite=suite, source=source, notes=found.notes)

    @property
    def name(self) -> str:  # type: ignore[override]  # each group has its own
        """``lm-eval-`` and the names, so that it can be part of a folder's name."""
        return "lm-eval-" + re.sub(r"[^\w.-]+", "+", self.group)[:60] if self.group else ""

    @cached_property
    def _definitions(self) -> Mapping[str, TaskDefinition]:
        from tasks.lm_eval_groups.definition import TaskDefinition

        return {name: TaskDefinition.from_json(content) for name, content in self.definitions.items()}

    @cached_property
    def _sources(self) -> list[str]:
        """The source that was read last, for tasks whose functions are in it."""
        return []

    @cached_property
    def _tasks(self) -> Mapping[str, Task]:
        from tasks.lm_eval_groups.scoring import TaskScoring

        return {name: TaskScoring(name, d, self._folder).task() for name, d in self._definitions.items()}

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks, in the order in which the groups name them."""
        return self._tasks

    def fingerprint(self, source: str) -> Mapping[str, str]:
        """The sha256 of each task's documents, as its ``process_docs`` gives them."""
        return dict(self._fingerprints(source))

    def read(self, source: str, split: str) -> Dataset:
        """Read ``train``, ``dev`` or ``test`` of every task; see ``Suite.read``."""
        from tasks.lm_eval_groups.examples import RULE

        content = json.dumps(dict(self.definitions), sort_keys=True, ensure_ascii=False)
        options = {
            "definitions": hashlib.sha256(content.encode()).hexdigest(),
            "documents": dict(self._fingerprints(source)),
            "lm_eval": self.lm_eval,
            "dev_share": self.dev_share,
            "split": split,
            "rule": RULE,
        }
        return build_dataset(
            lambda: self._examples(source, split),
            reader="lm-eval",
            version=self.version,
            files=[],
            options=options,
            documents=True,
        )

    def describe(self, source: str) -> Mapping[str, Any]:
        """For each task lm-eval's version of it, its splits, and how it is answered."""
        return {
            name: {
                "version": d.config.get("metadata", {}).get("version"),
                "splits": {"train": d.splits.train, "dev": d.splits.dev or "a share of train", "test": d.splits.test},
                "answer": "choose" if d.chooses else "generate",
            }
            for name, d in self._definitions.items()
        }

    def _folder(self) -> Path | None:
        source = self._sources[-1] if self._sources else HUB
        return None if source == HUB else Path(source).expanduser()

    @cached_property
    def _read(self) -> dict[str, list[TaskReader]]:
        """The readers by source: opening a task takes lm-eval long."""
        return {}

    def _readers(self, source: str) -> list[TaskReader]:
        from tasks.lm_eval_groups.find import open_reader

        self._sources.append(source)
        if source not in self._read:
            self._warn_of_another_version()
            self._read[source] = [
                open_reader(name, d, self._folder(), self.dev_share) for name, d in self._definitions.items()
            ]
        return self._read[source]

    @cached_property
    def _hashes(self) -> dict[str, Mapping[str, str]]:
        return {}

    def _fingerprints(self, source: str) -> Mapping[str, str]:
        readers = self._readers(source)
        if source not in self._hashes:
            self._hashes[source] = {reader.name: reader.fingerprint() for reader in readers}
        return self._hashes[source]

    def _warn_of_another_version(self) -> None:
        from tasks.lm_eval_groups.find import installed_version

        if self.lm_eval != installed_version():
            LOG.warning(
                "the run used lm-eval %s, and %s is installed: scores may differ", self.lm_eval, installed_version()
            )

    def _examples(self, source: str, split: str) -> Iterator[Example]:
        for reader in self._readers(source):
            yield from reader.examples(split)
