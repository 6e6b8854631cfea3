"""Parsers of the released scorer, quirk for quirk: what they return is what it would have scored.

Each takes any text and is linear in its length. NOT_PARSED is returned only where the released parser finds nothing
and the text does not say so in the task's words; the statistics then fall back to what it scores (see protocols.py).
Lines end at "\\n" alone, and items keep their order and repetitions: it is the metric that makes sets of them.
"""

from __future__ import annotations

from harness.task import NOT_PARSED, Answer, Example
from tasks.promptcblue.answers import HEADINGS, Entity, Event, Finding, Triple

NO_ENTITY = "上述句子没有指定类型实体"
NO_TRIPLE = "没有指定类型的三元组"
NO_NAME = "没有对应的标准化实体"
NO_EVENT = "上述句子中的临床发现事件如下："

UNMARKED_FINDING = "不标注"  # quirk: stands for every unknown status of CHIP-MDCFNPC, though no example offers it
UNMARKED_SYMPTOM = "无法根据上下文确定病人是否患有该症状"  # the same of IMCS-V2-SR, where it is one of the choices
SAME_ANSWER = {"相同": "是的", "不同": "不是"}  # CHIP-STS asks with either pair of words

_FIELDS = ("主体词", "发生状态", "描述词", "解剖部位")
_LISTS = _FIELDS[2:]


def entities(text: str, example: Example) -> Answer:
    """CMeEE-V2 and IMCS-V2-NER: ``<type>实体：a，b``. Lines of types that the example does not ask for vanish."""
    found = []
    lines = text.split("\n")
    for choice in example.choices or ():
        start = f"{choice}实体"
        for line in lines:
            if line.startswith(start):
                mentions = _parts(_cut_everywhere(line, f"{start}："))
                found += [Entity(mention=mention, type=choice) for mention in mentions]
    return _found(tuple(found), "实体：" in text or text.strip() == NO_ENTITY)


def triples(text: str, example: Example) -> Answer:
    """CMeIE: ``具有<relation>关系的头尾实体对如下：头实体为a，尾实体为b。``, any relation, offered or not."""
    found = []
    for line in text.split("\n"):
        predicate = _predicate(line)
        for pair in _cut_everywhere(line, f"具有{predicate}关系的头尾实体对如下：").split("。"):
            parts = pair.split("，尾实体为")
            if len(parts) > 1:
                subject = _cut_everywhere(parts[0], "头实体为").strip()
                tail = _cut_everywhere(parts[1], "尾实体为").strip()
                found.append(Triple(subject=subject, predicate=predicate, object=tail))
    return _found(tuple(found), "关系的头尾实体对" in text or text.strip() == NO_TRIPLE)


def names(text: str, example: Example) -> Answer:
    """CHIP-CDN: standard names between ``，`` in the last line.

    Quirk: a name that is no candidate vanishes and costs no precision; so does the first half of a candidate that
    has a ``，`` itself.
    """
    offered = set(example.choices or ())
    kept = (name for name in _parts(text.rpartition("\n")[2]) if name in offered)
    return _found(tuple(dict.fromkeys(kept)), text.strip() == NO_NAME)


def events(text: str, example: Example) -> Answer:
    """CHIP-CDEE: one event a line, ``主体词：…；发生状态：…；描述词：a，b；解剖部位：…``.

    Quirk: every line after the first is an event, a blank one too.
    """
    found = tuple(_event(line) for line in _after_lead_in(text))
    return _found(found, text.strip() == NO_EVENT)


def findings(text: str, example: Example) -> Answer:
    """CHIP-MDCFNPC: ``<finding>：<status>`` a line."""
    return _statuses(text, example, UNMARKED_FINDING)


def symptoms(text: str, example: Example) -> Answer:
    """IMCS-V2-SR: as ``findings``."""
    return _statuses(text, example, UNMARKED_SYMPTOM)


def label(text: str, example: Example) -> Answer:
    """Quirk: whatever the text is, it is the label, and one that the model invented is a class of its own."""
    return text.strip() or NOT_PARSED


def same_or_not(text: str, example: Example) -> Answer:
    """CHIP-STS: a label under either of its names."""
    answer = label(text, example)
    return SAME_ANSWER.get(answer, answer)


def reply(text: str, example: Example) -> Answer:
    """MedDG: the text."""
    return text.strip() or NOT_PARSED


def report(text: str, example: Example) -> Answer:
    """IMCS-V2-MRG: the sections that the text has, one a line: further lines of a section are lost.

    Quirk: the last line of a heading counts, and of that the text after the heading's last occurrence.
    """
    lines = _after_lead_in(text.strip())
    sections = {}
    for heading in HEADINGS:
        start = f"{heading}："
        for line in lines:
            if line.startswith(start):
                sections[heading] = line.strip().rpartition(start)[2].strip()
    return sections or NOT_PARSED


def _found(items: tuple[object, ...], says_none: bool) -> Answer:
    return items if items or says_none else NOT_PARSED


def _parts(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split("，")) if part]


def _after_lead_in(text: str) -> list[str]:
    """Quirk: the first line is skipped unread, so an answer that starts at once loses its first item."""
    return text.split("\n")[1:]


def _cut_everywhere(text: str, marker: str) -> str:
    """Quirk: a marker that a line must start with is taken out wherever it occurs; without its colon it stays."""
    return text.replace(marker, "")


def _predicate(line: str) -> str:
    """Quirk: without the words that follow it, a relation is the whole line from the third character on."""
    return line.partition("关系的头尾实体对")[0][2:].strip()


def _event(line: str) -> Event:
    """One event; the last of two equal fields counts.

    Quirk: a field is looked for again in what is left of a piece after the earlier field's marker was cut out, so
    ``主体词：发生状态：x`` fills both.
    """
    values: dict[str, str | tuple[str, ...]] = {}
    for piece in line.split("；"):
        for field in _FIELDS:
            if piece.startswith(f"{field}："):
                piece = _cut_everywhere(piece, f"{field}：").strip()
                values[field] = tuple(_parts(piece)) if field in _LISTS else piece
    subject, status, descriptions, places = (values.get(f, () if f in _LISTS else "") for f in _FIELDS)
    return Event(subject=str(subject), status=str(status), descriptions=tuple(descriptions), places=tuple(places))


def _statuses(text: str, example: Example, unknown: str) -> Answer:
    """Quirk: a line with no colon or two is passed over, and a status counts only letter for letter, spaces too."""
    offered = set(example.choices or ())
    found = []
    for line in _after_lead_in(text):
        if line.count("：") == 1:
            mention, _, status = line.partition("：")
            found.append(Finding(mention=mention.strip(), status=status if status in offered else unknown))
    return _found(tuple(found), False)
