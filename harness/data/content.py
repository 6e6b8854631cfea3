"""The content of prompts, apart from the template around it, so that one content in two templates is recognised.

A prompt is divided at line ends, colons and quotation marks. Segments that many examples of the task have belong to a
template; what is left is content. This needs no list of templates, and it misses contents that share a segment with a
template or with another part of the prompt that changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harness.task import Example

KEPT: Final = 8  # The longest segments of a prompt that are kept.
LEAST: Final = 4  # characters of a segment
LONG: Final = 30  # characters of a segment that few different contents have
_TOGETHER: Final = 3  # A content with a long segment is identified by its longest segments, at most this many.
_OFTEN: Final = 10  # A segment of more examples of a task than this, and than 1 % of them, belongs to a template.
_ENDS: Final = re.compile(r"[\n：:“”\"「」『』]")
_EDGES: Final = re.compile(r"^\W+|\W+$")

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The segments of n prompts. hashes: (n, KEPT), the longest first, 0 for none. lengths: the same, in characters."""

    hashes: Hashes
    lengths: NDArray[np.uint16]

    @classmethod
    def empty(cls, n: int) -> Segments:
        """Segments of n prompts, to be filled with ``put``."""
        return cls(hashes=np.zeros((n, KEPT), np.uint64), lengths=np.zeros((n, KEPT), np.uint16))

    def put(self, i: int, example: Example) -> None:
        """Set the segments of the i-th prompt."""
        for j, text in enumerate(segments(example)):
            digest = hashlib.blake2b(f"{example.task}\0{text}".encode(), digest_size=8).digest()
            self.hashes[i, j] = int.from_bytes(digest) or 1
            self.lengths[i, j] = min(len(text), np.iinfo(np.uint16).max)


def segments(example: Example) -> list[str]:
    """The longest different segments of the prompt, without white space; a line that lists the choices is left out."""
    found: dict[str, None] = {}
    for line in example.prompt.split("\n"):
        offered = [choice for choice in example.choices or () if choice and choice in line]
        if len(offered) > 1:
            continue
        for part in _ENDS.split(line):
            text = _EDGES.sub("", "".join(part.split()))
            if len(text) >= LEAST:
                found[text] = None
    return sorted(found, key=lambda text: (-len(text), text))[:KEPT]


def content_keys(parts: Sequence[Segments], tasks: Sequence[NDArray[np.int16]]) -> list[Hashes]:
    """A hash of the content of each example of each part; 0 where all of its segments belong to templates.

    Examples of a task with equal hashes have equal content: the same three longest segments where one of them is long,
    otherwise the same segments. Standard replies in a dialogue can be long, so that one segment is not enough.

    Args:
        parts: the segments of n examples each, for example of several splits, in which templates are counted together.
        tasks: (n,) the task of each of these examples.
    """
    hashes, lengths = (np.concatenate([getattr(part, name) for part in parts]) for name in ("hashes", "lengths"))
    task = np.concatenate(list(tasks))
    _, where, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    n_of_task = np.bincount(task) if len(task) else np.zeros(1, np.int64)
    limit = np.maximum(_OFTEN, n_of_task[task] // 100)[:, None]
    rare = (hashes != 0) & (counts[where.reshape(hashes.shape)] <= limit)
    kept = np.where(rare, hashes, np.uint64(0))
    longest = np.where(rare.cumsum(1) <= _TOGETHER, kept, np.uint64(0)).sum(1, dtype=np.uint64)
    is_long = (rare & (lengths >= LONG)).any(1)
    keys = np.where(is_long, longest, kept.sum(1, dtype=np.uint64))
    return np.split(keys, np.cumsum([len(part.hashes) for part in parts])[:-1])
