"""The cache of data sets is built again where it is damaged, and says what to do where it cannot be used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DataError
from harness.json_lines import read_json_lines
from harness.task import Example
from tasks.common.dataset_cache import source_hash
from tasks.common.jsonl import build_dataset

N = 3000


def examples() -> Iterator[Example]:
    for i in range(N):
        yield Example(id=str(i), task="t", prompt=f"prompt {i}", target="x")


def build(read: Any = examples) -> Any:
    return build_dataset(read, reader="toy", version=1, files=[], options={})


@pytest.mark.long
@pytest.mark.parametrize("damage", ["gone", "empty", "short"])
def test_a_damaged_file_is_built_again(hf_cache: Path, damage: str) -> None:
    build()
    (file,) = hf_cache.rglob("*.arrow")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    assert len(build()) == N
    assert build()[N - 1]["prompt"] == f"prompt {N - 1}"


def test_a_folder_that_cannot_be_used_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "x")
    with pytest.raises(DataError, match=r"file/x cannot be used \(Not a directory\).*HF_DATASETS_CACHE"):
        build()


def test_what_a_reader_raises_is_passed_on_unchanged(hf_cache: Path) -> None:
    def broken() -> Iterator[Example]:
        yield next(examples())
        raise LookupError("of the reader")

    with pytest.raises(LookupError, match="of the reader"):
        build(broken)


def test_editing_a_reader_changes_the_key_of_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "__init__.py").write_text("")
    (tmp_path / "edited" / "reader.py").write_text("def read():\n    return iter(())\n")
    module = importlib.import_module("edited.reader")
    before = source_hash(module.read)
    assert source_hash(lambda: module.read()) != before
    (tmp_path / "edited" / "helper.py").write_text("x = 1\n")
    assert source_hash(module.read) != before
    sys.modules.pop("edited.reader")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\x00", ["gzip", "gzip -dc"]),
        (b"PK\x03\x04rest", ["zip", "unzip -p"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS pointer", "git lfs pull"]),
    ],
)
def test_compressed_files_and_pointers_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_json_lines(tmp_path / "train.json", {}))
    for word in words:
        assert word in str(caught.value)
