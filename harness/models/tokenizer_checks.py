"""Whether a tokenizer belongs to its model: transformers makes an empty one where a folder has no tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from harness.errors import ModelError

_FEW: Final = 32
"""Ordinary tokens of a vocabulary that is only the remains of one; tokenizers of bytes have 256."""
_LARGE: Final = 500
"""Embeddings of a model that needs a larger vocabulary than a few tokens."""
_OTHER_FILES: Final = ("tokenizer.json", "vocab.json", "vocab.txt")
_FILES: Final = (*_OTHER_FILES, "*.model", "*.tiktoken")
_SENTENCEPIECE: Final = ("sentencepiece", "protobuf")


def check_vocabulary(tokenizer: Any, label: str, folder: Path, n_embeddings: int | None) -> None:
    """Refuse an empty tokenizer, or one with tokens that the model has no embedding for.

    Tokens that occur in no text may be without an embedding, such as one for padding or for images.

    Args:
        label: of the model. folder: its files. n_embeddings: of the model; None if they are not known.

    Raises: ModelError that names the tokens or files, and the remedy.
    """
    ids: Mapping[str, int] = tokenizer.get_vocab()
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    n_ordinary = sum(token not in added for token in ids)
    if not n_ordinary or (n_ordinary < _FEW and (n_embeddings or 0) >= _LARGE):
        has = "no tokens" if not ids else f"{len(ids)} tokens, of which {len(ids) - n_ordinary} are special"
        model = "" if n_embeddings is None else f", but the model has embeddings for {n_embeddings}"
        raise ModelError(f"the tokenizer of {label} has {has}{model}: {_why_empty(folder)}")
    if n_embeddings is None:
        return
    used = {getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "bos", "unk", "cls", "sep")}
    beyond = {t: i for t, i in ids.items() if i >= n_embeddings and (i in used or not added.get(t, False))}
    beyond = {t: i for t, i in beyond.items() if i != tokenizer.pad_token_id or i in used}
    if beyond:
        token, number = min(beyond.items(), key=lambda item: item[1])
        more = f" and {len(beyond) - 1} more tokens have" if len(beyond) > 1 else " has"
        raise ModelError(
            f"the tokenizer of {label} does not belong to the model: token {token!r} (id {number}){more} no embedding, "
            f"since the model has embeddings for the ids 0 to {n_embeddings - 1} only. Give the tokenizer that belongs "
            "to the model, or, if tokens were added, resize its embeddings and save it (model.resize_token_embeddings)"
        )


def stated_vocabulary(folder: Path) -> int | None:
    """The size of the vocabulary in a model's config.json; None if it does not state one. Raises: ValueError."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    for part in (config.get("text_config"), config):
        size = part.get("vocab_size") if isinstance(part, dict) else None
        if isinstance(size, int) and size > 0:
            return size
    return None


def check_sentencepiece(label: str, folder: Path) -> None:
    """Refuse a tokenizer that is only a sentencepiece file, if packages that read it are not installed.

    Without them transformers reads the file as one of tiktoken, and fails with an error about its first line.

    Raises: ModelError with the command that installs them.
    """
    if any((folder / name).is_file() for name in _OTHER_FILES):
        return
    files = [file.name for file in sorted(folder.glob("*.model")) if _is_sentencepiece(file)]
    missing = [name for name in _SENTENCEPIECE if not _installed(name)]
    if not files or not missing:
        return
    raise ModelError(
        f"the tokenizer of {label} is a sentencepiece file ({files[0]}), and {' and '.join(missing)} to read it with "
        f"{'are' if len(missing) > 1 else 'is'} not installed: pip install 'mtlora-harness[sentencepiece]' "
        f"(or: pip install {' '.join(missing)})"
    )


def _is_sentencepiece(file: Path) -> bool:
    """Whether a .model file begins as a message of protobuf with its first field; tiktoken's begin with base64."""
    with file.open("rb") as opened:
        return opened.read(1) == b"\n"


def _why_empty(folder: Path) -> str:
    files = sorted({file.name for part in _FILES for file in folder.glob(part)})
    if files:
        return (
            f"{', '.join(files)} in its folder is incomplete or of another model. Copy the tokenizer files that belong "
            "to the model"
        )
    return (
        "its folder has no tokenizer files (tokenizer.json, or vocab.json and merges.txt, vocab.txt, or a .model file "
        "of sentencepiece). Copy them from where the model is from into the folder"
    )


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
