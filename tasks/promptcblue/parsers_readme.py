"""Parsers of the formats that the benchmark's documentation describes, strict but without the released quirks.

Items outside an example's choices are kept, and are wrong. Each parser accepts any text and is linear in its length.
A text is NOT_PARSED if no line follows the task's format and it is not the task's phrase for "none".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.task import NOT_PARSED, Answer, Example
from tasks.promptcblue.answers import HEADINGS, Entity, Event, Finding, Outside, Triple
from tasks.promptcblue.labels import NONE_OF_THESE
from tasks.promptcblue.parsers_official import NO_ENTITY, NO_EVENT, NO_NAME, NO_TRIPLE, SAME_ANSWER

# No label has one of these characters, so a text with one is a sentence or several labels.
_NOT_IN_LABELS = set("\n，。；：！？")


def entities(text: str, example: Example) -> Answer:
    """``<type>实体：a，b`` on each line; the type need not be one of the example's choices."""
    items = []
    is_format = text.strip() == NO_ENTITY
    for line in _lines(text):
        type_, marker, mentions = line.partition("实体：")
        if marker and type_:
            is_format = True
            items += [Entity(mention=mention, type=type_) for mention in _parts(mentions)]
    return tuple(items) if is_format else NOT_PARSED


def triples(text: str, example: Example) -> Answer:
    """``具有<relation>关系的头尾实体对如下：头实体为a，尾实体为b。``; lines without such a heading are ignored."""
    items: list[Triple] = []
    is_format = text.strip() == NO_TRIPLE
    for line in _lines(text):
        heading, marker, pairs = line.partition("关系的头尾实体对如下：")
        if marker and heading.startswith("具有"):
            is_format = True
            items += _pairs(heading.removeprefix("具有"), pairs)
    return tuple(items) if is_format else NOT_PARSED


def names(text: str, example: Example) -> Answer:
    """Names, separated by ``，``, in the last line that is not blank."""
    last = text.strip().rpartition("\n")[2]
    if not last:
        return NOT_PARSED
    return () if last == NO_NAME else tuple(dict.fromkeys(_parts(last)))


def events(text: str, example: Example) -> Answer:
    """``主体词：…；发生状态：…；描述词：a，b；解剖部位：…`` on each line; lines without a field are ignored."""
    items = []
    for line in _lines(text):
        fields = dict(piece.strip().partition("：")[::2] for piece in line.split("；"))
        if fields.keys() & {"主体词", "发生状态", "描述词", "解剖部位"}:
            items.append(
                Event(
                    subject=fields.get("主体词", "").strip(),
                    status=fields.get("发生状态", "").strip(),
                    descriptions=_parts(fields.get("描述词", "")),
                    places=_parts(fields.get("解剖部位", "")),
                )
            )
    return tuple(items) if items or text.strip() == NO_EVENT else NOT_PARSED


def findings(text: str, example: Example) -> Answer:
    """``<finding>：<status>`` on each line; a line that ends with the colon is the introduction."""
    items = []
    for line in _lines(text):
        mention, marker, status = (part.strip() for part in line.rpartition("："))
        if marker and mention and status:
            items.append(Finding(mention=mention, status=status))
    return tuple(items) or NOT_PARSED


def label(labels: tuple[str, ...]) -> Callable[[str, Example], Answer]:
    """A parser of one label on one line; 相同 and 不同 become 是的 and 不是 if those are the task's labels."""

    def parse(text: str, example: Example) -> Answer:
        text = text.strip()
        if not text or not _NOT_IN_LABELS.isdisjoint(text):
            return NOT_PARSED
        text = _under_one_name(text, labels)
        return text if text in offered_labels(example, labels) else Outside(text=text)

    return parse


def offered_labels(example: Example, labels: tuple[str, ...]) -> set[str]:
    """The labels that an example offers: its choices, and "none of these" if that is a label of the task."""
    offered = {_under_one_name(choice, labels) for choice in example.choices or labels}
    return offered | {NONE_OF_THESE} if NONE_OF_THESE in labels else offered


def reply(text: str, example: Example) -> Answer:
    """The text."""
    return text.strip() or NOT_PARSED


def report(text: str, example: Example) -> Answer:
    """Sections under their headings, of one line or more; text before the first heading is the introduction."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in _lines(text):
        heading, marker, rest = line.partition("：")
        if marker and heading in HEADINGS:
            current = sections[heading] = [rest]
        elif current is not None:
            current.append(line)
    return {heading: "\n".join(lines).strip() for heading, lines in sections.items()} or NOT_PARSED


def _lines(text: str) -> Iterator[str]:
    return (line for line in (raw.strip() for raw in text.split("\n")) if line)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in (piece.strip() for piece in text.split("，")) if part)


def _pairs(predicate: str, text: str) -> Iterator[Triple]:
    for pair in text.split("。"):
        subject, marker, tail = pair.strip().partition("，尾实体为")
        if marker and subject.startswith("头实体为"):
            yield Triple(subject=subject.removeprefix("头实体为").strip(), predicate=predicate, object=tail.strip())


def _under_one_name(text: str, labels: tuple[str, ...]) -> str:
    renamed = SAME_ANSWER.get(text, text)
    return renamed if renamed in labels else text
