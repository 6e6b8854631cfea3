"""TOML files of users: every error names the file and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.clusters import read_clusters
from harness.config.toml_file import read_toml
from harness.errors import UsageError


def test_the_tables_of_a_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[train]\nlr = 0.1\n")
    assert read_toml(path, hint="") == {"train": {"lr": 0.1}}


def test_a_missing_file_is_an_error_with_the_option_and_the_remedy(tmp_path: Path) -> None:
    said = r"^--clusters .*gone: No such file or directory\. Give none, kind, affinity:K, random:K:DRAW or a TOML file$"
    with pytest.raises(UsageError, match=said):
        read_clusters(str(tmp_path / "gone"))


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes("x = 'ä'".encode("latin-1"))
    with pytest.raises(UsageError, match=rf"^--config {path}: not valid TOML"):
        read_toml(path, option="--config", hint="")
