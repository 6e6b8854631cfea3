"""Answers by choosing: the likelihood of each choice, and the text that is stored as the prediction.

A task with ``answer="choose"`` is not answered by generating. The likelihood of each choice of an example, as the
continuation of its prompt, is computed, and all of them are the prediction. Its text is JSON, so that every score can
be computed again without the model. Methods without a model predict the text of a choice instead.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from harness.task import NOT_PARSED, Example, NotParsed


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choices of one example, scored.

    log_likelihoods: the natural logarithm of p(choice | prompt), by choice; -inf for what a text did not choose.
    greedy: for each choice, whether greedy decoding would have generated it.
    """

    log_likelihoods: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def best(self) -> int:
        """The position of the most likely choice, the first of equal ones."""
        return max(range(len(self.log_likelihoods)), key=self.log_likelihoods.__getitem__)

    def text(self, example: Example) -> str:
        """The prediction as it is stored: the most likely choice, and all that ``read_choice`` needs."""
        assert example.choices is not None
        content = {
            "choice": example.choices[self.best],
            "log_likelihoods": list(self.log_likelihoods),
            "greedy": list(self.greedy),
        }
        return json.dumps(content, ensure_ascii=False)


def read_choice(text: str, example: Example) -> Choice | NotParsed:
    """The scored choices of a prediction's text.

    A text that is itself one of the choices, without regard to white space at the ends, has chosen it.

    Returns: NOT_PARSED for any other text, and for likelihoods of another number of choices.
    """
    choices = example.choices or ()
    stripped = [choice.strip() for choice in choices]
    if text.strip() in stripped:
        chosen = choices.index(text) if text in choices else stripped.index(text.strip())
        return Choice(
            log_likelihoods=tuple(0.0 if i == chosen else -math.inf for i in range(len(choices))),
            greedy=tuple(i == chosen for i in range(len(choices))),
        )
    try:
        content = json.loads(text)
        values, greedy = tuple(map(float, content["log_likelihoods"])), tuple(map(bool, content["greedy"]))
    except (
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        RecursionError,
    ):  # any text may come from another program
        return NOT_PARSED
    if not len(choices) == len(values) == len(greedy) or any(math.isnan(value) for value in values):
        return NOT_PARSED
    return Choice(log_likelihoods=values, greedy=greedy) if values else NOT_PARSED


def chosen(text: str, example: Example) -> str | NotParsed:
    """The choice of a prediction's text, as a parser for protocols that compare labels."""
    choice = read_choice(text, example)
    if isinstance(choice, NotParsed):
        return NOT_PARSED
    assert example.choices is not None
    return example.choices[choice.best]
