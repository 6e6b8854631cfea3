"""Parts of a split that have no content in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.data.splits import in_part
from harness.task import Example

PROMPTS = st.lists(st.text("ab \n", max_size=6), max_size=30)
TEMPLATES = ("Which intent has this query?\n{}", "{}\nName its intent:", "Query: “{}”\nintent:")


def example(prompt: str) -> Example:
    return Example(id=prompt, task="intent", prompt=prompt, target="yes")


@given(PROMPTS)
def test_every_example_is_in_one_part_and_equal_prompts_are_in_the_same(prompts: list[str]) -> None:
    examples = [example(prompt) for prompt in prompts]
    tune, report = in_part(examples, "tune"), in_part(examples, "report")
    assert (tune != report).all()
    by_prompt: dict[str, set[bool]] = {}
    for prompt, inside in zip(prompts, tune, strict=True):
        by_prompt.setdefault("".join(prompt.split()), set()).add(bool(inside))
    assert all(len(parts) == 1 for parts in by_prompt.values())


def test_half_of_the_contents_are_in_each_part_and_a_content_in_two_templates_is_in_one() -> None:
    contents = [f"how long does illness number {i} last" for i in range(40)]
    examples = [example(template.format(content)) for template in TEMPLATES for content in contents]
    tune = in_part(examples, "tune").reshape(len(TEMPLATES), len(contents))
    assert (tune == tune[0]).all()
    assert tune[0].sum() == 20


def test_the_order_of_examples_does_not_matter() -> None:
    examples = [example(f"prompt {i}") for i in range(20)]
    assert in_part(examples, "tune").tolist() == in_part(examples[::-1], "tune").tolist()[::-1]
