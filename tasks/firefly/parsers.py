"""Parsers of the tasks whose answers are not labels. All accept any text and are linear in its length."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from harness.task import NOT_PARSED, Example, NotParsed

NAMED_TYPES: Final = ("人名", "地名", "机构名", "组织名", "公司名", "人物", "地点", "机构", "组织", "时间")
NOTHING: Final = frozenset({"", "无", "没有", "空", "暂无", "none"})
Entities = frozenset[tuple[str, str]]  # (type, mention)

_COLONS: Final = ("：", ":")
_EDGES: Final = " \t\r\u3000“”\"'‘’。."
_WIDE = re.compile(r"[，、；\n]")
_NARROW = re.compile(r"[，、；\n,;]")
_ANSWER = re.compile(r"(?:答案?|回答)(?:是|为)?[：:]\s*")


def parse_entities(text: str, example: Example) -> Entities | NotParsed:
    """Typed entities, one type on each line: ``人名：甲，乙``; 无 or an empty list means no entity.

    Lines without a type are ignored if another line has one. A text without any types is a list of mentions of type
    "", unless the prompt names two types or more: then it is NOT_PARSED.
    """
    typed: set[tuple[str, str]] = set()
    n_typed = 0
    body = _body(text, example)
    for line in re.split(r"[\n；;]", body):
        name, colon, mentions = line.replace(":", "：", 1).partition("：")
        name = name.strip(_EDGES + "-*·")
        if colon and 0 < len(name) <= 12:
            n_typed += 1
            typed |= {(name, mention) for mention in _items(mentions)}
    if n_typed:
        return frozenset(typed)
    if not body or sum(word in example.prompt for word in NAMED_TYPES) >= 2:
        return NOT_PARSED
    return frozenset(("", mention) for mention in _items(body))


def parse_keywords(text: str, example: Example) -> frozenset[str] | NotParsed:
    """A set of keywords, normalised to one width and case; an introduction that mentions 关键词 is removed.

    ASCII commas separate keywords only in a text without wide separators, because they also occur inside terms
    (N,N-二甲基).
    """
    body = _body(text, example)
    lead, colon, rest = body.replace(":", "：", 1).partition("：")
    if colon and "关键词" in lead and len(lead) <= 30:
        body = rest
    words = frozenset(unicodedata.normalize("NFKC", item).casefold() for item in _items(body))
    return words or NOT_PARSED


def parse_span(text: str, example: Example) -> str | NotParsed:
    """A short answer, normalised in width and case, without whitespace and punctuation or a prefix such as 答案："""
    body = _ANSWER.sub("", _body(text, example), count=1) if _ANSWER.match(text.strip()) else _body(text, example)
    folded = unicodedata.normalize("NFKC", body).casefold()
    bare = "".join(c for c in folded if unicodedata.category(c)[0] not in "PZC")
    return bare or folded.strip() or NOT_PARSED


def parse_text(text: str, example: Example) -> str | NotParsed:
    """Any text that is not blank, without its whitespace, which has no meaning in Chinese text."""
    return "".join(_body(text, example).split()) or NOT_PARSED


def _body(text: str, example: Example) -> str:
    """The text without the last words of the prompt (下联：), if the text repeats them."""
    text = text.strip()
    cue = example.prompt.rstrip().rpartition("\n")[2].strip()
    return text.removeprefix(cue).lstrip() if cue.endswith(_COLONS) else text


def _items(text: str) -> list[str]:
    between = _WIDE if _WIDE.search(text) else _NARROW
    items = (item.strip(_EDGES) for item in between.split(text))
    return [item for item in items if item.casefold() not in NOTHING]
