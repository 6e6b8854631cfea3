"""lm-eval's tasks from recorded definitions: with their data, and with one document for scoring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from lm_eval.api.task import ConfigurableTask

from harness.errors import DataError, hub_errors
from tasks.lm_eval_groups.config import Portable, build_task, needs_folder
from tasks.lm_eval_groups.definition import TaskDefinition, described
from tasks.lm_eval_groups.examples import FAILURES
from tasks.lm_eval_groups.index import quiet


def load_task(name: str, portable: Portable, folder: Path | None) -> ConfigurableTask:
    """A task with its data. Raises: DataError if they are not there; ``FAILURES`` for a task that is wrong."""
    if needs_folder(portable) and (folder is None or not folder.is_dir()):
        raise DataError(
            f"{name}: its files are in a folder of task files, and {folder or 'none'} is not one: give it with --data"
        )
    with quiet():
        try:
            return build_task(portable, folder)
        except DatasetGenerationError as error:
            raise DataError(
                f"{name}: the files of its data cannot be read ({described(error.__cause__ or error)}). "
                "Correct the files that dataset_path or data_files name in the task's file"
            ) from error
        except (*hub_errors(), DatasetsError) as error:
            raise DataError(
                f"the data of lm-eval's {name} are not on this disk, and the hub cannot be reached or does not have "
                f"them ({described(error)}). Run the same command once with a connection and without "
                "HF_HUB_OFFLINE, which stores them in the cache; for tasks of your own, correct the path in their files"
            ) from error


def scoring_task(
    name: str, definition: TaskDefinition, document: Mapping[str, Any], folder: Path | None
) -> ConfigurableTask:
    """A task whose only document is this one. Raises: DataError for functions that are missing, changed or wrong."""
    portable = Portable(config=dict(definition.config), modules=dict(definition.modules))
    alone = {
        "custom_dataset": lambda **_: {"test": Dataset.from_list([dict(document)])},
        "dataset_kwargs": None,
        "process_docs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "fewshot_config": None,
    }
    with quiet():
        try:
            task = build_task(portable, folder, **alone)
        except FAILURES as error:
            raise DataError(
                f"{name}: lm-eval cannot open the task for scoring ({described(error)}). Install the lm-eval "
                "that the run used, or run it again"
            ) from error
    # lm-eval decides this by the first document of the split.
    task.multiple_target = int(definition.several_targets)
    return task
