"""``prompt.template.*`` keys: arguments of the model's chat template, such as ``enable_thinking``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from harness.errors import UsageError

PREFIX: Final = "prompt.template."
MEANING: Final = "with --prompt chat: an argument of the model's chat template, such as enable_thinking; any JSON value"
_SET_BY_HARNESS: Final = frozenset(
    (
        *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "processor_kwargs", "sanitize_control_tokens"),
    )
)


def template_arguments(keys: Mapping[str, Any], style: str | None) -> dict[str, JsonValue]:
    """The arguments of the chat template, by name.

    Args:
        keys: what follows ``prompt.`` in each key, such as ``template.enable_thinking``; ``template`` may be a table.
        style: the value of --prompt.

    Raises: UsageError for another key, a name that cannot be an argument, or arguments without --prompt chat.
    """
    arguments: dict[str, JsonValue] = {}
    for key, value in keys.items():
        section, *path = key.split(".")
        if section != "template" or not (path or isinstance(value, Mapping)):
            raise UsageError(f"unknown key 'prompt.{key}'. Known: {PREFIX}NAME, for an argument of the chat template")
        _put(arguments, path, value)
    for name in arguments:
        if not name.isidentifier():
            raise UsageError(f"{PREFIX}{name}: {name!r} is not a name of letters, digits and _")
        if name in _SET_BY_HARNESS:
            raise UsageError(f"{PREFIX}{name} cannot be set: harness sets this argument itself. Leave it out")
        if style != "chat":
            raise UsageError(
                f"{PREFIX}{name} is an argument of the model's chat template: add --prompt chat, or leave it out"
            )
    return arguments


def template_in_words(arguments: Mapping[str, JsonValue]) -> str:
    """`` (enable_thinking=False)``, or an empty string without arguments."""
    return f" ({', '.join(f'{name}={value!r}' for name, value in arguments.items())})" if arguments else ""


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value at a path of names; tables are merged name by name, as keys of a file and of the command line are."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _put(into, [*path, str(name)], inner)
    elif len(path) == 1:
        into[path[0]] = value
    else:
        inner = into.get(path[0])
        into[path[0]] = inner if isinstance(inner, dict) else {}
        _put(into[path[0]], path[1:], value)
