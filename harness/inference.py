"""The contract for inference back ends: models that something other than this process serves.

A back end is a class that is registered in the entry-point group ``harness.backends``. ``--backend NAME:ARGUMENTS``
looks it up by name; the arguments are the back end's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The model that a back end serves.

    Args:
        label: the name shown in tables.
        fingerprint: identifies the model by a revision, a hash of its files or the like; part of the run_id.
    """

    label: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation. role: "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """One prompt to continue greedily.

    Args:
        id, task: those of the example.
        prompt: the text to continue, truncated to the model's context where the back end has a tokenizer. Empty for a
            conversation whose chat template only the server has.
        messages: with ``--prompt chat`` the conversation behind the prompt, not truncated; otherwise empty.
        max_new_tokens: the limit of generated tokens.
    """

    id: str
    task: str
    prompt: str
    messages: Sequence[Message] = ()
    max_new_tokens: int


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that prompts are built with."""

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def chat_template(self) -> Any: ...

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> Any:
        """A mapping whose "input_ids" are the token ids of each text."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""

    def apply_chat_template(self, turns: Any, *, tokenize: bool, add_generation_prompt: bool, **arguments: Any) -> Any:
        """The text of a conversation, a list of {"role": …, "content": …}. arguments: more of the chat template."""


class InferenceBackend(ABC):
    """A model that is served elsewhere. Constructing one opens it; ``identify`` and ``portable`` never do.

    Attributes:
        styles: the values of ``--prompt`` that it supports.
        tokenizer: the model's tokenizer. None if it is not available: then prompts are sent whole, and limits count
            bytes, which are never fewer than tokens.
        max_length: the model's context in tokens, None if unknown.
    """

    styles: Collection[str] = ("plain", "chat")
    tokenizer: Tokenizer | None = None
    max_length: int | None = None

    @abstractmethod
    def __init__(self, arguments: str) -> None:
        """Open the model. Raises: UsageError for wrong arguments, ModelError if the model cannot be used."""

    @classmethod
    @abstractmethod
    def identify(cls, arguments: str) -> ModelIdentity:
        """Label and fingerprint of the model, without opening it. Raises: UsageError for wrong arguments."""

    @classmethod
    def portable(cls, arguments: str) -> str:
        """The arguments with local paths made absolute, so that they mean the same in another working directory."""
        return arguments

    @abstractmethod
    def predict(self, requests: Sequence[InferenceRequest]) -> Sequence[str]:
        """The greedy continuation of each prompt, in order. Raises: ModelError naming the failure and the remedy."""
