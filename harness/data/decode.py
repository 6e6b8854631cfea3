"""Generated tokens as text: the one place where predictions are decoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

# Han characters, the punctuation of Chinese texts, and full-width forms. Hangul is not among them: Korean has spaces.
_CHINESE: Final = (
    "\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6\U00020000-\U000323af“”‘’…—"
)
_AT_CHINESE: Final = re.compile(f"(?<=[{_CHINESE}]) +| +(?=[{_CHINESE}])")
_PROBE: Final = "的是不了在人有我他这中大来上个国"
"""Frequent characters without a space: any two neighbours that a tokenizer has show what it puts in between."""


def texts_of(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of tokens, without special tokens.

    Some tokenizers, such as BERT's, have one token for each Chinese character and decode them with spaces in between.
    Such a tokenizer encodes a Chinese text with and without these spaces alike, so they are removed. Whether it does is
    found from a short text that is encoded and decoded.
    """
    if not sequences:
        return []
    texts: list[str] = tokenizer.batch_decode([list(s) for s in sequences], skip_special_tokens=True)
    return [_AT_CHINESE.sub("", text) for text in texts] if _separates_characters(tokenizer) else texts


def _separates_characters(tokenizer: Any) -> bool:
    """Whether a Chinese text without spaces is given back with them."""
    ids = tokenizer([_PROBE], add_special_tokens=False)["input_ids"]
    (text,) = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return bool(re.search(f"[{_CHINESE}] +[{_CHINESE}]", text))
