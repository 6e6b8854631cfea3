"""Records of older schemas are converted as they are read; for newer and damaged ones the error says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.store.migrations import MIGRATIONS
from harness.store.record import SCHEMA_VERSION, Evaluation, RunRecord
from harness.store.run_directory import RunDirectory

V1 = Path(__file__).parents[2] / "data" / "records" / "v1" / "majority-toys-cdae073b"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A copy of a record of the first schema."""
    return RunDirectory(Path(shutil.copytree(V1, tmp_path / V1.name)))


def rewrite(run: RunDirectory, change: Callable[[dict[str, Any]], Any], name: str = "record.json") -> Path:
    path = run.path / name
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_record_of_an_older_schema_is_converted_as_it_is_read(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_schema_1(content: dict[str, Any]) -> dict[str, Any]:
        return {("n_train" if key == "rows" else key): value for key, value in content.items()}

    today = run.record()
    path = rewrite(run, lambda c: c.update(schema_version=0, rows=c.pop("n_train")))
    with pytest.raises(StoreError, match="has schema 0, which cannot be converted to schema 1"):
        run.record()
    monkeypatch.setitem(MIGRATIONS, "record.json", {0: to_schema_1})
    old = path.read_bytes()
    assert run.record() == today
    assert path.read_bytes() == old, "old files are never rewritten"


def test_a_record_without_a_number_has_the_first_schema(run: RunDirectory) -> None:
    today = run.record()
    rewrite(run, lambda c: c.pop("schema_version"))
    assert run.record() == today


def test_every_older_schema_can_be_read() -> None:
    for name in ("record.json", "evaluation.json"):
        assert sorted(MIGRATIONS.get(name, {})) == list(range(1, SCHEMA_VERSION))
    for model in (RunRecord, Evaluation):
        assert model.model_fields["schema_version"].default == SCHEMA_VERSION


def test_a_newer_record_asks_for_a_newer_version(run: RunDirectory) -> None:
    path = rewrite(run, lambda c: c.update(schema_version=7, something="new"))
    with pytest.raises(StoreError) as error:
        run.record()
    assert f"{path} was written by a newer version of mtlora-harness (schema 7); upgrade" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["spec"].update(seed="three"), r"record\.json is damaged: spec\.seed: .*integer.*found 'three'"),
        (lambda c: c.pop("run_id"), r"record\.json is damaged: run_id: Field required\."),
        (lambda c: c.update(schema_version="one"), r"damaged: schema_version is 'one', and a whole number is expected"),
        (lambda c: c["spec"].update(colour="red"), r"record\.json: unknown key 'spec\.colour'.*another version"),
    ],
)
def test_a_damaged_record_says_what_is_wrong_and_where(
    run: RunDirectory, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    rewrite(run, change)
    with pytest.raises(StoreError, match=message):
        run.record()


def test_half_a_record_says_where_it_ends(run: RunDirectory) -> None:
    path = run.path / "record.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"record\.json is damaged: not valid JSON \(.*line \d+ column \d+"):
        run.record()
    path.write_text("[]")
    with pytest.raises(StoreError, match=r"record\.json is damaged: a JSON object is expected, found \[\]"):
        run.record()


def test_files_without_a_schema_are_checked_in_the_same_way(run: RunDirectory) -> None:
    rewrite(run, lambda c: c.update(shots=-1), "spec.json")
    with pytest.raises(StoreError, match=r"spec\.json is damaged: shots: .*found -1"):
        run.spec()
