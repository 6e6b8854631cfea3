"""Runs that are verified and published, and a record of the first schema that loads for ever."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config.spec import directory_name, run_id
from harness.leaderboard.build import build_leaderboard
from harness.scoring.draws import read_draws
from harness.store.published_predictions import FILE, HASHES
from harness.store.record import PredictionHash, TaskPrediction, text_hash
from harness.store.run_directory import RunDirectory, find_runs, open_run

Command = Callable[..., Any]
V1 = Path(__file__).parents[2] / "data" / "records" / "v1"


@pytest.fixture
def finished(harness: Command, toy_model: Path, made_once: Command, tmp_path: Path) -> RunDirectory:
    """A finished, clean, unlimited run."""

    def make() -> None:
        steps = ["--set", "train.steps=1", "--set", "eval.max_new_tokens=2", "--set", "train.batch_size=2"]
        done = harness(
            *("run", "--suite", "toys", "--model", toy_model, "--method", "lora_all", "--clusters", "kind", *steps),
            *("--out", tmp_path / "runs"),
        )
        assert done.status == 0, done.err

    (run,) = find_runs(made_once("clustered lora_all", tmp_path / "runs", make))
    change(run, dirty=False, commit="0" * 40)
    return run


def change(run: RunDirectory, **provenance: Any) -> None:
    record = run.record()
    assert record is not None
    run.write("record.json", record.model_copy(update={"provenance": record.provenance.model_copy(update=provenance)}))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_unchanged_run_is_verified_and_every_change_is_found(finished: RunDirectory, harness: Command) -> None:
    good = harness("verify", finished.path)
    assert good.status == 0, good.out
    assert "scores: same: recomputed from 24 predictions" in good.out
    for line in ("run_id: same", "adapter label's weights: same", "adapter copy's weights: same", "data: same"):
        assert line in good.out
    texts = finished.path / "predictions" / "first.jsonl"
    row = json.loads(texts.read_text().splitlines()[0])
    gold = next(
        json.loads(x)
        for x in (Path(__file__).parents[2] / "plugin/toy_plugin/data/test.jsonl").read_text().splitlines()
        if json.loads(x)["id"] == row["id"]
    )
    damages: list[tuple[str, Path, str, str]] = [
        ("first: accuracy", texts, json.dumps(row["text"]), json.dumps(gold["target"])),
        ("another prompt", texts, row["prompt_hash"], "0" * 16),
        ("spec.json: differs", finished.path / "spec.json", '"seed": 0', '"seed": 1'),
        ("run_id: differs", finished.path / "record.json", '"seed": 0', '"seed": 1'),
        ("in scores.json", finished.path / "scores.json", '"value": 0.0', '"value": 0.5'),
        ("adapter copy", finished.path / "adapter" / "copy" / "adapter.json", '"sha256": "', '"sha256": "0'),
    ]
    for said, path, old, new in damages:
        before = path.read_bytes()
        edit(path, old, new)
        found = harness("verify", finished.path)
        assert found.status == 1, said
        assert said in found.out
        assert "differs" in found.out
        path.write_bytes(before)
    assert harness("verify", finished.path).status == 0


def test_other_data_are_named(finished: RunDirectory, harness: Command, plugin: Path, tmp_path: Path) -> None:
    data = tmp_path / "other"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    edit(data / "test.jsonl", "red", "blue")
    found = harness("verify", finished.path, "--data", data, "--json")
    assert found.status == 1
    (check,) = [c for c in found.json if c["outcome"] == "differs"]
    assert check["what"] == "data"
    assert "test.jsonl differ" in check["detail"]


def test_a_published_record_stands_in_the_leaderboard_once_and_can_be_verified(
    finished: RunDirectory, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    published = harness("verify", finished.path, "--publish")
    assert published.status == 0, published.err
    folder = Path("leaderboards") / "records" / finished.name
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == sorted(
        [
            *("record.json", "spec.json", "scores.json", "bootstrap.npz", "digest.json", FILE),
            *("adapter.json", "adapter.json"),
        ]
    )
    board = harness("leaderboard", "toys", "--out", tmp_path / "runs").out
    assert board.count("lora_all") >= 1
    alone = harness("leaderboard", "toys", "--out", tmp_path / "nothing").out
    assert alone == board
    checked = harness("verify", folder)
    assert checked.status == 0, checked.out
    assert "scores: same: recomputed from 24 predictions" in checked.out
    assert "draws: same" in checked.out
    assert harness("verify", finished.path, "--publish").status == 0
    change(finished, commit="1" * 40)
    again = harness("verify", finished.path, "--publish")
    assert again.status == 1
    assert "published already" in again.err


def test_a_published_record_names_no_folder_of_the_machine(
    finished: RunDirectory, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["harness", "run", "--suite", "toys", "--out", str(tmp_path / "runs"), f"--data={tmp_path}/toys"]
    change(finished, command=command)
    for _ in range(2):
        record = RunDirectory(published(finished, harness)).record()
        assert record is not None
        assert record.provenance.command == ["harness", "run", "--suite", "toys", "--out", "runs", "--data=toys"]


def published(run: RunDirectory, harness: Command) -> Path:
    done = harness("verify", run.path, "--publish")
    assert done.status == 0, done.err
    return Path("leaderboards") / "records" / run.name


def test_the_scores_of_a_published_record_are_recomputed_from_its_predictions(
    finished: RunDirectory, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = published(finished, harness)
    tasks = ["colour", "first", "last"]
    kept = RunDirectory(record).predictions(tasks)
    assert {t: [p.model_dump(exclude={"task"}) for p in kept[t]] for t in tasks} == {
        t: [p.model_dump() for p in of_task] for t, of_task in finished.predictions(tasks).items()
    }
    before = {p: p.read_bytes() for p in record.iterdir() if p.is_file()}
    scored = harness("score", record, "--json")
    assert scored.status == 0, scored.err
    assert scored.json["scores"] == json.loads((finished.path / "scores.json").read_text())
    assert {p: p.read_bytes() for p in record.iterdir() if p.is_file()} == before
    shutil.rmtree(record)
    assert (published(finished, harness) / FILE).read_bytes() == before[record / FILE]


def test_an_altered_prediction_of_a_published_record_is_found(
    finished: RunDirectory, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = published(finished, harness) / FILE
    content = path.read_bytes()
    lines = [TaskPrediction.model_validate_json(line) for line in gzip.decompress(content).splitlines()]
    right = {text_hash(toy): toy for toy in ("car", "doll", "kite", "drum", "ball", "robot")}
    at = next(n for n, line in enumerate(lines) if line.task == "first" and line.target_hash in right)
    lines[at] = lines[at].model_copy(update={"text": right[lines[at].target_hash]})
    path.write_bytes(gzip.compress("".join(f"{line.model_dump_json()}\n" for line in lines).encode()))
    altered = harness("verify", path.parent)
    assert altered.status == 1
    assert "scores: differs: official, first: accuracy 0.0, recomputed 0.125" in altered.out
    path.write_bytes(content[:-20])
    damaged = harness("verify", path.parent)
    assert damaged.status == 1
    assert f"predictions: differs: {path} is damaged" in damaged.out


def test_predictions_on_data_that_may_not_be_published_are_kept_as_hashes(
    harness: Command, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "licensed"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    done = harness("run", "--suite", "toys", "--method", "majority", "--data", data, "--out", "runs", "--json")
    run = open_run(Path(done.json["directory"]))
    change(run, dirty=False, commit="0" * 40)
    record = published(run, harness)
    assert not (record / FILE).exists()
    hashes = [
        PredictionHash.model_validate_json(x) for x in gzip.decompress((record / HASHES).read_bytes()).splitlines()
    ]
    made = {(t, p.id): p for t, rows in run.predictions(["colour", "first", "last"]).items() for p in rows}
    assert len(hashes) == len(made) == 24
    for line in hashes:
        prediction = made[line.task, line.id]
        assert line.prompt_hash == prediction.prompt_hash
        assert line.target_hash == prediction.target_hash
        assert line.text_hash == text_hash(prediction.text)
    said = "scores: not checked: the record holds hashes only, since the suite does not allow its predictions to be"
    for arguments in ((), ("--data", data)):
        checked = harness("verify", record, *arguments)
        assert checked.status == 0, checked.out
        assert said in checked.out
    refused = harness("score", record, "--data", data)
    assert refused.status == 1
    assert "has only hashes of its predictions" in refused.err
    shutil.rmtree(record)
    from toy_plugin.suite import Toys  # type: ignore[import-not-found]

    monkeypatch.setattr(Toys, "publish_predictions", True)
    assert (published(run, harness) / FILE).exists()
    assert "scores: same: recomputed from 24 predictions" in harness("verify", record, "--data", data).out


def test_a_run_without_its_predictions_is_not_published(
    finished: RunDirectory, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished.prediction_file("first").unlink()
    refused = harness("verify", finished.path, "--publish")
    assert refused.status == 1
    assert "its predictions are missing" in refused.err
    assert not (tmp_path / "leaderboards").exists()


def test_a_record_from_before_predictions_were_kept_is_verified_without_them(harness: Command) -> None:
    (record,) = V1.glob("majority-*")
    checked = harness("verify", record)
    assert checked.status == 0, checked.out
    assert "scores: not checked: the predictions are not stored here" in checked.out
    assert "draws: same" in checked.out


def test_a_run_that_is_not_reproducible_is_not_published(
    finished: RunDirectory, toy_run: Command, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for provenance, said in (({"dirty": True}, "uncommitted"), ({"commit": None, "dirty": None}, "git checkout")):
        change(finished, commit="0" * 40)
        change(finished, **provenance)
        refused = harness("verify", finished.path, "--publish")
        assert refused.status == 1
        assert said in refused.err
    limited = open_run(Path(toy_run("--method", "majority", "--json").json["directory"]))
    change(limited, dirty=False, commit="0" * 40)
    assert "eval.per_task = 4" in harness("verify", limited.path, "--publish").err
    edit(finished.path / "scores.json", '"value": 0.0', '"value": 0.5')
    change(finished, dirty=False, commit="0" * 40)
    assert "in scores.json" in harness("verify", finished.path, "--publish").err
    assert not (tmp_path / "leaderboards").exists()


def test_records_of_the_first_schema_load_for_ever() -> None:
    runs = {run.record().spec.method.name: run for run in find_runs(V1)}
    assert list(runs) == ["lora_all", "majority"]
    for run in runs.values():
        record, scores, draws = run.record(), run.scores(), read_draws(run)
        assert record is not None
        assert scores is not None
        assert record.schema_version == 1
        assert run_id(record.spec) == record.run_id
        assert directory_name(record.spec) == run.name
        assert draws is not None
        assert set(draws) == {"colour", "first", "last"}
    record = runs["lora_all"].record()
    assert record.run_id == "d7c2078ed7ae147f38fa87e4315ba4269b2e633003acdc5551be2cfc90c774a8"
    assert dict(record.spec.clusters.groups) == {"label": ("colour",), "copy": ("first", "last")}
    assert (record.parameters.stored, record.parameters.active) == (32768, 16384)
    (table,) = build_leaderboard(list(runs.values()), "toys", "official").tables
    means = {row.group.spec.method.name: row.mean for row in table.rows}
    assert means["lora_all"].value == 0
    # of eight test rows two are blue, one has a ball first, none a car last: the most frequent answers, by alphabet
    assert means["majority"].value == pytest.approx((2 / 8 + 1 / 8 + 0) / 3)
    assert means["majority"].estimate.low < means["majority"].value < means["majority"].estimate.high
