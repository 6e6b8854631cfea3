"""Prompts for an inference back end: truncated by its own tokenizer if it has one, otherwise sent whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.encoding import Encoder
from harness.errors import UsageError
from harness.inference import InferenceBackend, InferenceRequest, Message, Tokenizer
from harness.task import Example

_UNLIMITED = 1 << 30
"""Tokens of context of a back end that states none."""


class ByteTokenizer:
    """Replaces a tokenizer that is not available: a text has as many tokens as bytes, so that limits are safe."""

    eos_token_id = 0
    chat_template = "the server's own"

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> Any:
        return {"input_ids": [list(text.encode()) for text in texts]}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")

    def apply_chat_template(self, turns: Any, *, tokenize: bool, add_generation_prompt: bool, **arguments: Any) -> Any:
        raise NotImplementedError("only the server has the chat template")


def tokenizer_of(backend: InferenceBackend) -> Tokenizer:
    """The tokenizer for the prompts and limits of a back end."""
    return ByteTokenizer() if backend.tokenizer is None else backend.tokenizer


def max_length_of(backend: InferenceBackend, max_length: int) -> int:
    """Tokens of a prompt with its prediction: ``train.max_length``, unless the back end allows fewer."""
    length = _UNLIMITED if backend.tokenizer is None else max_length
    return min(length, backend.max_length or length)


def check_backend_style(backend: InferenceBackend, name: str, style: str, template: Mapping[str, Any]) -> None:
    """Raises: UsageError for a value of ``--prompt``, or template arguments, that the back end does not support."""
    if style not in backend.styles:
        supported = " or ".join(f"--prompt {s}" for s in backend.styles)
        raise UsageError(f"--backend {name} does not support --prompt {style}: give {supported}")
    if template and backend.tokenizer is None:
        raise UsageError(
            f"prompt.template.{next(iter(template))} does not apply to --backend {name}: only the server has its chat "
            "template. Leave the key out, and set it where the server is started"
        )


def backend_requests(
    backend: InferenceBackend, encoder: Encoder, task: str, examples: Sequence[Example]
) -> list[InferenceRequest]:
    """The requests for some examples of a task."""
    limit = min(encoder.limits[task], encoder.max_length - encoder.room(task))
    requests = []
    for example in examples:
        messages: list[Message] = []
        if encoder.style == "chat":
            turns = encoder.turns(example, encoder.n_shots)
            messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns]
        prompt = "" if messages and backend.tokenizer is None else _prompt(backend, encoder, example)
        requests.append(
            InferenceRequest(id=example.id, task=task, prompt=prompt, messages=messages, max_new_tokens=limit)
        )
    return requests


def _prompt(backend: InferenceBackend, encoder: Encoder, example: Example) -> str:
    """The prompt as text, truncated in the middle where it is too long for the model."""
    if backend.tokenizer is not None:
        (prompt,) = encoder.prompts([example])
        if prompt.truncated:
            return backend.tokenizer.decode(prompt.tokens, skip_special_tokens=encoder.style == "plain")
    return encoder.text(example, encoder.n_shots)
