"""Tokenizers that do not belong to their model are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import ModelError
from harness.models import tokenizer_checks
from harness.models.tokenizer_checks import check_sentencepiece, check_vocabulary, stated_vocabulary


def tokenizer(n: int, *, text: tuple[str, ...] = (), **special: str) -> Any:
    """A tokenizer of n words, to which special tokens and words are added."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w0")), **special
    )
    made.add_tokens(list(text))
    return made


def refused(made: Any, folder: Path, n_embeddings: int | None) -> str:
    with pytest.raises(ModelError) as raised:
        check_vocabulary(made, "toy", folder, n_embeddings)
    return str(raised.value)


def test_an_empty_tokenizer_is_refused_and_the_missing_files_are_named(tmp_path: Path) -> None:
    message = refused(tokenizer(0, eos_token="</s>"), tmp_path, 900)
    assert "the tokenizer of toy has 1 tokens, of which 1 are special" in message
    assert "no tokenizer files (tokenizer.json" in message


def test_a_few_tokens_for_a_large_model_are_refused_and_for_a_small_one_are_not(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    message = refused(tokenizer(5, eos_token="</s>"), tmp_path, 32000)
    assert "tokenizer.json in its folder is incomplete or of another model" in message
    check_vocabulary(tokenizer(5, eos_token="</s>"), "toy", tmp_path, 16)
    check_vocabulary(tokenizer(5, eos_token="</s>"), "toy", tmp_path, None)


@pytest.mark.parametrize(
    ("made", "token"),
    [
        (tokenizer(50, eos_token="</s>"), "</s>"),
        (tokenizer(50, eos_token="w1", text=("fever",)), "fever"),
        (tokenizer(51, eos_token="w1"), "w50"),
    ],
)
def test_a_token_of_texts_or_sequences_without_an_embedding_is_refused(made: Any, token: str, tmp_path: Path) -> None:
    message = refused(made, tmp_path, 50)
    assert f"token '{token}' (id 50) has no embedding" in message
    assert "resize_token_embeddings" in message


def test_tokens_that_no_text_has_may_be_without_an_embedding(tmp_path: Path) -> None:
    made = tokenizer(50, eos_token="w1", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(made, "toy", tmp_path, 50)


def test_the_size_of_a_vocabulary_is_the_text_models(tmp_path: Path) -> None:
    assert stated_vocabulary(tmp_path) is None
    (tmp_path / "config.json").write_text('{"vocab_size": 7, "text_config": {"vocab_size": 9}}')
    assert stated_vocabulary(tmp_path) == 9
    (tmp_path / "config.json").write_text('{"text_config": null}')
    assert stated_vocabulary(tmp_path) is None


def test_a_sentencepiece_file_alone_names_the_packages_that_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> None:
        raise tokenizer_checks.PackageNotFoundError(name)

    monkeypatch.setattr(tokenizer_checks, "distribution", nothing)
    (tmp_path / "tokenizer.model").write_text("IQ== 0")
    check_sentencepiece("toy", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(ModelError) as raised:
        check_sentencepiece("toy", tmp_path)
    message = str(raised.value)
    assert "tokenizer.model" in message
    assert "pip install sentencepiece protobuf" in message
    assert "mtlora-harness[sentencepiece]" in message
    (tmp_path / "tokenizer.json").touch()
    check_sentencepiece("toy", tmp_path)
