"""What people read is plain field English: phrases that were replaced do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# phrase -> what to write instead
REPLACED = {
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!(?:longer|more|less|other|smaller|larger)\b)[a-zA-Z]": "is not a …",
    r"\blook(?:s|ed|ing)? at dev\b|\ba look\b": "evaluate on dev",
    r"\btold\b": "given, passed",
    r"\b(?:goes|go|going|went|gone) on\b": "resume, continue, initialise from",
    r"\bmade (?:again|anew)\b|\banew\b": "repeat, recompute, redo",
    r"\bbehind one another\b": "packed into one sequence",
    r"\bdesign sees\b|^sees$": "minimum detectable difference",
    r"\bnot shown\b|\bdifference is shown\b": "not significant",
    r"\b(?:stands?|stood|standing) (?:in|beside|there|behind)\b": "is in, is stored in, next to",
    r"\bfloors?\b": "baseline",
    r"\b[Nn]obody\b|\b[Nn]o one\b": "the noun that is meant",
    r"\bknows\b": "supports, has, contains",
    r"\bfirst process\b": "rank 0",
    r"\b(?:is|are|was|were|be) cut\b(?! into| at)": "is truncated",
    r"\b(?:loses?|lost) (?:shots or )?(?:its|their|the) middle\b": "is truncated in the middle",
    r"\bbeneath\b": "below, nested under",
    r"\bno format\b": "unparsed",
    r"\btrivial rows?\b": "baselines",
    r"\b(?:is|was) taken (?:from|over)\b": "is reused from",
    r"\b(?:test|train|training|dev) rows?\b|\brows (?:of|in) (?:each|a|every|the) (?:task|split)\b": "examples",
    r"\bthe least possible\b": "the smallest … that works",
    r"\b[Mm]ake (?:the|a) run\b|\bruns? (?:was|is|were) made\b|\bwas made with\b": "the run used, repeat the run",
    r"\b(?:differs?|depends?|function) [^.:;]{0,50}\balone\b|\brank 0 alone\b": "only",
    r"\bthe (?:most|least) (?:tokens|parameters)\b": "the maximum number of …",
    r"\btypes? of numbers\b": "dtype",
    r"\b(?:[Ii]n|[Oo]ut)side of\b": "inside, outside",
    r"\bso many (?:tokens|steps|examples|predictions|seconds|times)\b": "this many",
    r"\b(?:None|[A-Z]\w+Error) where\b": "None if, raised if",
    r"\bwhen they have moved\b": "if they have moved",
    r"\bat hand\b|\bunder way\b": "current, in progress",
}
_ANY = [(re.compile(phrase), instead) for phrase, instead in REPLACED.items()]
_FRAGMENT = re.compile(r"#\s*(?:of|that|what|whose|which)\b")


@dataclass(frozen=True, kw_only=True)
class Words:
    """A string, comment or line that people read."""

    file: Path
    line: int
    text: str
    trailing: bool = False  # a comment behind code on the same line


def _of_module(path: Path) -> Iterator[Words]:
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Words(file=path, line=node.lineno, text=" ".join(node.value.split()))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            trailing = bool(token.line[: token.start[1]].strip())
            yield Words(file=path, line=token.start[0], text=token.string, trailing=trailing)


def _of_page(path: Path) -> Iterator[Words]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield Words(file=path, line=number, text=line)


def _files() -> Iterator[Path]:
    for package in ("harness", "methods", "tasks"):
        yield from sorted((ROOT / package).rglob("*.py"))
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for folder in ("docs", "leaderboards"):
        yield from sorted((ROOT / folder).glob("*.md"))


def _room(path: Path) -> str:
    return "/".join(path.relative_to(ROOT).parts[:2])


def faults(words: Words) -> Iterator[str]:
    """Each replaced phrase, with what to write instead."""
    place = f"{words.file.relative_to(ROOT)}:{words.line}"
    for phrase, instead in _ANY:
        if found := phrase.search(words.text):
            around = words.text[max(0, found.start() - 30) : found.end() + 20]
            yield f"{place}: …{around}… — write: {instead}"
    if words.trailing and _FRAGMENT.match(words.text):
        yield f"{place}: {words.text} — a comment is a whole sentence that gives a reason"


ROOMS = {room: list(files) for room, files in groupby(_files(), key=_room)}


@pytest.mark.parametrize("room", ROOMS)
def test_replaced_phrases_stay_out(room: str) -> None:
    found = [
        fault
        for path in ROOMS[room]
        for words in (_of_module if path.suffix == ".py" else _of_page)(path)
        for fault in faults(words)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x is no run", True),
        ("there is no run", False),
        ("it is no longer there", False),
        ("the other ranks are told the plan", True),
        ("the same command goes on", True),
        ("the prompt lost its middle", True),
        ("train.eval_rows", False),
        ("96 test rows", True),
        ("a row of the table", False),
    ],
)
def test_a_phrase_is_found_where_it_is_meant(text: str, fault: bool) -> None:
    assert bool(list(faults(Words(file=ROOT / "README.md", line=1, text=text)))) == fault
