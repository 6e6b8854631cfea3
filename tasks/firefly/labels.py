"""Labels of the classification tasks: the wordings that prompts offer for each class, and the parser.

The templates of one task word their labels differently, so a class has several forms. A family is one wording of all
classes. The first family of a task has the names of its classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from harness.task import NOT_PARSED, Answer, Example, NotParsed

Family = tuple[str, ...]  # one form for each class, in the order of the first family

FAMILIES: Final[Mapping[str, tuple[Family, ...]]] = {
    "NLI": (
        ("蕴含", "中立", "矛盾"),
        ("蕴涵", "中立", "矛盾"),
        ("一定成立", "无法确定", "一定不成立"),
        ("是的", "也许", "不是"),
        ("正确", "不确定", "错误"),
        ("entailment", "neutral", "contradiction"),
        ("是", "可能", "否"),
    ),
    "SentimentAnalyze": (
        ("积极", "消极"),
        ("正面", "负面"),
        ("正向", "负向"),
        ("好评", "差评"),
        ("positive", "negative"),
    ),
    "TextMatching": (
        ("是的", "不是"),
        ("相同", "不同"),
        ("相同", "不相同"),
        ("一致", "不一致"),
        ("一样", "不一样"),
        ("相似", "不相似"),
        ("匹配", "不匹配"),
        ("同义", "不同义"),
        ("是", "否"),
        ("对", "错"),
    ),
}

_LIST = re.compile(r"选项[：:]([^\n。]{1,200})")
_BETWEEN = re.compile(r"[，,、/|；;\s]+")
_QUOTES: Final = "“”\"'‘’「」[]【】（）()《》.．!！?？"
_NEGATION: Final = ("不", "非", "没", "未", "无")


def offered(kind: str, prompt: str) -> tuple[str, ...] | None:
    """The labels that a prompt offers: its list of options, otherwise the first family that it contains completely.

    Returns: the labels in the prompt's wording; None if it offers none.
    """
    listed = _listed(prompt)
    if listed:
        return listed
    families = _families(kind, prompt)
    return families[0] if families else None


def class_of(kind: str, label: str) -> str:
    """The class of a form; a label that is not in any family is a class of its own."""
    for family in FAMILIES[kind]:
        if label in family:
            return FAMILIES[kind][0][family.index(label)]
    return label


def parse_label(kind: str, text: str, example: Example) -> str | NotParsed:
    """The only class that a text names, in a form that the prompt offers (or in any form if it offers none).

    A text that names several classes or none, or negates one (不积极), is NOT_PARSED. A form of one character counts
    only if it is the whole text, because 是 occurs in nearly every sentence.
    """
    families = _families(kind, example.prompt) or FAMILIES[kind]
    forms = _forms(kind, families, example.choices or ())
    text = text.casefold().strip()
    whole = forms.classes.get(text.strip(_QUOTES + "。，,： "))
    if whole is not None:
        return whole
    named = {"" if m["negated"] else forms.classes[m["form"] or m["negative"]] for m in forms.pattern.finditer(text)}
    return named.pop() if len(named) == 1 and "" not in named else NOT_PARSED


def is_invented(kind: str, answer: Answer, example: Example) -> bool:
    """Whether an answer is a class that is not among the example's choices."""
    if answer is NOT_PARSED or example.choices is None:
        return False
    return answer not in {class_of(kind, choice) for choice in example.choices}


def _families(kind: str, prompt: str) -> tuple[Family, ...]:
    # Forms of one character occur in prompts by chance (是否), so they are offered only by a list of options.
    return tuple(f for f in FAMILIES[kind] if all(len(form) > 1 and form in prompt for form in f))


def _listed(prompt: str) -> tuple[str, ...]:
    lists = _LIST.findall(prompt)
    items = [item.strip(_QUOTES) for item in _BETWEEN.split(lists[-1])] if lists else []
    unique = tuple(dict.fromkeys(item for item in items if item))
    return unique if len(unique) > 1 and all(len(item) <= 12 for item in unique) else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forms:
    classes: Mapping[str, str]
    pattern: re.Pattern[str]  # groups: negative (a form that is a negation itself), negated, form


@lru_cache(maxsize=512)
def _forms(kind: str, families: Sequence[Family], choices: Sequence[str]) -> _Forms:
    names = FAMILIES[kind][0]
    classes = {choice.casefold(): class_of(kind, choice) for choice in choices}
    for family in (*families, names):
        classes |= dict(zip(family, names, strict=True))
    longest_first = sorted((form for form in classes if len(form) > 1), key=len, reverse=True)
    negative = "|".join(re.escape(f) for f in longest_first if f.startswith(_NEGATION))
    plain = "|".join(re.escape(f) for f in longest_first if not f.startswith(_NEGATION))
    negation = "|".join((*(word + "是" for word in _NEGATION), *_NEGATION))
    pattern = rf"(?P<negative>{negative or '(?!)'})|(?P<negated>{negation})?(?P<form>{plain or '(?!)'})"
    return _Forms(classes=classes, pattern=re.compile(pattern))
