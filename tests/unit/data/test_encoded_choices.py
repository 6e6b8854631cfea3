"""Choices are encoded as targets are, and prompts leave room for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data.encoding import Encoder
from harness.errors import ModelError
from harness.task import Example


def _encoder(model: Path, max_length: int = 40, shots: int = 0) -> Encoder:
    from transformers import AutoTokenizer

    examples = [Example(id=f"s{i}", task="toys", prompt="toy", target=" car") for i in range(2)]
    return Encoder(
        tokenizer=AutoTokenizer.from_pretrained(model),
        style="plain",
        eos=0,
        max_length=max_length,
        limits={"toys": 5},
        shots={"toys": examples},
        n_shots=shots,
    )


def _example(prompt: str, *choices: str) -> Example:
    return Example(id="1", task="toys", prompt=prompt, target=choices[0] if choices else " car", choices=choices)


def test_a_choice_has_the_tokens_of_the_target_without_its_end(toy_model: Path) -> None:
    encoder, example = _encoder(toy_model), _example("which?", " car", " doll")
    (encoded,) = encoder.choices([example])
    (trained,) = encoder.encode([example])
    assert encoded.prompt.tokens == trained.prompt
    assert encoded.choices[0] == trained.target[:-1]
    assert [len(tokens) for tokens in encoded.choices] == [4, 5]


def test_a_long_prompt_leaves_room_for_the_longest_choice(toy_model: Path) -> None:
    encoder = _encoder(toy_model)
    (encoded,) = encoder.choices([_example("a" * 20 + "b" * 20, " car", " " + "d" * 29)])
    assert len(encoded.prompt.tokens) == 10
    assert encoded.prompt.truncated
    assert encoder.texts([encoded.prompt.tokens]) == ["aaaaabbbbb"]


@pytest.mark.parametrize("choices", [(), (" car", ""), (" car", "d" * 40)])
def test_choices_that_cannot_be_scored_are_an_error_that_names_the_example(
    toy_model: Path, choices: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match="toys, example '1': it is answered by choosing"):
        _encoder(toy_model).choices([_example("which?", *choices)])


def test_an_in_context_example_whose_target_begins_with_a_space_is_on_one_line(toy_model: Path) -> None:
    text = _encoder(toy_model, shots=1).text(_example("which?", " car"), 1)
    assert text == "toy car\n\nwhich?"
