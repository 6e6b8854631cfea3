"""The items of SuperGLUE's files: what a line holds, whatever the layout of the file.

The official archive has one object for each passage of MultiRC and ReCoRD, with its questions and answers nested in it,
and the words of labels. Parquet files and the data set on the hub have one line for each answer or query, and labels as
numbers in the order of ``LABELS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import DataError
from harness.json_lines import quoted

_BOOLEAN: Final = ("False", "True")
LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "boolq": _BOOLEAN,
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "multirc": _BOOLEAN,
    "rte": ("entailment", "not_entailment"),
    "wic": _BOOLEAN,
    "wsc": _BOOLEAN,
}
"""The labels of each task that has some, in the order of the numbers in the data. ReCoRD has entities instead."""
PLACEHOLDER: Final = "@placeholder"
SEPARATOR: Final = " | "
"""Between the correct entities of ReCoRD in a target: unlike a line break, tokenizers such as T5's have it."""
_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "boolq": ("passage", "question"),
    "cb": ("premise", "hypothesis"),
    "copa": ("premise", "choice1", "choice2", "question"),
    "rte": ("premise", "hypothesis"),
    "wic": ("word", "sentence1", "sentence2"),
}
"""The texts of the tasks with one example a line. The first one decides the split (see ``Item.content``)."""
Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One question of a task with its answer.

    id: the task and the official numbers: ``boolq-12``, ``multirc-PASSAGE-QUESTION-ANSWER``, ``record-PASSAGE-QUERY``.
    content: the text that the question is about. Items with equal contents are in the same split.
    texts: what prompts consist of, by name. label: one of the task's ``LABELS``; "" in ReCoRD.
    entities, golds: of ReCoRD, the different entities of the passage and those that are correct.
    group: the question of an answer of MultiRC, whose answers are scored together.
    """

    id: str
    task: str
    content: str
    texts: Mapping[str, str]
    label: str = ""
    entities: tuple[str, ...] = ()
    golds: tuple[str, ...] = ()
    group: str | None = None


def items(task: str, line: Line, where: str) -> Iterator[Item]:
    """The items of one line.

    Args: where: the place of the line, for errors.
    Raises: DataError naming the key, the value and the remedy, also for a label that is withheld.
    """
    reader = _READERS.get(task)
    if reader is not None:
        yield from reader(line, where)
        return
    texts = {name: _text(line, name, where) for name in _TEXTS[task]}
    if task == "copa" and texts["question"] not in ("cause", "effect"):
        raise DataError(f"{where}: 'question' must be cause or effect, not {quoted(texts['question'])}")
    yield Item(
        id=f"{task}-{_number(line, 'idx', where)}",
        task=task,
        content=texts[_TEXTS[task][0]],
        texts=texts,
        label=_label(task, line, where),
    )


def _wsc(line: Line, where: str) -> Iterator[Item]:
    """The text with the pronoun between asterisks, and the noun that it may refer to."""
    spans = line.get("target", line)
    if not isinstance(spans, Mapping):
        raise DataError(f"{where}: 'target' must be an object with span1_text, span2_text and span2_index")
    text, noun, pronoun = (
        _text(line, "text", where),
        _text(spans, "span1_text", where),
        _text(spans, "span2_text", where),
    )
    yield Item(
        id=f"wsc-{_number(line, 'idx', where)}",
        task="wsc",
        content=text,
        texts={
            "text": _marked(text, pronoun, _number(spans, "span2_index", where), where),
            "noun": noun,
            "pronoun": pronoun,
        },
        label=_label("wsc", line, where),
    )


def _marked(text: str, pronoun: str, index: int, where: str) -> str:
    """The text with asterisks around the pronoun, the word number ``index`` from 0; words are separated by spaces.

    Some published indices are a few words off, so the nearest occurrence of the pronoun is marked.
    """
    words = " ".join(text.split())
    found = list(re.finditer(rf"\b{re.escape(pronoun)}(?!\w)", words, re.IGNORECASE))
    if not found:
        raise DataError(f"{where}: the text does not contain span2_text {quoted(pronoun)}. Correct the line")
    nearest = min(found, key=lambda match: abs(words[: match.start()].count(" ") - index))
    return f"{words[: nearest.start()]}*{nearest[0]}*{words[nearest.end() :]}"


def _multirc(line: Line, where: str) -> Iterator[Item]:
    passage = line.get("passage")
    if isinstance(passage, Mapping):
        text, n_passage = _text(passage, "text", where), _number(line, "idx", where)
        for question in _objects(passage, "questions", where):
            of_question = f"{n_passage}-{_number(question, 'idx', where)}"
            words = {"passage": text, "question": _text(question, "question", where)}
            for answer in _objects(question, "answers", where):
                number = _number(answer, "idx", where)
                yield _answer(of_question, number, {**words, "answer": _text(answer, "text", where)}, answer, where)
        return
    index = line.get("idx")
    if not isinstance(index, Mapping):
        raise DataError(f"{where}: 'idx' must have the numbers paragraph, question and answer, not {quoted(index)}")
    numbers = [_number(index, name, where) for name in ("paragraph", "question", "answer")]
    texts = {"passage": _text(line, "paragraph", where)}
    texts |= {name: _text(line, name, where) for name in ("question", "answer")}
    yield _answer(f"{numbers[0]}-{numbers[1]}", numbers[2], texts, line, where)


def _answer(question: str, number: int, texts: Mapping[str, str], labelled: Line, where: str) -> Item:
    return Item(
        id=f"multirc-{question}-{number}",
        task="multirc",
        content=texts["passage"],
        texts=texts,
        label=_label("multirc", labelled, where),
        group=question,
    )


def _record(line: Line, where: str) -> Iterator[Item]:
    passage = line.get("passage")
    if isinstance(passage, Mapping):
        text, n_passage = _text(passage, "text", where), _number(line, "idx", where)
        spans = [(_number(e, "start", where), _number(e, "end", where)) for e in _objects(passage, "entities", where)]
        entities = [text[start : end + 1] for start, end in spans]  # The end is the last character of the entity.
        for query in _objects(line, "qas", where):
            golds = [_text(answer, "text", where) for answer in _objects(query, "answers", where)]
            number = f"{n_passage}-{_number(query, 'idx', where)}"
            yield _query(number, text, _text(query, "query", where), entities, golds, where)
        return
    index = line.get("idx")
    if not isinstance(index, Mapping):
        raise DataError(f"{where}: 'idx' must have the numbers passage and query, not {quoted(index)}")
    number = "-".join(str(_number(index, name, where)) for name in ("passage", "query"))
    entities, golds = (_names(line, key, where) for key in ("entities", "answers"))
    yield _query(number, _text(line, "passage", where), _text(line, "query", where), entities, golds, where)


def _query(number: str, text: str, query: str, entities: Iterable[str], golds: Iterable[str], where: str) -> Item:
    offered = _different(entities)
    correct = tuple(gold for gold in _different(golds) if gold in offered)
    if not correct:
        raise DataError(
            f"{where}: query {number} has no answer among the passage's entities. Test files have none: pass the "
            "validation file, or correct the line"
        )
    if PLACEHOLDER not in query:
        raise DataError(f"{where}: query {number} has no {PLACEHOLDER}: {quoted(query)}. Correct the line")
    return Item(
        id=f"record-{number}",
        task="record",
        content=text,
        texts={"passage": text, "query": query},
        entities=offered,
        golds=correct,
    )


def _different(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in their order, each on one line and without the separator."""
    plain = (" ".join(given.replace(SEPARATOR.strip(), " ").split()) for given in names)
    return tuple(dict.fromkeys(name for name in plain if name))


_READERS: Final[Mapping[str, Callable[[Line, str], Iterator[Item]]]] = {
    "multirc": _multirc,
    "record": _record,
    "wsc": _wsc,
}


def _label(task: str, line: Line, where: str) -> str:
    value, labels = line.get("label"), LABELS[task]
    if isinstance(value, bool) and labels == _BOOLEAN:
        return labels[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels):
        return labels[value]
    if isinstance(value, str) and value in labels:
        return value
    if value is None or value == -1:
        raise DataError(
            f"{where}: the label is withheld ({value!r}), as in the official test files, which cannot be scored. The "
            "validation file is the test split: pass the folder with train and val files as they were published"
        )
    raise DataError(f"{where}: 'label' must be {' or '.join(labels)}, or its number from 0, not {quoted(value)}")


def _text(line: Line, name: str, where: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value.strip():
        present = ", ".join(quoted(key, 30) for key in list(line)[:12]) or "no keys"
        what = f"{name!r} must be text that is not blank, not {quoted(value)}" if name in line else f"no {name!r}"
        raise DataError(f"{where}: {what} (the line has {present}). Is this the file of another task?")
    return value.strip()


def _number(line: Line, name: str, where: str) -> int:
    value = line.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where}: {name!r} must be a whole number, not {quoted(value)}. Correct the line")
    return value


def _objects(line: Line, name: str, where: str) -> list[Line]:
    value = line.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise DataError(f"{where}: {name!r} must be a list of objects, not {quoted(value)}. Correct the line")
    return value


def _names(line: Line, name: str, where: str) -> list[str]:
    value = line.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{where}: {name!r} must be a list of texts, not {quoted(value)}. Correct the line")
    return value
