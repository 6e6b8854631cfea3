"""The planted suite: what its construction promises, example by example."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from harness.errors import DataError
from harness.scoring.score import score_predictions
from harness.store.record import Prediction, text_hash
from harness.task import NOT_PARSED, SPLITS, Example, to_example
from tasks.planted.examples import CLASSES, MARKS, N_DEV, N_TEST, N_TRAIN, THINGS, WORDINGS, draw_examples
from tasks.planted.suite import Planted
from tasks.planted.tasks import FAMILIES, answer_of

ROOT = Path(__file__).parents[3]
SUITE = Planted()
DIGEST = "22219005e06ce20512dba73be9dc82a7efff14b2ea543ae1a577c21242e26edd"  # of draw 0
DRAWS = pytest.mark.parametrize("draw", [0, 1, 2])


def columns_of(example: Example) -> dict[str, object]:
    return {name: getattr(example, name) for name in ("id", "task", "prompt", "target", "choices")}


def thing_of(example: Example) -> str:
    return example.prompt.partition("「")[2].partition("」")[0]


def all_examples(by_split: Mapping[str, Sequence[Example]]) -> list[Example]:
    return [example for split in SPLITS for example in by_split[split]]


@DRAWS
def test_every_task_has_its_number_of_examples_in_every_split(draw: int) -> None:
    drawn = draw_examples(draw)
    assert list(drawn) == list(SUITE.tasks) == list(FAMILIES) == list(N_TRAIN)
    for name, by_split in drawn.items():
        assert {s: len(e) for s, e in by_split.items()} == {"train": N_TRAIN[name], "dev": N_DEV, "test": N_TEST}


@DRAWS
def test_no_prompt_of_a_task_occurs_twice_and_none_is_in_two_splits(draw: int) -> None:
    for by_split in draw_examples(draw).values():
        prompts = Counter(e.prompt for e in all_examples(by_split))
        assert max(prompts.values()) == 1


@DRAWS
def test_no_scene_of_the_related_tasks_occurs_in_two_of_them_or_in_two_splits(draw: int) -> None:
    drawn = draw_examples(draw)
    related = [name for name, family in FAMILIES.items() if family == "related"]
    letters = {name: frozenset(WORDINGS[name].format(thing="", who="", where="")) for name in related}
    contents = [frozenset(e.prompt) - letters[name] for name in related for e in all_examples(drawn[name])]
    assert max(Counter(contents).values()) == 1


@DRAWS
def test_the_pair_has_the_same_prompts_and_never_the_same_answer(draw: int) -> None:
    drawn = draw_examples(draw)
    for split in SPLITS:
        pairs = list(zip(drawn["pick-first"][split], drawn["pick-last"][split], strict=True))
        assert all(a.prompt == b.prompt and a.target != b.target for a, b in pairs)
        assert all("pick" not in a.prompt for a, _ in pairs)


@DRAWS
def test_the_related_tasks_share_one_table_and_no_other_task_has_its_things(draw: int) -> None:
    drawn = draw_examples(draw)
    found: dict[str, set[str]] = {}
    for name in ("class-stated", "class-asked", "class-rare"):
        for example in all_examples(drawn[name]):
            found.setdefault(thing_of(example), set()).add(example.target)
    assert set(found) == set(THINGS)
    assert all(len(answers) == 1 for answers in found.values())
    assert Counter(answer for (answer,) in found.values()) == dict.fromkeys(CLASSES, len(THINGS) // len(CLASSES))
    unrelated = [e.prompt + e.target for n, f in FAMILIES.items() if f != "related" for e in all_examples(drawn[n])]
    assert not set("".join(unrelated)) & set(THINGS)


@DRAWS
def test_the_rare_task_is_trained_on_two_things_of_each_class_and_tested_on_the_others(draw: int) -> None:
    drawn = draw_examples(draw)
    trained = drawn["class-rare"]["train"]
    known = {thing_of(e) for e in trained}
    assert len(known) == len(trained) == 8
    assert Counter(e.target for e in trained) == dict.fromkeys(CLASSES, 2)
    for split in ("dev", "test"):
        asked = {thing_of(e) for e in drawn["class-rare"][split]}
        assert asked == set(THINGS) - known
    for name in ("class-stated", "class-asked"):
        assert {thing_of(e) for e in drawn[name]["train"]} == set(THINGS)


def test_equal_draws_are_equal_byte_for_byte_on_every_machine() -> None:
    text = json.dumps({n: {s: [columns_of(e) for e in b[s]] for s in SPLITS} for n, b in draw_examples(0).items()})
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_another_draw_has_other_examples_and_another_fingerprint() -> None:
    source = str(SUITE.sample)
    same, other = Planted().fingerprint(source), Planted(draw=1).fingerprint(source)
    assert same == SUITE.fingerprint(source)
    assert list(same) == list(SPLITS)
    assert all(same[split] != other[split] for split in SPLITS)


def test_gold_answers_score_100_and_other_texts_are_not_parsed() -> None:
    rows = [to_example(row) for row in SUITE.read(str(SUITE.sample), "test")]
    examples = {task: [e for e in rows if e.task == task] for task in SUITE.tasks}
    gold = {
        task: [
            Prediction(
                id=e.id,
                prompt_hash=text_hash(e.prompt),
                target_hash=text_hash(e.target),
                text=f" {e.target}\n",
                tokens=1,
                cut=False,
            )
            for e in of_task
        ]
        for task, of_task in examples.items()
    }
    scores = score_predictions(SUITE, examples, gold, n_train=None, min_examples=50).scores.root["official"]
    assert scores.mean == 1
    assert scores.mean_of == tuple(SUITE.tasks)
    first = examples["pick-first"][0]
    assert answer_of(MARKS[0] + MARKS[1], first) is NOT_PARSED
    assert answer_of("", examples["say-twice"][0]) is NOT_PARSED


def test_the_bound_of_the_pair_holds_for_every_prediction_that_depends_only_on_the_prompt() -> None:
    drawn = draw_examples(0)
    firsts, lasts = drawn["pick-first"]["test"], drawn["pick-last"]["test"]
    for place in range(3):
        guesses = [(e.choices or ())[place] for e in firsts]
        right = sum(g == e.target for of in (firsts, lasts) for g, e in zip(guesses, of, strict=True))
        assert right <= N_TEST


def test_every_word_is_one_token_of_the_embedded_model() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tasks" / "sample" / "model")
    texts = [e.prompt + e.target for by_split in draw_examples(0).values() for e in by_split["test"]]
    assert [len(ids) for ids in tokenizer(texts)["input_ids"]] == [len(text) for text in texts]


def test_the_suite_reads_no_data() -> None:
    with pytest.raises(DataError, match="Leave --data out"):
        SUITE.pin("my/data")
    with pytest.raises(DataError, match="train, dev, test"):
        SUITE.read(str(SUITE.sample), "validation")


def test_it_is_a_benchmark_and_not_a_sample_of_one() -> None:
    assert SUITE.sample_is_benchmark


def test_the_pages_describe_it() -> None:
    assert "planted" in (ROOT / "docs" / "reading_a_leaderboard.md").read_text("utf-8")
    assert "--suite planted" in (ROOT / "README.md").read_text("utf-8")
