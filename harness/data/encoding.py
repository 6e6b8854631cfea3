"""Prompts and targets as tokens, the same for training and for generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from harness.data.chat import render_chat
from harness.data.decode import texts_of
from harness.data.splits import SplitExamples
from harness.errors import ModelError
from harness.seeding import stable_seed
from harness.task import Example

T = TypeVar("T", list[int], tuple[int, ...])

# Tokens that may be generated for tasks whose training targets give no estimate.
DEFAULT_LIMIT = 256

# Training targets per task from which the limit is estimated.
_SAMPLE = 2000


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """The tokens of a prompt. truncated: in-context examples or its middle were left out."""

    tokens: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One training sequence: prompt tokens, then target tokens with eos last.

    truncated: the prompt was too long, so that in-context examples or its middle were left out.
    target_truncated: the end of the target was left out, and with it the eos, so that no wrong end is learned.
    """

    task: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    truncated: bool
    target_truncated: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True, kw_only=True)
class EncodedChoices:
    """The tokens of a prompt and of each of its choices, without eos."""

    prompt: EncodedPrompt
    choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Tokenises examples: ``tok(prompt) + tok(target) + eos``, the two apart.

    limits: by task, the largest number of tokens that may be generated. shots: by task, the in-context examples to
        choose from. n_shots: how many of them a prompt has. max_length: tokens of prompt, target and eos together.
    template: arguments of the chat template. vocabulary: tokens that the model has an embedding for; None: not checked.
    """

    tokenizer: Any
    style: str
    eos: int
    max_length: int
    limits: Mapping[str, int]
    shots: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    n_shots: int = 0
    template: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int | None = None

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Training sequences. A target that is too long is truncated and does not end in eos."""
        sequences = []
        for example, prompt, target in zip(examples, self.prompts(examples), self.targets(examples), strict=True):
            whole = (*target, self.eos)
            kept = whole[: self.max_length - len(prompt.tokens)]
            sequences.append(
                Encoded(
                    task=example.task,
                    prompt=prompt.tokens,
                    target=kept,
                    truncated=prompt.truncated,
                    target_truncated=len(kept) < len(whole),
                )
            )
        return sequences

    def targets(self, examples: Sequence[Example]) -> list[list[int]]:
        """Target tokens without eos."""
        return self._embedded(self.tokenizer([e.target for e in examples], add_special_tokens=False)["input_ids"])

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Generated tokens as text."""
        return texts_of(self.tokenizer, tokens)

    def prompt_lengths(self, examples: Sequence[Example]) -> list[int]:
        """The number of tokens of each prompt before it is truncated."""
        return [len(ids) for ids in self._tokens([self.text(e, self.n_shots) for e in examples])]

    def prompts(self, examples: Sequence[Example]) -> list[EncodedPrompt]:
        """The prompts of examples, truncated where they are too long.

        In-context examples are left out first, then the middle of the prompt, since instructions are at either end.
        """
        if not examples:
            return []
        full = self._tokens([self.text(e, self.n_shots) for e in examples])
        prompts = []
        for example, ids in zip(examples, full, strict=True):
            room = self.room(example.task)
            shots = self.n_shots
            while len(ids) > room and shots:
                shots -= 1
                ids = self._tokens([self.text(example, shots)])[0]
            too_long = len(ids) > room
            # An empty prompt still needs one token to predict the target from.
            tokens = tuple(_without_middle(ids, room)) or (self.eos,)
            prompts.append(EncodedPrompt(tokens=tokens, truncated=too_long or shots < self.n_shots))
        return prompts

    def choices(self, examples: Sequence[Example]) -> list[EncodedChoices]:
        """Prompts with their choices, which are encoded as targets are. A prompt leaves room for the longest choice.

        Raises: ModelError for an example without choices, for an empty choice, and for one that leaves no room for a
            prompt.
        """
        found = []
        for example, prompt in zip(examples, self.prompts(examples), strict=True):
            texts = example.choices or ()
            choices = (
                self._embedded(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []
            )
            longest = max(map(len, choices), default=0)
            if not choices or not all(choices) or longest >= self.max_length:
                raise ModelError(
                    f"{example.task}, example {example.id!r}: it is answered by choosing, but its choices have "
                    f"{', '.join(str(len(ids)) for ids in choices) or 'no'} tokens; each needs at least 1, and fewer "
                    f"than the maximum of {self.max_length}, with the prompt. Correct the choices, set a larger "
                    "train.max_length, or leave the task out"
                )
            room = self.max_length - longest
            if len(prompt.tokens) > room:
                prompt = EncodedPrompt(tokens=_without_middle(prompt.tokens, room), truncated=True)
            found.append(EncodedChoices(prompt=prompt, choices=tuple(map(tuple, choices))))
        return found

    def room(self, task: str) -> int:
        """Tokens that a prompt of the task may have."""
        return max(self.max_length - self.limits[task], self.max_length // 2)

    def limit(self, task: str, prompt: Sequence[int]) -> int:
        """Tokens that may be generated after this prompt."""
        return min(self.limits[task], self.max_length - len(prompt))

    def text(self, example: Example, n_shots: int) -> str:
        """The prompt as text, in-context examples first; never the example itself."""
        if self.style == "chat":
            return render_chat(self.tokenizer, self.turns(example, n_shots), self.template)
        chosen = self._in_context(example, n_shots)
        return "\n\n".join([f"{s.prompt}{_gap(s)}{s.target}" for s in chosen] + [example.prompt])

    def turns(self, example: Example, n_shots: int) -> list[dict[str, str]]:
        """The prompt as a conversation, one turn of the user and one of the assistant for each in-context example."""
        chosen = self._in_context(example, n_shots)
        turns = [t for s in chosen for t in (_turn("user", s.prompt), _turn("assistant", s.target))]
        return [*turns, _turn("user", example.prompt)]

    def _in_context(self, example: Example, n_shots: int) -> list[Example]:
        return [s for s in self.shots.get(example.task, ()) if s.id != example.id][:n_shots]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        # A chat template writes its own special tokens; a plain prompt gets those that the tokenizer itself adds.
        return self._embedded(self.tokenizer(list(texts), add_special_tokens=self.style == "plain")["input_ids"])

    def _embedded(self, sequences: list[list[int]]) -> list[list[int]]:
        """The sequences themselves. Raises: ModelError for a token that the model has no embedding for."""
        if self.vocabulary is None:
            return sequences
        for ids in sequences:
            if ids and max(ids) >= self.vocabulary:
                token = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise ModelError(
                    f"token {token!r} of the tokenizer has the id {max(ids)}, but the model has embeddings for the ids "
                    f"0 to {self.vocabulary - 1} only. Resize the model's embeddings and save it "
                    "(model.resize_token_embeddings), or give the tokenizer that belongs to the model"
                )
        return sequences


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _gap(example: Example) -> str:
    """What is between prompt and target of an in-context example: nothing if either has a boundary of its own."""
    return "" if example.prompt.endswith(("：", ":", "\n")) or example.target[:1].isspace() else "\n"


def _without_middle(tokens: T, room: int) -> T:
    """The tokens, or their beginning and end where there are more than ``room``."""
    head = room // 2
    return tokens if len(tokens) <= room else tokens[:head] + tokens[len(tokens) - (room - head) :]


def generation_limits(
    tokenizer: Any, train: SplitExamples | None, tasks: Sequence[str], given: int | None
) -> dict[str, int]:
    """Tokens that may be generated, by task: 1.25 times the 99.5 % quantile of the lengths of its targets with eos.

    A task without training examples gets the largest limit of the others.

    Args:
        train: None if there are no training examples.
        given: the limit of every task where the user chose it (``eval.max_new_tokens``).
    """
    if given is not None:
        return dict.fromkeys(tasks, given)
    limits = {}
    for task in tasks:
        if train is not None and len(train.by_task[task]):
            targets = train.dataset.select(train.by_task[task][:_SAMPLE])["target"]
            lengths = [len(i) + 1 for i in tokenizer(list(targets), add_special_tokens=False)["input_ids"]]
            limits[task] = int(np.ceil(1.25 * np.quantile(lengths, 0.995)))
    return {task: limits.get(task, max(limits.values(), default=DEFAULT_LIMIT)) for task in tasks}


def draw(split: SplitExamples, task: str, n: int, *key: object) -> list[Example]:
    """Draw n examples of a task without replacement, or all where there are fewer; equal keys draw equal examples."""
    indices = split.by_task.get(task, np.zeros(0, np.int64))
    generator = np.random.Generator(np.random.PCG64(stable_seed("draw", task, *key)))
    return split.at(generator.permutation(indices)[:n])
