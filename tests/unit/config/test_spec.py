"""What identifies a run: its choices, not its labels, its speed, or the prose that describes its data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.config.request import Request
from harness.config.spec import (
    ClusterSpec,
    DataSpec,
    EvalConfig,
    MethodSpec,
    ModelSpec,
    RunSpec,
    SuiteSpec,
    TrainConfig,
    directory_name,
    run_id,
)
from harness.data.splits import locate_data
from harness.errors import DataError
from harness.pipeline.resolve import resolve
from harness.store.run_directory import RunDirectory
from harness.task import Suite, Task
from tasks.firefly.suite import Firefly
from tasks.promptcblue.suite import PromptCBLUE

Command = Callable[..., Any]
HOME = Path(__file__).parents[3]


def spec(**changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "method": MethodSpec(name="lora_all", version=1),
        "suite": SuiteSpec(name="toys", version=1, tasks={"colour": 1}),
        "model": ModelSpec(label="tiny", fingerprint="m"),
        "data": DataSpec(label="sample", sample=True, fingerprints={"test.jsonl": "d"}),
        "train": TrainConfig(steps=3),
    }
    return RunSpec(**{**fields, **changes})


@pytest.mark.parametrize("pattern", ["leaderboards/records/*/record.json", "tests/data/records/*/*/record.json"])
def test_every_published_record_has_the_run_id_of_its_spec(pattern: str) -> None:
    records = sorted(HOME.glob(pattern))
    assert records
    for path in records:
        record = json.loads(path.read_text("utf-8"))
        assert run_id(RunSpec.model_validate(record["spec"])) == record["run_id"], path


def test_the_identity_is_what_differs_from_the_defaults() -> None:
    assert spec(shots=2).identity() == {
        "method": {"name": "lora_all", "version": 1},
        "suite": {"name": "toys", "version": 1, "tasks": {"colour": 1}},
        "model": {"fingerprint": "m"},
        "data": {"sample": True, "fingerprints": {"test.jsonl": "d"}},
        "train": {"steps": 3},
        "eval": {"batch_tokens": 16384},
        "shots": 2,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"train": TrainConfig(steps=3, compile=True, packing="off", micro_tokens=64, gradient_checkpointing=True)},
        {"train": TrainConfig(steps=3, checkpoint_steps=7, checkpoint_minutes=1.0)},
        {"model": ModelSpec(label="another name", fingerprint="m")},
        {"data": DataSpec(label="moved", sample=True, fingerprints={"test.jsonl": "d"})},
        {"method": MethodSpec(name="lora_all", version=1, resolved={"alpha": 32.0})},
    ],
)
def test_speed_and_labels_do_not_identify_a_run(changes: dict[str, Any]) -> None:
    assert run_id(spec(**changes)) == run_id(spec())


def test_a_sharded_base_does_not_identify_a_run_even_if_no_other_key_is_given() -> None:
    no_keys: dict[str, Any] = {}
    for fields in (no_keys, {"steps": 3}):
        plain, sharded = (TrainConfig(**fields, shard_base=shards) for shards in (False, True))
        assert run_id(spec(train=sharded)) == run_id(spec(train=plain))


@pytest.mark.parametrize(
    "changes",
    [
        {"train": TrainConfig(steps=4)},
        {"train": TrainConfig(steps=3, eval_rows=1)},
        {"model": None},
        {"data": DataSpec(label="sample", sample=True, fingerprints={"test.jsonl": "other"})},
        {"method": MethodSpec(name="lora_all", version=1, fields={"alpha": 8.0})},
        {"clusters": ClusterSpec(label="kind", groups={"label": ("colour",)})},
        {"eval": EvalConfig(batch_tokens=8192)},
        {"seed": 1},
    ],
)
def test_every_choice_identifies_a_run(changes: dict[str, Any]) -> None:
    assert run_id(spec(**changes)) != run_id(spec())


def test_a_key_whose_default_has_changed_is_omitted_at_its_first_default() -> None:
    assert "eval" not in spec(eval=EvalConfig(batch_tokens=8192)).identity()
    assert spec(eval=EvalConfig(batch_tokens=4096)).identity()["eval"] == {"batch_tokens": 4096}


def test_training_with_speed_keys_alone_keeps_the_run_id_that_it_has_always_had() -> None:
    # Not what one would choose: it is another run than one without any key. Changing it would change old run_ids.
    assert spec(train=TrainConfig(compile=True)).identity()["train"] == {}
    assert "train" not in spec(train=TrainConfig()).identity()


def test_a_folder_of_a_method_is_identified_by_what_it_holds() -> None:
    def at(path: str, content: str) -> str:
        method = MethodSpec(
            name="lorahub", version=1, fields={"experts": (path,), "rank": 4}, files={"experts": (content,)}
        )
        return run_id(spec(method=method))

    assert at("/one", "hash") == at("/moved", "hash") != at("/one", "other hash")


@pytest.mark.parametrize("cls", [Firefly, PromptCBLUE])
def test_other_words_in_describe_make_no_other_run(cls: type[Suite], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request(options={"method": "majority", "suite": cls.name})
    before = resolve(asked).spec
    monkeypatch.setattr(cls, "describe", lambda self, source: {"split": "in quite other words", "revision": "prose"})
    after = resolve(asked)
    assert after.suite.describe(after.source)["split"] == "in quite other words"
    assert run_id(after.spec) == run_id(before)


@dataclass(frozen=True, kw_only=True)
class Bare(Suite):
    """A suite that reads nothing and says nothing of its data."""

    name = "bare"
    version = 1

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {}

    def read(self, source: str, split: str) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Files(Bare):
    """A suite of local files."""

    def files(self, source: str) -> Sequence[Path]:
        return sorted(Path(source).rglob("*.jsonl"))


@dataclass(frozen=True, kw_only=True)
class Forgetful(Bare):
    """A suite whose fingerprint is empty."""

    def fingerprint(self, source: str) -> Mapping[str, str]:
        return {}


def test_a_suite_of_files_is_identified_by_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("{}")
    one = Files().fingerprint(str(tmp_path))
    assert {name: value[:8] for name, value in one.items()} == {"test.jsonl": "44136fa3"}
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "test.jsonl").write_text("[]")
    (tmp_path / "more" / "dev.jsonl").write_text("{}")
    both = Files().fingerprint(str(tmp_path))
    assert set(both) == {"test.jsonl", "more/test.jsonl", "dev.jsonl"}
    assert both["test.jsonl"] == both["dev.jsonl"] != both["more/test.jsonl"]


def test_data_that_nothing_identifies_are_an_error_that_says_what_to_implement(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"suite 'bare'.*Bare must implement files\(source\).*fingerprint\(source\)"):
        locate_data(Bare(), "someone/data")
    with pytest.raises(DataError, match=r"empty fingerprint.*Forgetful\.fingerprint must return"):
        locate_data(Forgetful(), str(tmp_path))


def made_before_fingerprints_had_a_form(path: Path) -> RunDirectory:
    """The same run as if its data had been identified by a sentence of ``describe``."""
    run = RunDirectory(path)
    record = run.record()
    assert record is not None
    prints = {**record.spec.data.fingerprints, "split": "by the source's files"}
    data = record.spec.data.model_copy(update={"fingerprints": prints})
    former = record.spec.model_copy(update={"data": data})
    run.write("spec.json", former)
    run.write("record.json", record.model_copy(update={"spec": former, "run_id": run_id(former)}))
    return RunDirectory(path.rename(path.parent / directory_name(former)))


def test_a_firefly_run_with_a_sentence_as_its_fingerprint_still_loads_and_scores(
    harness: Command, tmp_path: Path
) -> None:
    done = harness("run", "--method", "majority", "--suite", "firefly", "--out", tmp_path, "--json")
    assert done.status == 0, done.err
    run = made_before_fingerprints_had_a_form(Path(done.json["directory"]))
    record = run.record()
    assert record is not None
    assert record.spec.data.fingerprints["split"] == "by the source's files"
    assert run_id(record.spec) == record.run_id
    for command in (("score", run.path), ("verify", run.path), ("evaluate", run.path, "--set", "eval.per_task=2")):
        found = harness(*command)
        assert found.status == 0, (command, found.out, found.err)
    kept = RunDirectory(next((run.path / "evaluations").iterdir())).evaluation()
    assert kept is not None
    assert kept.settings.run_id == record.run_id
    again = harness("run", "--method", "majority", "--suite", "firefly", "--out", tmp_path, "--json")
    assert again.json["directory"] == done.json["directory"], "the same command now makes a run with today's form"
