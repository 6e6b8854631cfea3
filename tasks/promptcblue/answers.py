"""Answers of PromptCBLUE's parsers: tuples of the items below, a label, a text, or sections by heading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Sections = Mapping[str, str]  # the sections of a report, by heading
HEADINGS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A mention and its type."""

    mention: str
    type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Triple:
    """A relation between two mentions."""

    subject: str
    predicate: str
    object: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A clinical finding with its status, descriptions and body parts; the order of both lists matters."""

    subject: str
    status: str
    descriptions: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A finding or symptom and whether the patient has it."""

    mention: str
    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A label that the example does not offer: a wrong answer that does not form a class of its own."""

    text: str
