"""The files of a base model: their location, their version, and whether they are complete."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.errors import DataError, ModelError, hub_errors, nearest
from harness.hashing import file_sha256, is_lfs_pointer
from harness.registry import MODELS, model_folder, plugins

# The files that a model consists of; no other file of its folder changes a result.
TOKENIZER_PARTS: Final = (
    "config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken", "chat_template.*",
)  # fmt: skip
_PARTS: Final = (*TOKENIZER_PARTS, "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
# Second copies of the weights in other layouts, which are not downloaded.
_COPIES: Final = ("*/*", "consolidated*.safetensors")
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location of a model: a folder, a file ``gguf`` in it, or a commit of the model hub (``folder`` is None)."""

    label: str
    folder: Path | None = None
    gguf: str | None = None
    commit: str | None = None


def locate(name: str, revision: str | None = None) -> Source:
    """Locate a model by name: a registered name, an existing folder or ``.gguf`` file, or a hub id, in this order.

    Args:
        revision: branch, tag or commit of a hub id (default: the version in the local cache, else the newest).

    Raises: ModelError if nothing has this name, saying what to give instead.
    """
    registered = model_folder(name)
    path = registered or Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is a file, but not a .gguf file. Give its folder, a .gguf file or a hub id.")
        return Source(label=path.stem, folder=path.parent, gguf=path.name)
    if path.is_dir():
        return Source(label=name if registered else path.resolve().name, folder=path)
    if registered:
        raise ModelError(f"the registered model {name!r} is missing at {path}. Reinstall its package.")
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or path.suffix.lower() == ".gguf":
        raise ModelError(f"no model at {path}. Give a folder, a .gguf file, a hub id or a name such as 'tiny'.")
    return Source(label=name, commit=_commit(name, revision))


def fingerprint(source: Source) -> str:
    """The hub commit, the hash of the GGUF file, or one hash of a folder's config, weights and tokenizer files."""
    if source.commit is not None:
        return source.commit
    folder = _folder(source)
    try:
        if source.gguf:
            return file_sha256(folder / source.gguf)
        check_folder(folder)
        files = sorted({file for part in _PARTS for file in folder.glob(part) if file.is_file()})
        lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
    except DataError as error:
        raise ModelError(str(error)) from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch(source: Source) -> Path:
    """The model's folder on this disk, downloaded first where it is on the hub and not in the cache.

    Raises: ModelError if the hub cannot be reached or does not have it.
    """
    if source.commit is None:
        return _folder(source)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            source.label, revision=source.commit, allow_patterns=list(_PARTS), ignore_patterns=list(_COPIES)
        )
    except hub_errors() as error:
        raise _unreachable(source.label, error) from error
    return Path(folder)


def check_folder(folder: Path) -> None:
    """Raise ModelError, with what to do, unless the folder holds a config and complete safetensors weights."""
    held = sorted(file.name for file in folder.iterdir())
    listing = ", ".join(held[:12]) or "nothing"
    if "config.json" not in held:
        raise ModelError(f"{folder} has no config.json; it holds {listing}.{_instead(folder, held)}")
    check_fetched(folder, *_PARTS)
    weights = sorted(folder.glob("*.safetensors"))
    pickles = [file.name for part in _PICKLES for file in folder.glob(part) if file.name != "training_args.bin"]
    if not weights and pickles:
        raise ModelError(
            f"{folder} has its weights in {pickles[0]} only. Pickle files can run code when read and are refused: "
            "find the model as .safetensors (most hub models have it), or convert it where you trust it."
        )
    if not weights:
        raise ModelError(f"{folder} has no .safetensors weights; it holds {listing}. Is the download complete?")
    for file in weights:
        _check_weights(file)
    for index in folder.glob("*.safetensors.index.json"):
        missing = sorted(set(_json(index).get("weight_map", {}).values()) - set(held))
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, which {index.name} names. Download it again.")


def _instead(folder: Path, held: list[str]) -> str:
    ggufs = [name for name in held if name.endswith(".gguf")]
    if ggufs:
        return f" Give the file itself: {folder / ggufs[0]}"
    if "adapter_config.json" in held:
        return " That is an adapter: give its base model."
    return " Give the folder that from_pretrained would take."


def check_fetched(folder: Path, *patterns: str) -> None:
    """Refuse files that Git LFS has not fetched. Raises: ModelError naming the first of them."""
    for file in sorted({file for part in patterns for file in folder.glob(part) if file.is_file()}):
        if is_lfs_pointer(file):
            raise ModelError(f"{file} is a Git LFS pointer, not the file itself. Fetch it there: git lfs pull")


def _check_weights(file: Path) -> None:
    """Compare a safetensors file with the length its own header states: 8 bytes, the header, the tensors."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ModelError(f"{file} is not a safetensors file, or is incomplete ({size} bytes). Download it again.")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ModelError(f"{file} has a damaged header: {error}. Download it again.") from error
    ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise ModelError(f"{file} has {size} bytes, but its header states {whole}. Download it again.")


def _json(file: Path) -> dict[str, dict[str, str]]:
    try:
        content: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}. Download it again.") from error
    return content


def _folder(source: Source) -> Path:
    if source.folder is None:
        raise ValueError(f"{source} is not on this disk")
    return source.folder


def _commit(name: str, revision: str | None) -> str:
    """The commit of a hub id: as given, from the local cache, or requested from the hub, in this order."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        commit = HfApi().model_info(name, revision=revision, timeout=20).sha
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a path nor a hub id: {error}") from error
    except hub_errors() as error:
        raise _unreachable(name, error) from error
    return str(commit)


def _unreachable(name: str, error: Exception) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return ModelError(f"{name} is gated: accept its terms on the hub, then `hf auth login`.")
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(f"no folder {name} here and no model {name} on the hub. Check the name, or `hf auth login`.")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{name} has no such revision on the hub: {error}")
    return ModelError(
        f"{name} is neither a folder here nor complete in the local cache, and the hub cannot be reached "
        f"({type(error).__name__}).{nearest(name, plugins(MODELS))} "
        f"Download it first (`hf download {name}`), or give a folder or a .gguf file."
    )
