"""Generated tokens as text: spaces that a tokenizer of single characters puts into Chinese are removed, others stay."""

from __future__ import annotations

from typing import Any

import pytest

from harness.data.decode import texts_of

CHARACTERS = "的是不了在人有我他这中大来上个国第天用"


def characters_tokenizer() -> Any:
    """BERT's way: one token for each Chinese character, spaces between tokens when they are decoded."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *"abc0123456789，：", "hello", "world"]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})


def bytes_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def round_trip(tokenizer: Any, text: str) -> str:
    (back,) = texts_of(tokenizer, tokenizer([text], add_special_tokens=False)["input_ids"])
    return back


@pytest.mark.parametrize("text", ["是的", "不是，我在中国", "第3天用a", "hello world"])
def test_a_tokenizer_of_characters_gives_chinese_back_without_spaces_and_english_with_them(text: str) -> None:
    assert round_trip(characters_tokenizer(), text) == text


@pytest.mark.parametrize("text", ["是的", "是 的", " 中国  人\n", "用 PDF 文件", "hello 世界"])
def test_spaces_that_a_tokenizer_keeps_are_kept(text: str) -> None:
    assert round_trip(bytes_tokenizer(), text) == text


def test_no_tokens_are_no_texts() -> None:
    assert texts_of(bytes_tokenizer(), []) == []
    assert texts_of(bytes_tokenizer(), [[]]) == [""]
