"""Parsers of the benchmark's words: the formats that its documents describe, read strictly but without accidents.

What is outside an example's choices is kept and is wrong. Each parser takes any text and is linear in its length.
NOT_PARSED is a text without one line of the task's format that does not say in the task's words that there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.task import NOT_PARSED, Answer, Example
from tasks.promptcblue.answers import HEADINGS, Entity, Event, Finding, Outside, Triple
from tasks.promptcblue.labels import NONE_OF_THESE
from tasks.promptcblue.parsers_official import NO_ENTITY, NO_EVENT, NO_NAME, NO_TRIPLE, SAME_ANSWER

_NO_LABEL = set(
    "\n，。；：！？"
)  # no label of any task has one of these, so such a text is a sentence or several labels


def entities(text: str, example: Example) -> Answer:
    """``<type>实体：a，b`` a line; the type may be one that the example did not ask for."""
    found = []
    is_format = text.strip() == NO_ENTITY
    for line in _lines(text):
        type_, marker, mentions = line.partition("实体：")
        if marker and type_:
            is_format = True
            found += [Entity(mention=mention, type=type_) for mention in _parts(mentions)]
    return tuple(found) if is_format else NOT_PARSED


def triples(text: str, example: Example) -> Answer:
    """``具有<relation>关系的头尾实体对如下：头实体为a，尾实体为b。``; a line without such a heading is passed over."""
    found: list[Triple] = []
    is_format = text.strip() == NO_TRIPLE
    for line in _lines(text):
        heading, marker, pairs = line.partition("关系的头尾实体对如下：")
        if marker and heading.startswith("具有"):
            is_format = True
            found += _pairs(heading.removeprefix("具有"), pairs)
    return tuple(found) if is_format else NOT_PARSED


def names(text: str, example: Example) -> Answer:
    """Names between ``，`` in the last line that is not blank."""
    last = text.strip().rpartition("\n")[2]
    if not last:
        return NOT_PARSED
    return () if last == NO_NAME else tuple(dict.fromkeys(_parts(last)))


def events(text: str, example: Example) -> Answer:
    """``主体词：…；发生状态：…；描述词：a，b；解剖部位：…`` a line; a line with none of these fields is passed over."""
    found = []
    for line in _lines(text):
        fields = dict(piece.strip().partition("：")[::2] for piece in line.split("；"))
        if fields.keys() & {"主体词", "发生状态", "描述词", "解剖部位"}:
            found.append(
                Event(
                    subject=fields.get("主体词", "").strip(),
                    status=fields.get("发生状态", "").strip(),
                    descriptions=_parts(fields.get("描述词", "")),
                    places=_parts(fields.get("解剖部位", "")),
                )
            )
    return tuple(found) if found or text.strip() == NO_EVENT else NOT_PARSED


def findings(text: str, example: Example) -> Answer:
    """``<finding>：<status>`` a line; a line that ends with the colon is the lead-in."""
    found = []
    for line in _lines(text):
        mention, marker, status = (part.strip() for part in line.rpartition("："))
        if marker and mention and status:
            found.append(Finding(mention=mention, status=status))
    return tuple(found) or NOT_PARSED


def label(labels: tuple[str, ...]) -> Callable[[str, Example], Answer]:
    """Parser of one label on one line; 相同 and 不同 are 是的 and 不是 where those are the task's labels."""

    def parse(text: str, example: Example) -> Answer:
        text = text.strip()
        if not text or not _NO_LABEL.isdisjoint(text):
            return NOT_PARSED
        text = _under_one_name(text, labels)
        return text if text in offered_labels(example, labels) else Outside(text=text)

    return parse


def offered_labels(example: Example, labels: tuple[str, ...]) -> set[str]:
    """The labels that an example offers: its choices, and "none of these" where the task knows it."""
    offered = {_under_one_name(choice, labels) for choice in example.choices or labels}
    return offered | {NONE_OF_THESE} if NONE_OF_THESE in labels else offered


def reply(text: str, example: Example) -> Answer:
    """The text."""
    return text.strip() or NOT_PARSED


def report(text: str, example: Example) -> Answer:
    """Sections under their headings, of one line or more; text before the first heading is the lead-in."""
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
