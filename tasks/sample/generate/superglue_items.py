"""The sample's items of SuperGLUE's eight tasks in the official layout; one function for each task makes a line.

English sentences about people, things and places from a small lexicon. Labels follow from what the sentences say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

PEOPLE: Final = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Liam")
PLACES: Final = ("Ashford", "Brookdale", "Clearwater", "Dunmore", "Eastvale", "Fairhaven", "Glenwood", "Hillcrest")
THINGS: Final = ("kite", "drum", "lamp", "basket", "violin", "ladder", "clock", "blanket", "mirror", "bicycle")
COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# What happened, a cause of it and an effect of it.
CHAINS: Final = (
    ("The glass broke", "It fell off the table", "There were pieces on the ground"),
    ("The ground was wet", "It had rained all night", "The children wore boots"),
    ("The soup was too hot", "It had boiled for an hour", "The guests waited before they ate"),
    ("The bus came late", "There was a jam on the road", "The workers missed the meeting"),
    ("The plant grew tall", "The gardener watered it daily", "It touched the ceiling"),
    ("The lamp went out", "The storm damaged the power line", "The family lit a candle"),
    ("The dog barked", "A stranger knocked at the door", "The baby woke up"),
    ("The runner won the race", "She had trained for months", "She received a medal"),
    ("The ice melted", "The sun was strong", "The pond could be crossed by boat"),
    ("The shop closed", "The owner was ill", "The customers went home"),
)
# A word with two meanings, and sentences that use it in each of them.
SENSES: Final = (
    (
        "bank",
        ("rowed to the bank of the river", "sat on the grassy bank"),
        ("opened an account at the bank", "borrowed money from the bank"),
    ),
    (
        "bat",
        ("hit the ball with a bat", "bought a wooden bat"),
        ("saw a bat fly out of the cave", "heard a bat at night"),
    ),
    (
        "ring",
        ("wore a gold ring", "lost a ring in the garden"),
        ("heard the ring of the phone", "waited for the ring of the bell"),
    ),
    (
        "spring",
        ("planted flowers in spring", "likes the warm days of spring"),
        ("replaced a spring in the mattress", "bent the spring of the clock"),
    ),
    (
        "letter",
        ("wrote a letter to a friend", "sent a letter by post"),
        ("painted the first letter of the name", "could not read one letter of the word"),
    ),
    (
        "match",
        ("lit a match in the dark", "put a match into the box"),
        ("watched the match on television", "won the match by two goals"),
    ),
)

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A line without its number. content: the text by which the suite splits, which must be new in each line."""

    content: str
    line: Line


def boolq(rng: random.Random, i: int) -> Draft:
    who, other = rng.sample(PEOPLE, 2)
    thing, place, (colour, wrong) = rng.choice(THINGS), rng.choice(PLACES), rng.sample(COLOURS, 2)
    passage = f"{who} lives in {place} and has a {colour} {thing}. {other} gave it to {who} on a {rng.choice(DAYS)}."
    yes = i % 2 == 0
    question = f"is the {thing} of {who.lower()} {colour if yes else wrong}"
    return Draft(content=passage, line={"question": question, "passage": passage, "label": yes})


def cb(rng: random.Random, i: int) -> Draft:
    who, other = rng.sample(PEOPLE, 2)
    claim = f"{other} lost the {rng.choice(COLOURS)} {rng.choice(THINGS)} in {rng.choice(PLACES)}"
    premise = (
        f"{who} knew that {claim}. It was a {rng.choice(DAYS)}.",
        f"{who} was glad that it was not true that {claim}. It was a {rng.choice(DAYS)}.",
        f"{who} asked whether {claim}. It was a {rng.choice(DAYS)}.",
    )[i % 3]
    label = ("entailment", "contradiction", "neutral")[i % 3]
    return Draft(content=premise, line={"premise": premise, "hypothesis": claim, "label": label})


def copa(rng: random.Random, i: int) -> Draft:
    cause_is_asked = rng.random() < 0.5
    chain, other = rng.sample(CHAINS, 2)
    premise = f"On {rng.choice(DAYS)} in {rng.choice(PLACES)}, {chain[0][0].lower()}{chain[0][1:]}."
    right, wrong = (chain[1], other[1]) if cause_is_asked else (chain[2], other[2])
    label = i % 2
    choices = (right, wrong) if label == 0 else (wrong, right)
    line = {"premise": premise, "choice1": f"{choices[0]}.", "choice2": f"{choices[1]}."}
    return Draft(content=premise, line={**line, "question": "cause" if cause_is_asked else "effect", "label": label})


def multirc(rng: random.Random, i: int) -> Draft:
    who, other = rng.sample(PEOPLE, 2)
    things, places, day = rng.sample(THINGS, 3), rng.sample(PLACES, 2), rng.choice(DAYS)
    text = (
        f"{who} went to the market in {places[0]} on {day}. There {who} bought a {things[0]} and a {things[1]}. "
        f"{other} stayed in {places[1]} and repaired a {things[2]}."
    )
    asked = (
        (f"What did {who} buy?", [(f"A {things[0]}", 1), (f"A {things[1]}", 1), (f"A {things[2]}", 0)]),
        (f"Where was {other}?", [(f"In {places[0]}", 0), (f"In {places[1]}", 1)]),
    )
    questions, number = [], 0
    for n_question, (question, options) in enumerate(asked):
        answers = []
        for answer, label in rng.sample(options, len(options)):
            answers.append({"text": answer, "idx": number, "label": label})
            number += 1
        questions.append({"question": question, "answers": answers, "idx": n_question})
    return Draft(content=text, line={"passage": {"text": text, "questions": questions}})


def record(rng: random.Random, i: int) -> Draft:
    (who, other), (place, away) = rng.sample(PEOPLE, 2), rng.sample(PLACES, 2)
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    text = (
        f"{who} Miller opened a shop for every kind of {thing} in {place}. {other} travelled from {away} to buy a "
        f"{colour} one.\n@highlight\nOn {rng.choice(DAYS)} {who} had every kind of {thing} in {place}"
    )
    query, golds = (
        (f"The customer, @placeholder, had never seen a {thing} that was so {colour}.", (other,)),
        (f"The owner, @placeholder, sold a {colour} {thing}.", (f"{who} Miller", who)),
        (f"People in @placeholder can buy a {thing} now.", (place,)),
    )[i % 3]
    names = (f"{who} Miller", place, other, away)
    spans = [_span(text, name) for name in names] + [_span(text, who, last=True), _span(text, place, last=True)]
    answers = [{**span, "text": name} for span in spans if (name := text[span["start"] : span["end"] + 1]) in golds]
    passage = {"text": text, "entities": spans}
    return Draft(
        content=text, line={"source": "sample", "passage": passage, "qas": [{"query": query, "answers": answers}]}
    )


def rte(rng: random.Random, i: int) -> Draft:
    who, other = rng.sample(PEOPLE, 2)
    thing, place, away = rng.choice(THINGS), *rng.sample(PLACES, 2)
    premise = f"{who}, who lives in {place}, sold a {rng.choice(COLOURS)} {thing} to {other} on {rng.choice(DAYS)}."
    true = i % 2 == 0
    hypotheses = (
        (f"{other} bought a {thing}.", f"{who} lives in {place}."),
        (f"{who} bought a {thing}.", f"{who} lives in {away}."),
    )
    line = {"premise": premise, "hypothesis": hypotheses[not true][i // 2 % 2]}
    return Draft(content=premise, line={**line, "label": "entailment" if true else "not_entailment"})


def wic(rng: random.Random, i: int) -> Draft:
    word, one, two = rng.choice(SENSES)
    same = i % 2 == 0
    first, second = rng.sample(rng.choice((one, two)), 2) if same else (rng.choice(one), rng.choice(two))
    sentences = [f"{rng.choice(PEOPLE)} {sentence}." for sentence in (first, second)]
    starts = [sentence.index(f" {word}") + 1 for sentence in sentences]
    line: Line = {"word": word, "sentence1": sentences[0], "sentence2": sentences[1], "label": same}
    places = {f"start{n}": start for n, start in enumerate(starts, 1)}
    places |= {f"end{n}": start + len(word) for n, start in enumerate(starts, 1)}
    return Draft(content="|".join(sentences), line={**line, **places, "version": 1.1})


def wsc(rng: random.Random, i: int) -> Draft:
    who, other = rng.sample(PEOPLE, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    giver = rng.random() < 0.5
    reason = "had two of them" if giver else "needed one"
    text = f"In {place}, {who} gave {other} a {rng.choice(COLOURS)} {thing} because they {reason}."
    true = i % 2 == 0
    noun = who if giver == true else other
    words = text.split()
    spans = {"span1_text": noun, "span1_index": words.index(noun)}
    target = {**spans, "span2_text": "they", "span2_index": words.index("they")}
    return Draft(content=text, line={"text": text, "target": target, "label": true})


def _span(text: str, name: str, *, last: bool = False) -> dict[str, int]:
    """The place of a name in a text; the end is its last character, as in the official files."""
    start = text.rindex(name) if last else text.index(name)
    return {"start": start, "end": start + len(name) - 1}


Maker = Callable[[random.Random, int], Draft]
TASKS: Final[Mapping[str, Maker]] = {
    "BoolQ": boolq,
    "CB": cb,
    "COPA": copa,
    "MultiRC": multirc,
    "ReCoRD": record,
    "RTE": rte,
    "WiC": wic,
    "WSC": wsc,
}
"""The makers by the official names of the tasks' folders."""
COUNTS: Final = {"train": 96, "val": 24}
_PASSAGES: Final = {"train": 24, "val": 8}  # MultiRC has several questions for each passage.


def lines(seed: int) -> dict[tuple[str, str], list[Line]]:
    """The lines of each task and file, numbered as in the official files; no content occurs twice in a task."""
    found = {}
    for task, make in TASKS.items():
        rng, used = random.Random(f"{seed}:superglue:{task}"), set[str]()
        for split, count in (_PASSAGES if task == "MultiRC" else COUNTS).items():
            of_split = []
            for i in range(count):
                draft = make(rng, i)
                while draft.content in used:
                    draft = make(rng, i)
                used.add(draft.content)
                line = {**draft.line, "idx": i}
                if task == "ReCoRD":
                    line["qas"] = [{**query, "idx": i} for query in line["qas"]]
                of_split.append(line)
            found[task, split] = of_split
    return found
