"""English toy tasks in the format of natural-instructions: entailment, answerability, titles, keywords, and more.

Each maker draws an input and its right answers from small tables of words. Nothing is quoted from a data set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PEOPLE: Final = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas")
THINGS: Final = ("cup", "book", "lamp", "coat", "basket", "kite", "drum", "mirror", "ladder", "bottle")
COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black")
PLACES: Final = ("kitchen", "garden", "school", "library", "market", "station", "attic", "harbour")
ANIMALS: Final[Mapping[str, str]] = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "duck": "duckling",
    "goose": "gosling", "swan": "cygnet", "bear": "cub", "hen": "chick", "pig": "piglet",
}  # fmt: skip
VERBS: Final[Mapping[str, str]] = {
    "found": "find", "painted": "paint", "carried": "carry", "repaired": "repair", "sold": "sell", "hid": "hide",
    "washed": "wash", "dropped": "drop",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An input, its right answers, and why the first one is right."""

    input: str
    outputs: Sequence[str]
    reason: str


@dataclass(frozen=True, kw_only=True)
class ToyTask:
    """A task of the sample. wrong: an answer that breaks the definition, for the negative example."""

    category: str
    definition: str
    make: Callable[[random.Random], Drawn]
    wrong: str
    held_out: bool = False


def _entailment(rng: random.Random) -> Drawn:
    who, thing, place = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(PLACES)
    colour, other = rng.sample(COLOURS, 2)
    follows = rng.random() < 0.5
    claim = f"{who} has a {colour if follows else other} {thing}"
    return Drawn(
        input=f"Premise: {who} keeps a {colour} {thing} in the {place}. Hypothesis: {claim}.",
        outputs=["yes" if follows else "no"],
        reason=f"The premise says that the {thing} is {colour}.",
    )


def _answerability(rng: random.Random) -> Drawn:
    who, verb, thing, place = rng.choice(PEOPLE), rng.choice(list(VERBS)), rng.choice(THINGS), rng.choice(PLACES)
    known = rng.random() < 0.5
    asked = f"Where did {who} {VERBS[verb]} the {thing}?" if known else f"Why did {who} {VERBS[verb]} the {thing}?"
    return Drawn(
        input=f"Passage: On Monday {who} {verb} the {thing} in the {place}. Question: {asked}",
        outputs=["answerable" if known else "unanswerable"],
        reason=f"The passage names {'the place' if known else 'a place and a day, and gives no reason'}.",
    )


def _title(rng: random.Random) -> Drawn:
    who, verb, thing, place = rng.choice(PEOPLE), rng.choice(list(VERBS)), rng.choice(THINGS), rng.choice(PLACES)
    return Drawn(
        input=f"One morning {who} walked to the {place}. There {who} {verb} an old {thing}. Everyone heard about it.",
        outputs=[f"{who} and the Old {thing.title()}", f"The Old {thing.title()} in the {place.title()}"],
        reason="The title names who or what the story is about.",
    )


def _keywords(rng: random.Random) -> Drawn:
    first, second = rng.sample(THINGS, 2)
    place = rng.choice(PLACES)
    return Drawn(
        input=f"A {rng.choice(COLOURS)} {first} and a {rng.choice(COLOURS)} {second} were left near the {place}.",
        outputs=[f"{first}, {second}, {place}", f"{second}, {first}, {place}"],
        reason="These are the nouns of the sentence.",
    )


def _rewriting(rng: random.Random) -> Drawn:
    who, verb, thing = rng.choice(PEOPLE), rng.choice(list(VERBS)), rng.choice(THINGS)
    when = rng.choice(("yesterday", "on Friday", "last week", "in May", "at noon"))
    return Drawn(
        input=f"{who} {verb} the {thing} {when}.",
        outputs=[f"When did {who} {VERBS[verb]} the {thing}?"],
        reason="The question asks for the time in the sentence.",
    )


def _location(rng: random.Random) -> Drawn:
    who, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    first, last = rng.sample(PLACES, 2)
    return Drawn(
        input=f"{who} took the {thing} to the {first}. Later {who} brought it to the {last}. Where is the {thing}?",
        outputs=[f"in the {last}", last],
        reason=f"The {last} is the last place.",
    )


def _analogy(rng: random.Random) -> Drawn:
    first, second = rng.sample(list(ANIMALS), 2)
    return Drawn(
        input=f"{first} : {ANIMALS[first]}. {second} : ?",
        outputs=[ANIMALS[second]],
        reason=f"A young {second} is called a {ANIMALS[second]}.",
    )


def _data_to_text(rng: random.Random) -> Drawn:
    who, thing, colour, place = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(COLOURS), rng.choice(PLACES)
    return Drawn(
        input=f"owner: {who} | thing: {thing} | colour: {colour} | place: {place}",
        outputs=[
            f"{who}'s {colour} {thing} is in the {place}.",
            f"The {colour} {thing} in the {place} belongs to {who}.",
        ],
        reason="The sentence has all four values.",
    )


TASKS: Final[Mapping[str, ToyTask]] = {
    "task9001_toy_colour_entailment": ToyTask(
        category="Textual Entailment",
        definition="Read the premise and the hypothesis. Answer yes if the hypothesis follows from it, otherwise no",
        make=_entailment,
        wrong="maybe",
    ),
    "task9002_toy_passage_answerability": ToyTask(
        category="Answerability Classification",
        definition="Decide whether the passage answers the question. Reply with answerable or unanswerable.",
        make=_answerability,
        wrong="in the garden",
    ),
    "task9003_toy_story_title": ToyTask(
        category="Title Generation",
        definition="Write a short title for the story.",
        make=_title,
        wrong="This is a story about a person who went somewhere.",
    ),
    "task9004_toy_noun_keywords": ToyTask(
        category="Keyword Tagging",
        definition="List the things and the place of the sentence, with commas between them.",
        make=_keywords,
        wrong="red, left, near",
    ),
    "task9005_toy_question_rewriting": ToyTask(
        category="Question Rewriting",
        definition="Turn the sentence into a question that asks when it happened.",
        make=_rewriting,
        wrong="It happened at noon.",
    ),
    "task9006_toy_last_location": ToyTask(
        category="Question Answering",
        definition="Say where the thing is at the end.",
        make=_location,
        wrong="nowhere",
    ),
    "task9007_toy_animal_analogy": ToyTask(
        category="Word Analogy",
        definition="Complete the analogy with one word.",
        make=_analogy,
        wrong="animal",
        held_out=True,
    ),
    "task9008_toy_record_to_text": ToyTask(
        category="Data to Text",
        definition="Write one sentence that has all values of the record.",
        make=_data_to_text,
        wrong="There is a thing.",
        held_out=True,
    ),
}
