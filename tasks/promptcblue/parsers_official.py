"""Parsers that reproduce the released scorer, including its quirks, which are marked "Quirk" where they occur.

Each accepts any text and is linear in its length. NOT_PARSED is returned if the released parser finds no item and the
text is not the task's phrase for "none"; the statistics then use what the released scorer uses (see protocols.py).
Lines end only at "\\n". Items keep their order and repetitions; the metric turns them into sets.
"""

from __future__ import annotations

from harness.task import NOT_PARSED, Answer, Example
from tasks.promptcblue.answers import HEADINGS, Entity, Event, Finding, Triple

NO_ENTITY = "上述句子没有指定类型实体"
NO_TRIPLE = "没有指定类型的三元组"
NO_NAME = "没有对应的标准化实体"
NO_EVENT = "上述句子中的临床发现事件如下："

UNMARKED_FINDING = "不标注"  # Quirk: replaces every unknown status of CHIP-MDCFNPC, though no example offers it
UNMARKED_SYMPTOM = "无法根据上下文确定病人是否患有该症状"  # the same in IMCS-V2-SR, where it is one of the choices
SAME_ANSWER = {"相同": "是的", "不同": "不是"}  # the prompts of CHIP-STS use either pair of words

_FIELDS = ("主体词", "发生状态", "描述词", "解剖部位")
_LISTS = _FIELDS[2:]


def entities(text: str, example: Example) -> Answer:
    """CMeEE-V2 and IMCS-V2-NER: ``<type>实体：a，b``. Lines with other types than the example's choices are ignored."""
    items = []
    lines = text.split("\n")
    for choice in example.choices or ():
        start = f"{choice}实体"
        for line in lines:
            if line.startswith(start):
                mentions = _parts(_remove_everywhere(line, f"{start}："))
                items += [Entity(mention=mention, type=choice) for mention in mentions]
    return _items_or_not_parsed(tuple(items), "实体：" in text or text.strip() == NO_ENTITY)


def triples(text: str, example: Example) -> Answer:
    """CMeIE: ``具有<relation>关系的头尾实体对如下：头实体为a，尾实体为b。``, with any relation, offered or not."""
    items = []
    for line in text.split("\n"):
        predicate = _predicate(line)
        for pair in _remove_everywhere(line, f"具有{predicate}关系的头尾实体对如下：").split("。"):
            parts = pair.split("，尾实体为")
            if len(parts) > 1:
                subject = _remove_everywhere(parts[0], "头实体为").strip()
                tail = _remove_everywhere(parts[1], "尾实体为").strip()
                items.append(Triple(subject=subject, predicate=predicate, object=tail))
    return _items_or_not_parsed(tuple(items), "关系的头尾实体对" in text or text.strip() == NO_TRIPLE)


def names(text: str, example: Example) -> Answer:
    """CHIP-CDN: standard names, separated by ``，``, in the last line.

    Quirk: a name that is not a candidate is dropped, so it does not reduce precision. The parts of a candidate that
    contains ``，`` are dropped as well.
    """
    offered = set(example.choices or ())
    kept = (name for name in _parts(text.rpartition("\n")[2]) if name in offered)
    return _items_or_not_parsed(tuple(dict.fromkeys(kept)), text.strip() == NO_NAME)


def events(text: str, example: Example) -> Answer:
    """CHIP-CDEE: one event on each line, ``主体词：…；发生状态：…；描述词：a，b；解剖部位：…``.

    Quirk: every line after the first is an event, even a blank one.
    """
    items = tuple(_event(line) for line in _after_lead_in(text))
    return _items_or_not_parsed(items, text.strip() == NO_EVENT)


def findings(text: str, example: Example) -> Answer:
    """CHIP-MDCFNPC: ``<finding>：<status>`` on each line."""
    return _statuses(text, example, UNMARKED_FINDING)


def symptoms(text: str, example: Example) -> Answer:
    """IMCS-V2-SR: the same format as in ``findings``."""
    return _statuses(text, example, UNMARKED_SYMPTOM)


def label(text: str, example: Example) -> Answer:
    """Quirk: any text is a label, and a label that the model invented is a class of its own."""
    return text.strip() or NOT_PARSED


def same_or_not(text: str, example: Example) -> Answer:
    """CHIP-STS: a label by either of its names."""
    answer = label(text, example)
    return SAME_ANSWER.get(answer, answer)


def reply(text: str, example: Example) -> Answer:
    """MedDG: the text."""
    return text.strip() or NOT_PARSED


def report(text: str, example: Example) -> Answer:
    """IMCS-V2-MRG: the sections of a report, one on each line; further lines of a section are dropped.

    Quirk: if several lines have the same heading, the last one counts, from the heading's last occurrence on.
    """
    lines = _after_lead_in(text.strip())
    sections = {}
    for heading in HEADINGS:
        start = f"{heading}："
        for line in lines:
            if line.startswith(start):
                sections[heading] = line.strip().rpartition(start)[2].strip()
    return sections or NOT_PARSED


def _items_or_not_parsed(items: tuple[object, ...], has_format: bool) -> Answer:
    return items if items or has_format else NOT_PARSED


def _parts(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split("，")) if part]


def _after_lead_in(text: str) -> list[str]:
    """Quirk: the first line is always skipped, so a text without an introduction loses its first item."""
    return text.split("\n")[1:]


def _remove_everywhere(text: str, marker: str) -> str:
    """Quirk: a line's initial marker is removed wherever it occurs; a marker without its colon is kept."""
    return text.replace(marker, "")


def _predicate(line: str) -> str:
    """Quirk: if the words after the relation are missing, the relation is the whole line from the third character."""
    return line.partition("关系的头尾实体对")[0][2:].strip()


def _event(line: str) -> Event:
    """One event; if a field occurs twice, the last one counts.

    Quirk: after a field's marker has been removed from a part, the rest is searched for the later fields, so that
    ``主体词：发生状态：x`` sets both.
    """
    values: dict[str, str | tuple[str, ...]] = {}
    for part in line.split("；"):
        for field in _FIELDS:
            if part.startswith(f"{field}："):
                part = _remove_everywhere(part, f"{field}：").strip()
                values[field] = tuple(_parts(part)) if field in _LISTS else part
    subject, status, descriptions, places = (values.get(f, () if f in _LISTS else "") for f in _FIELDS)
    return Event(subject=str(subject), status=str(status), descriptions=tuple(descriptions), places=tuple(places))


def _statuses(text: str, example: Example, unknown: str) -> Answer:
    """Quirk: lines without exactly one colon are ignored, and a status must match exactly, including spaces."""
    offered = set(example.choices or ())
    items = []
    for line in _after_lead_in(text):
        if line.count("：") == 1:
            mention, _, status = line.partition("：")
            items.append(Finding(mention=mention.strip(), status=status if status in offered else unknown))
    return _items_or_not_parsed(tuple(items), has_format=False)
