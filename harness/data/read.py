"""Reading one split with a suite, and checking that it returns what the contract promises."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import DataError
from harness.json_lines import quoted
from harness.task import Suite

if TYPE_CHECKING:
    from datasets import Dataset

_TEXTS: Final = ("id", "task", "prompt", "target")
_BATCH: Final = 1_000  # examples
_MAX_NAMES: Final = 10  # An error message lists this many names of a folder's content.


def read_split(suite: Suite, source: str, split: str) -> Dataset:
    """``suite.read``, checked: columns of texts without nulls, and unique ids.

    Raises: DataError, before anything is trained on the examples.
    """
    from datasets import Dataset

    dataset: Any = suite.read(source, split)
    reader = f"suite {suite.name!r}, {split} split"
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"{reader}: read must return a datasets.Dataset with the columns {', '.join(_TEXTS)} and choices, not "
            f"{type(dataset).__name__}. For a list of dicts: datasets.Dataset.from_list(examples)"
        )
    missing = [name for name in _TEXTS if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"{reader}: the data set has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}"
        )
    for name in _TEXTS if len(dataset) else ():
        _check_texts(dataset, name, reader)
    if "references" in dataset.column_names:
        _check_references(dataset, reader)
    _check_ids(suite, source, split, dataset)
    return dataset


def contents(source: str) -> str:
    """`` The folder contains a, b.`` for a source that is a folder, `` There is no folder x.`` for a path that is gone.

    Empty for a file or a data set on the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        names = sorted(f"{p.name}/" if p.is_dir() else p.name for p in path.iterdir())
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        return f" The folder contains {', '.join(names[:_MAX_NAMES]) or 'no files'}{more}."
    return f" There is no folder {path}." if path.is_absolute() and not path.exists() else ""


def _columns(dataset: Dataset, *names: str) -> Any:
    """These columns as a pyarrow Table: no Python object is made for each example."""
    return dataset.select_columns(list(names)).with_format("arrow")[:]


def _check_texts(dataset: Dataset, name: str, reader: str) -> None:
    dtype = str(getattr(dataset.features[name], "dtype", dataset.features[name]))
    if dtype not in ("string", "large_string", "null"):
        raise DataError(f"{reader}: the column {name!r} must have texts, not {dtype}")
    if dataset.data.column(name).null_count == 0:
        return
    for i, example in enumerate(dataset):
        if example[name] is None:
            where = f"example {i + 1} (id {example['id']!r})"
            hint = ' A target that is not known is the empty text "".' if name == "target" else ""
            raise DataError(f"{reader}: {where} has None as its {name}, but a text is needed.{hint}")


def _check_references(dataset: Dataset, reader: str) -> None:
    """Raises: DataError if an example has references, and its target is not among them, apart from white space."""
    if dataset.data.column("references").null_count == len(dataset):
        return
    columns = dataset.with_format(None).select_columns(["id", "target", "references"])
    batches = (zip(*batch.values(), strict=True) for batch in columns.iter(_BATCH))
    for id_, target, references in chain.from_iterable(batches):
        if references is None:
            continue
        if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
            raise DataError(
                f"{reader}: the references of example {id_!r} are {quoted(references)}, but a list of texts is needed, "
                "or None if the target is the only right answer"
            )
        if target.strip() and target.strip() not in {text.strip() for text in references}:
            raise DataError(
                f"{reader}: the target of example {id_!r}, {quoted(target)}, is not among its references "
                f"{quoted(references)}. References are all right answers, the target included"
            )


def _check_ids(suite: Suite, source: str, split: str, dataset: Dataset) -> None:
    import pyarrow.compute as pc

    ids = _columns(dataset, "id").column("id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    first: dict[str, int] = {}
    for i, id_ in enumerate(ids.to_pylist()):
        if id_ in first:
            place = suite.locate(source, split, [id_]).get(id_)
            at = f" (one is at {place})" if place else ""
            raise DataError(
                f"{source}: the id {id_!r} occurs twice in the {split} split: example {first[id_] + 1} and "
                f"example {i + 1}{at}. Ids must be unique within a split, since predictions are stored by id: give "
                "each example its own"
            )
        first[id_] = i
