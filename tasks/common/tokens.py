"""Splitting texts into the tokens that ROUGE counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

from tasks.common.rouge import sentence_tokens

NOTHING = "无 。"  # an empty text, gold or predicted, is scored as these two tokens
_CACHED = 1 << 13  # enough for the targets of the largest split, which every protocol and prediction file shares


@lru_cache(maxsize=_CACHED)
def characters(text: str) -> tuple[str, ...]:
    """The tokens of BERT's lower-casing BasicTokenizer: single Chinese characters and punctuation, otherwise words.

    The result equals that of the class in transformers for every text. It takes a few passes over the whole text
    instead of one step per character.
    """
    text = unicodedata.normalize("NFC", text.translate(_SPACED)).lower()
    return tuple(unicodedata.normalize("NFD", text).translate(_SPLIT).split()) or tuple(NOTHING.split())


@lru_cache(maxsize=_CACHED)
def words(text: str) -> tuple[str, ...]:
    """jieba's words, as rouge_chinese splits them again after they are joined with spaces."""
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)  # otherwise jieba reports its start on stderr
    return tuple(sentence_tokens(" ".join(jieba.lcut(text)).strip() or NOTHING))


class _Table(dict[int, str]):
    """A ``str.translate`` table that applies a rule to each character once and remembers the result."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self._rule(chr(code))
        return self[code]


_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


def _spaced(char: str) -> str:
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if char == "\ufffd" or category.startswith("C"):
        return ""
    return f" {char} " if any(low <= ord(char) <= high for low, high in _IDEOGRAPHS) else char


def _split(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Mn":
        return ""
    is_symbol = "!" <= char <= "~" and not char.isalnum()  # all printable ASCII symbols, not only punctuation
    return f" {char} " if is_symbol or category.startswith("P") else char


_SPACED = _Table(_spaced)
_SPLIT = _Table(_split)
