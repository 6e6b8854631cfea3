"""Conversations as text, by the chat template of a model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import ModelError, UsageError


def check_style(tokenizer: Any, style: str, template: Mapping[str, Any]) -> None:
    """Check, before any work is done, that prompts can be written in this style.

    Raises: UsageError for --prompt chat with a tokenizer that has no chat template; ModelError for a template that
        fails on a conversation of one message.
    """
    if style != "chat":
        return
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("this model's tokenizer has no chat template: use --prompt plain, or a chat model")
    render_chat(tokenizer, [{"role": "user", "content": "1 + 1 = ?"}], template)


def render_chat(
    tokenizer: Any,
    turns: Sequence[Mapping[str, str]],
    template: Mapping[str, Any],
    *,
    add_generation_prompt: bool = True,
    **options: Any,
) -> str:
    """The conversation as the model's chat template writes it.

    Args:
        template: more arguments of the template, such as ``enable_thinking``; a template ignores those it does not use.
        options: more options of transformers' ``apply_chat_template``.

    Raises: ModelError with the template's own message if it is broken, or if it refuses the conversation.
    """
    import jinja2

    try:
        rendered: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **options, **template
        )
    # A template is a program: besides errors of its own (raise_exception, syntax), its expressions raise Python's.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line is not None else ""
        given = "".join(f" {name}={value!r}" for name, value in template.items())
        arguments = f" with{given}" if given else ""
        raise ModelError(
            f"the chat template of this model failed{arguments}{where}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:400].rstrip('.')}. Give --prompt plain, or "
            "correct the template in the model's chat_template.jinja or tokenizer_config.json"
        ) from error
    return rendered
