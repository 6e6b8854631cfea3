"""A damaged checkpoint is named, and the one before it is used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.errors import StoreError
from harness.training.checkpoint import Checkpoint, CheckpointOwner, load_newest, save_checkpoint
from harness.training.progress import Progress

OWNER = CheckpointOwner(run_id="a" * 64, spec={"train": {"lr": 0.001}, "seed": 0})


def save(folder: Path, step: int, owner: CheckpointOwner = OWNER) -> Path:
    weights = {"a": torch.full((3,), float(step))}
    state = Checkpoint(
        adapter=weights, optimiser={"a/exp_avg": weights["a"]}, best={}, progress=Progress(stage="all", step=step)
    )
    return save_checkpoint(folder, state, owner)


def truncate(path: Path) -> None:
    data = (path / "adapter.safetensors").read_bytes()
    (path / "adapter.safetensors").write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray((path / "optimiser.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "optimiser.safetensors").write_bytes(bytes(data))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def no_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


def no_hashes(path: Path) -> None:
    (path / "manifest.json").write_text(json.dumps({"run_id": OWNER.run_id, "spec": {}, "sha256": {}}))


@pytest.mark.parametrize("damage", [truncate, flip, empty, no_manifest, no_hashes])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = save(tmp_path, 1)
    damage(save(tmp_path, 2))
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is not None
    assert found.path == before
    assert found.checkpoint.progress.step == 1
    assert float(found.checkpoint.adapter["a"][0]) == 1.0
    assert len(found.damaged) == 1
    assert "00000002 is damaged" in found.damaged[0]
    assert save(tmp_path, 3).name == "00000003"


def test_when_every_checkpoint_is_damaged_training_starts_again(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step))
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is None
    assert len(found.damaged) == 3
    assert "starts from the beginning" in found.damaged[-1]


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "00000005"]


def test_a_checkpoint_of_another_spec_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = CheckpointOwner(run_id="b" * 64, spec={"train": {"lr": 0.01}, "seed": 0})
    with pytest.raises(StoreError, match=r"train\.lr is 0\.001 there and 0\.01 here"):
        load_newest(tmp_path, other)


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raise_full)
        with pytest.raises(StoreError, match=r"No space left.*saved.*free some space"):
            save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is not None
    assert found.checkpoint.progress.step == 1


def raise_full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_progress_json_keeps_the_names_of_its_fields(tmp_path: Path) -> None:
    """A run that an older version began must resume, so the name of dev_scores in the file is still "looks"."""
    path = save_checkpoint(
        tmp_path,
        Checkpoint(adapter={}, optimiser={}, best={}, progress=Progress(stage="all", step=8, dev_scores=[(4, 0.5)])),
        OWNER,
    )
    stored = json.loads((path / "progress.json").read_text())
    assert stored["looks"] == [[4, 0.5]]
    assert stored.keys() == {
        "stage", "step", "finished", "remembered", "counters", "recent_losses", "log_bytes", "scaler", "micro_tokens",
        "looks", "balance", "affinity",
    }  # fmt: skip
    found = load_newest(tmp_path, OWNER)
    assert found.checkpoint is not None
    assert found.checkpoint.progress == Progress(stage="all", step=8, dev_scores=[(4, 0.5)])


def test_progress_of_a_newer_version_is_refused_with_its_unknown_fields() -> None:
    with pytest.raises(ValueError, match="unknown fields: mood"):
        Progress.from_json({"stage": "all", "mood": "good"})
