"""The choices of clusters that are computed: how they are read, named in tables, and found next to a board's file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.config.clusters import AffinityChoice, RandomChoice, absolute_clusters, label_of, parse_measured, to_toml
from harness.config.spec import ClusterSpec
from harness.errors import UsageError


def test_choices_are_read_with_their_numbers() -> None:
    assert parse_measured("affinity:4") == AffinityChoice(k=4, source=None)
    assert parse_measured("affinity:4:updates") == AffinityChoice(k=4, source="updates")
    assert parse_measured("random:3:2") == RandomChoice(k=3, sizes=(), draw=2)
    assert parse_measured("random:3+1:0") == RandomChoice(k=2, sizes=(3, 1), draw=0)
    assert parse_measured("kind") is parse_measured("affinity.toml") is parse_measured(None) is None
    for wrong in ("affinity:", "affinity:x", "random:3", "random:0+2:1", "random:2:x"):
        with pytest.raises(UsageError, match=f"--clusters {wrong}".replace("+", r"\+")):
            parse_measured(wrong)


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        ("kind", "kind"),
        ("affinity:5", "affinity:5"),
        ("affinity:5:updates", "affinity:5:updates"),
        ("affinity:5:/a/toys/affinity.json", "affinity:5:toys"),
        ("affinity:5:/a/toys", "affinity:5:toys"),
        ("random:3+2:1", "random:3+2:1"),
        ("/a/toys.toml", "toys"),
    ],
)
def test_a_label_has_no_folder(choice: str, label: str) -> None:
    assert label_of(choice) == label


def test_files_of_a_board_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "toys").mkdir()
    (tmp_path / "groups.toml").touch()
    assert absolute_clusters("affinity:5:toys", tmp_path) == f"affinity:5:{tmp_path.resolve() / 'toys'}"
    assert absolute_clusters("groups.toml", tmp_path) == str(tmp_path.resolve() / "groups.toml")
    for same in ("kind", "none", "affinity:5", "affinity:5:updates", "random:2:0", "other.toml", None):
        assert absolute_clusters(same, tmp_path) == same


def test_clusters_are_written_as_the_file_that_is_read() -> None:
    spec = ClusterSpec(label="x", groups={"c1": ("a", 'b"é'), "c2": ("c",)})
    assert tomllib.loads(to_toml(spec)) == {"c1": ["a", 'b"é'], "c2": ["c"]}
