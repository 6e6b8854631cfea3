"""The sixteen tasks, one entry each, in the order of the benchmark's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from harness.task import Answer, Example, Protocol, Task
from tasks.promptcblue import labels, protocols
from tasks.promptcblue import parsers_official as official
from tasks.promptcblue import parsers_readme as readme
from tasks.promptcblue.answers import Entity, Finding, Outside, Triple
from tasks.promptcblue.diagnostics import confusion, entities_on_sentence
from tasks.promptcblue.protocols import Parse

ALIASES: Final = MappingProxyType({"CMeIE-V2": "CMeIE"})  # the name in later files and in the released scorer


def _entities(name: str, *, version: int = 1) -> Task:
    return Task(
        name=name,
        version=version,
        kind="ner",
        protocols=protocols.items(official.entities, readme.entities),
        invented=_has_unoffered_item,
        diagnose=entities_on_sentence,
    )


def _items(
    name: str, kind: str, official_parse: Parse, readme_parse: Parse, *, closed: bool = True, version: int = 1
) -> Task:
    """An extraction task. closed: whether the example's choices list every allowed type, relation, status or name."""
    return Task(
        name=name,
        version=version,
        kind=kind,
        protocols=protocols.items(official_parse, readme_parse),
        invented=_has_unoffered_item if closed else None,
    )


def _label(name: str, kind: str, known: tuple[str, ...], rules: Mapping[str, Protocol], *, version: int = 1) -> Task:
    return Task(
        name=name,
        version=version,
        kind=kind,
        protocols=rules,
        one_label=True,
        invented=_is_unoffered_label(known),
        diagnose=confusion(known, rules["official"].parse),
    )


def _has_unoffered_item(answer: Answer, example: Example) -> bool:
    """Whether the type, relation, status or standard name of any item is not among the example's choices."""
    offered = set(example.choices or ())
    return any(_choice(item) not in offered for item in answer or ())


def _choice(item: Entity | Triple | Finding | str) -> str:
    match item:
        case Entity():
            return item.type
        case Triple():
            return item.predicate
        case Finding():
            return item.status
        case _:
            return item


def _is_unoffered_label(known: tuple[str, ...]) -> Callable[[Answer, Example], bool]:
    def invented(answer: Answer, example: Example) -> bool:
        if isinstance(answer, Outside):
            return True
        return bool(answer) and answer not in readme.offered_labels(example, known)

    return invented


_SAME = protocols.micro_label(labels.SAME_QUESTION, official.same_or_not)
_CRITERION = protocols.macro_label(labels.CRITERION, jieba_headline="micro_f1")
_TABLE = (
    _entities("CMeEE-V2"),
    _items("CMeIE", "spo_generation", official.triples, readme.triples),
    _items("CHIP-CDN", "normalization", official.names, readme.names),
    _items("CHIP-CDEE", "event_extraction", official.events, readme.events, closed=False),
    _label("CHIP-STS", "cls", labels.SAME_QUESTION, _SAME),
    _label("CHIP-CTC", "cls", labels.CRITERION, _CRITERION),
    _items("CHIP-MDCFNPC", "attr_cls", official.findings, readme.findings),
    _label("KUAKE-IR", "matching", labels.RELEVANT, protocols.micro_label(labels.RELEVANT)),
    _label("KUAKE-QIC", "cls", labels.INTENT, protocols.macro_label(labels.INTENT)),
    _label("KUAKE-QQR", "matching", labels.QUERY_PAIR, protocols.micro_label(labels.QUERY_PAIR)),
    _label("KUAKE-QTR", "matching", labels.QUERY_TITLE, protocols.micro_label(labels.QUERY_TITLE)),
    Task(name="MedDG", version=1, kind="response_generation", protocols=protocols.replies()),
    Task(name="IMCS-V2-MRG", version=1, kind="report_generation", protocols=protocols.reports()),
    _entities("IMCS-V2-NER"),
    _label("IMCS-V2-DAC", "cls", labels.DIALOGUE_ACT, protocols.macro_label(labels.DIALOGUE_ACT)),
    _items("IMCS-V2-SR", "attr_cls", official.symptoms, readme.findings),
)
TASKS: Final[Mapping[str, Task]] = MappingProxyType({task.name: task for task in _TABLE})
NEEDS_CHOICES: Final = frozenset(task.name for task in _TABLE if task.invented is not None)
