"""The examples of every task, drawn from a seed: no files, and the same examples on every machine.

Words are single tokens of the embedded model, and punctuation keeps them apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations, product
from types import MappingProxyType
from typing import Final, TypeVar

from harness.task import SPLITS, Example

N_DEV, N_TEST = 40, 100  # examples of each task
N_TRAIN: Final[Mapping[str, int]] = MappingProxyType(
    {
        "pick-first": 160,
        "pick-last": 160,
        "class-stated": 192,
        "class-asked": 192,
        "class-rare": 8,
        "grade-table": 96,
        "say-twice": 96,
    }
)

MARKS: Final = tuple("一二三四五六七八九十百千")
THINGS: Final = tuple("云雨雪风山河海树草花马狗猫鸟鱼虫羊桃琴鞋车船门床")
CLASSES: Final = tuple("红黄绿白")
OTHERS: Final = tuple("酒糖水饭菜汤石火果油米面")
GRADES: Final = tuple("高中低")
PEOPLE: Final = tuple("王李张陈刘杨赵周孙朱")
PLACES: Final = tuple("东南西北左右前后")
WORDINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "class-stated": "{who}在{where}看「{thing}」→",
        "class-asked": "「{thing}」，{where}，{who}问＝",
        "class-rare": "「{thing}」，{who}，{where}→",
        "grade-table": "{where}；「{thing}」；{who}。\n",
    }
)


@dataclass(frozen=True)
class Scene:
    """The content of a prompt about a thing: who is where with what."""

    thing: str
    who: str
    where: str


T = TypeVar("T")
Table = Mapping[str, str]  # the right answer for each thing
BySplit = Mapping[str, Sequence[Example]]


@cache
def draw_examples(draw: int) -> Mapping[str, BySplit]:
    """The examples of every task by split. draw: the seed; another one gives other tables and other prompts."""
    classes = draw_table(THINGS, CLASSES, random.Random(f"{draw} classes"))
    grades = draw_table(OTHERS, GRADES, random.Random(f"{draw} grades"))
    return MappingProxyType(
        {
            **_pick_tasks(random.Random(f"{draw} pick")),
            **_class_tasks(classes, random.Random(f"{draw} class")),
            "grade-table": _from_table("grade-table", grades, _scenes(OTHERS, random.Random(f"{draw} grade"))),
            "say-twice": _say_twice(random.Random(f"{draw} say")),
        }
    )


def draw_table(things: Sequence[str], answers: Sequence[str], rng: random.Random) -> Table:
    """A random table in which every answer belongs to equally many things."""
    shuffled = rng.sample(things, len(things))
    return {thing: answers[i % len(answers)] for i, thing in enumerate(shuffled)}


def known_things(classes: Table) -> frozenset[str]:
    """The things in the training examples of the rare task: the first two of each class."""
    return frozenset(t for answer in CLASSES for t in [t for t, a in classes.items() if a == answer][:2])


def _pick_tasks(rng: random.Random) -> dict[str, BySplit]:
    """Both tasks have the same prompts, and no prompt has the same answer in both."""
    triples = _shuffled(permutations(MARKS, 3), rng)
    parts = _dealt(triples, N_TRAIN["pick-first"])
    return {
        name: {
            split: [
                Example(
                    id=f"{name}-{split}-{i}",
                    task=name,
                    prompt="、".join(triple) + "→",
                    target=triple[place],
                    choices=triple,
                )
                for i, triple in enumerate(of_split)
            ]
            for split, of_split in parts.items()
        }
        for name, place in (("pick-first", 0), ("pick-last", 2))
    }


def _class_tasks(classes: Table, rng: random.Random) -> dict[str, BySplit]:
    """Three wordings of questions about one table; the rare task is trained on some things and tested on the others."""
    known = known_things(classes)
    rare = [t for t in THINGS if t not in known]
    scenes = _scenes(THINGS, rng)
    found = {}
    for name in ("class-stated", "class-asked"):
        n = N_TRAIN[name] + N_DEV + N_TEST
        found[name] = _from_table(name, classes, scenes[:n])
        scenes = scenes[n:]
    once = [next(s for s in scenes if s.thing == thing) for thing in THINGS if thing in known]
    unseen = [s for s in scenes if s.thing in rare]
    found["class-rare"] = _from_table("class-rare", classes, [*once, *unseen])
    return found


def _from_table(name: str, table: Table, scenes: Sequence[Scene]) -> BySplit:
    choices = tuple(sorted(set(table.values())))
    return {
        split: [
            Example(
                id=f"{name}-{split}-{i}",
                task=name,
                prompt=WORDINGS[name].format(**asdict(scene)),
                target=table[scene.thing],
                choices=choices,
            )
            for i, scene in enumerate(of_split)
        ]
        for split, of_split in _dealt(scenes, N_TRAIN[name]).items()
    }


def _say_twice(rng: random.Random) -> BySplit:
    """Two words said twice: unrelated to every table."""
    pairs = _shuffled(permutations(PEOPLE + PLACES, 2), rng)
    return {
        split: [
            Example(
                id=f"say-twice-{split}-{i}",
                task="say-twice",
                prompt=f"（{a}，{b}）\n",
                target=f"{a}，{b}，{a}，{b}",
            )
            for i, (a, b) in enumerate(of_split)
        ]
        for split, of_split in _dealt(pairs, N_TRAIN["say-twice"]).items()
    }


def _scenes(things: Sequence[str], rng: random.Random) -> list[Scene]:
    """All scenes in random order, such that the things take turns."""
    by_thing = {thing: _shuffled(product([thing], PEOPLE, PLACES), rng) for thing in things}
    turns = zip(*by_thing.values(), strict=True)
    return [Scene(*scene) for turn in turns for scene in rng.sample(turn, len(turn))]


def _shuffled(items: Iterator[T], rng: random.Random) -> list[T]:
    ordered = list(items)
    rng.shuffle(ordered)
    return ordered


def _dealt(contents: Sequence[T], n_train: int) -> Mapping[str, Sequence[T]]:
    """Contents by split: no content is in two splits."""
    ends = (n_train, n_train + N_DEV, n_train + N_DEV + N_TEST)
    starts = (0, *ends)
    return {split: contents[start:end] for split, start, end in zip(SPLITS, starts, ends, strict=False)}
