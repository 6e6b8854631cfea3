"""Chat templates: their arguments, and the error of one that is broken or refuses a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from harness.data.chat import check_style, render_chat
from harness.data.encoding import Encoder
from harness.errors import ModelError, UsageError
from harness.task import Example

THINKS = "{{ messages[-1]['content'] }}|{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
EXAMPLE = Example(id="1", task="t", prompt="Why?", target="So.")


def with_template(template: str | None) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.chat_template = template
    return tokenizer


def prompt(**arguments: Any) -> str:
    encoder = Encoder(
        tokenizer=with_template(THINKS), style="chat", template=arguments, eos=0, max_length=64, limits={"t": 4}
    )
    return encoder.text(EXAMPLE, 0)


def test_an_argument_reaches_the_template_and_an_unknown_one_is_harmless() -> None:
    assert prompt() == "Why?|<think>"
    assert prompt(enable_thinking=False, colour="red") == "Why?|"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('Only system messages are supported') }}", "Only system messages are supported"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("a\n{{ messages | nonsense }}", "line 2"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_own_message_and_the_remedy(template: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as raised:
        check_style(with_template(template), "chat", {"enable_thinking": False})
    message = str(raised.value)
    assert "\n" not in message
    assert "--prompt plain" in message
    assert "enable_thinking=False" in message


def test_a_template_that_refuses_a_later_conversation_is_the_same_error() -> None:
    picky = with_template("{% if messages | length > 1 %}{{ raise_exception('One message') }}{% endif %}x")
    check_style(picky, "chat", {})
    with pytest.raises(ModelError, match="One message"):
        render_chat(picky, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {})


def test_only_chat_prompts_need_a_template() -> None:
    check_style(with_template(None), "plain", {})
    with pytest.raises(UsageError, match="no chat template"):
        check_style(with_template(None), "chat", {})
