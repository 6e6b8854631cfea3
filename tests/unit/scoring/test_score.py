"""Scores of toy predictions: matching, protocols, means, files, tables."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from zipfile import ZipFile

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import f1_score

from harness.data.splits import load_split
from harness.errors import DataError, StoreError, UsageError
from harness.pipeline.reopen import RunData
from harness.pipeline.rescore import scores_of
from harness.reporting.numbers import MISSING
from harness.scoring.draws import read_draws
from harness.scoring.prediction_file import score_file
from harness.scoring.score import render_scores, score_predictions, to_json, write_scored
from harness.store.record import Prediction, text_hash
from harness.store.run_directory import RunDirectory
from harness.task import NOT_PARSED, Example, Floats, Protocol, Statistics, Suite, Task

COLOURS = ("red", "green", "blue")


def accuracy(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    rows = np.array([[float(g == a), 1.0] for g, a in zip(golds, answers, strict=True)])
    return Statistics(per_unit=rows, values=lambda s: {"accuracy": s[..., 0] / s[..., 1]})


def macro(golds: Sequence[Any], answers: Sequence[Any]) -> Statistics:
    rows = np.zeros((len(golds), 3 * len(COLOURS)))
    for row, gold, answer in zip(rows, golds, answers, strict=True):
        for i, colour in enumerate(COLOURS):
            row[i], row[3 + i], row[6 + i] = gold == answer == colour, gold == colour, answer == colour

    def values(s: Floats) -> Mapping[str, Floats]:
        total = s[..., 3:6] + s[..., 6:9]
        f1 = np.where(total > 0, 2 * s[..., 0:3] / np.maximum(total, 1), 0.0)
        return {"macro_f1": f1.mean(axis=-1), "accuracy": s[..., 0:3].sum(axis=-1) / s[..., 3:6].sum(axis=-1)}

    return Statistics(per_unit=rows, values=values)


PARSED: list[str] = []


def strict(text: str, example: Example) -> Any:
    PARSED.append(text)
    return text if text in COLOURS else NOT_PARSED


def lenient(text: str, example: Example) -> Any:
    return text.strip().lower() or "red"


def toy_task(name: str) -> Task:
    return Task(
        name=name,
        version=1,
        kind="label",
        one_label=True,
        protocols={
            "official": Protocol(parse=lenient, statistics=macro, headline="macro_f1"),
            "strict": Protocol(parse=strict, statistics=accuracy, headline="accuracy"),
            "strict_macro": Protocol(parse=strict, statistics=macro, headline="macro_f1"),
        },
        invented=lambda answer, example: answer is not NOT_PARSED and answer not in COLOURS,
        diagnose=lambda examples, texts: {"longest": max(len(t) for t in texts)},
    )


@dataclass(frozen=True, kw_only=True)
class Colours(Suite):
    name: ClassVar[str] = "colours"
    version: ClassVar[int] = 1

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {name: toy_task(name) for name in ("sky", "sea")}

    def read(self, source: str, split: str) -> Dataset:
        lines = [json.loads(line) for line in Path(source).read_text().splitlines()]
        return Dataset.from_list(
            [
                {"id": x["sample_id"], "task": x["task"], "prompt": x["input"], "target": x["target"], "choices": None}
                for x in lines
            ]
        )


def examples(task: str, n: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(id=f"{task}-{i}", task=task, prompt=f"What colour is {task} {i}?", target=str(rng.choice(COLOURS)))
        for i in range(n)
    ]


def predict(rows: Sequence[Example], texts: Sequence[str]) -> list[Prediction]:
    return [
        Prediction(
            id=e.id, prompt_hash=text_hash(e.prompt), target_hash=text_hash(e.target), text=t, tokens=1, cut=len(t) > 6
        )
        for e, t in zip(rows, texts, strict=True)
    ]


def noisy(rows: Sequence[Example], seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [e.target if rng.random() < 0.6 else str(rng.choice([*COLOURS, " Red ", "purple", ""])) for e in rows]


def test_every_protocol_scores_the_same_texts_by_its_own_rule() -> None:
    rows = examples("sky", 80)
    texts = noisy(rows)
    scores = score_predictions(Colours(), {"sky": rows}, {"sky": predict(rows, texts)}, n_train={"sky": 7}).scores.root
    assert list(scores) == ["official", "strict", "strict_macro"]
    golds = [e.target for e in rows]
    lenient_answers = [t.strip().lower() or "red" for t in texts]
    expected = f1_score(golds, lenient_answers, labels=list(COLOURS), average="macro")
    official, strict_score = scores["official"].tasks["sky"], scores["strict"].tasks["sky"]
    assert official.value == pytest.approx(expected)
    assert strict_score.value == pytest.approx(np.mean([g == t for g, t in zip(golds, texts, strict=True)]))
    assert official.n_invented == sum(t == "purple" for t in texts)
    assert strict_score.n_invented == 0
    assert strict_score.n_unparsed == sum(t not in COLOURS for t in texts)
    assert (official.n_unparsed, official.n, official.n_train) == (0, 80, 7)
    assert official.metrics.keys() == {"macro_f1", "accuracy"}
    assert official.ci95 is not None
    assert official.ci95[0] < official.value < official.ci95[1]


def test_predictions_match_by_id_whatever_their_order() -> None:
    rows = examples("sky", 60)
    made = predict(rows, noisy(rows))
    forward = score_predictions(Colours(), {"sky": rows}, {"sky": made})
    backward = score_predictions(Colours(), {"sky": rows}, {"sky": made[::-1]})
    assert forward.scores == backward.scores


def test_protocols_with_one_parser_parse_once() -> None:
    rows = examples("sky", 20)
    PARSED.clear()
    score_predictions(Colours(), {"sky": rows}, {"sky": predict(rows, noisy(rows))})
    assert len(PARSED) == 2 * 20


def test_a_missing_prediction_leaves_the_task_and_the_mean_without_a_score(caplog: pytest.LogCaptureFixture) -> None:
    data = {"sky": examples("sky", 60), "sea": examples("sea", 60)}
    made = {t: predict(rows, noisy(rows)) for t, rows in data.items()}
    made["sea"] = made["sea"][3:]
    with caplog.at_level(logging.WARNING):
        scored = score_predictions(Colours(), data, made)
    table = scored.scores.root["official"]
    assert table.tasks["sky"].value is not None
    assert (table.tasks["sea"].value, table.tasks["sea"].ci95, table.tasks["sea"].n) == (None, None, 57)
    assert (table.mean, table.mean_of) == (None, ("sky", "sea"))
    assert caplog.messages == ["sea: 3 of 60 examples have no prediction (the first is 'sea-0'), so it has no score"]


def test_the_mean_is_over_tasks_with_enough_examples() -> None:
    data = {"sky": examples("sky", 60), "sea": examples("sea", 49)}
    made = {t: predict(rows, noisy(rows)) for t, rows in data.items()}
    table = score_predictions(Colours(), data, made).scores.root["official"]
    assert table.mean_of == ("sky",)
    assert table.mean == table.tasks["sky"].value
    both = score_predictions(Colours(), data, made, min_examples=1).scores.root["official"]
    assert both.mean_of == ("sky", "sea")
    assert both.mean == pytest.approx(np.mean([both.tasks[t].value for t in data]))
    assert both.mean_ci95 is not None


def test_withheld_targets_give_no_score(caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(e, target="") for e in examples("sky", 60)]
    scored = score_predictions(Colours(), {"sky": rows}, {"sky": predict(rows, ["red"] * 60)})
    assert scored.scores.root["official"].tasks["sky"].value is None
    assert "withhold" in caplog.messages[0]


@pytest.mark.parametrize("what", ["prompt", "target"])
def test_a_prediction_for_another_text_is_refused(what: str) -> None:
    rows = examples("sky", 5)
    made = predict(rows, ["red"] * 5)
    rows[3] = replace(rows[3], **{what: "something else"})
    with pytest.raises(DataError, match=f"sky-3.*another {what}.*harness evaluate"):
        score_predictions(Colours(), {"sky": rows}, {"sky": made})


def test_unknown_and_double_predictions_are_refused_by_id() -> None:
    rows = examples("sky", 5)
    made = predict(rows, ["red"] * 5)
    with pytest.raises(DataError, match="two predictions for example 'sky-1'"):
        score_predictions(Colours(), {"sky": rows}, {"sky": [*made, made[1]]})
    with pytest.raises(DataError, match="such as 'sky-4'"):
        score_predictions(Colours(), {"sky": rows[:4]}, {"sky": made})
    with pytest.raises(UsageError, match="unknown task of colours 'skyy'"):
        score_predictions(Colours(), {"skyy": rows}, {})


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    rows = [*examples("sky", 6), *examples("sea", 5)]
    return write_lines(
        tmp_path / "gold.json",
        [{"sample_id": e.id, "task": e.task, "input": e.prompt, "target": e.target} for e in rows],
    )


def test_a_file_of_predictions_scores_like_the_run_that_made_it(tmp_path: Path, gold: Path) -> None:
    data = {"sky": examples("sky", 6), "sea": examples("sea", 5)}
    texts = {t: noisy(rows) for t, rows in data.items()}
    lines = [{"sample_id": e.id, "target": x} for t, rows in data.items() for e, x in zip(rows, texts[t], strict=True)][
        ::-1
    ]
    scored = score_file(Colours(), write_lines(tmp_path / "p.json", lines), gold, min_examples=1)
    made = {t: predict(rows, texts[t]) for t, rows in data.items()}
    run = score_predictions(Colours(), data, made, min_examples=1)
    for protocol, table in run.scores.root.items():
        other = scored.scores.root[protocol]
        assert other.mean == table.mean
        for task, score in table.tasks.items():
            assert other.tasks[task] == score.model_copy(update={"n_cut": None})


def test_a_file_without_some_predictions_says_which(
    tmp_path: Path, gold: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_lines(tmp_path / "p.json", [{"id": f"sky-{i}", "target": "red"} for i in range(6)])
    scored = score_file(Colours(), path, gold, min_examples=1)
    assert scored.scores.root["official"].tasks["sky"].value is not None
    assert scored.scores.root["official"].tasks["sea"].value is None
    assert scored.scores.root["official"].mean is None
    assert "sea: 5 of 5 examples" in caplog.messages[0]
    assert "'sea-0'" in caplog.messages[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"sample_id": "sky-0", "target": "a"}, {"sample_id": "sky-0", "target": "b"}], "line 2: a second.*'sky-0'"),
        ([{"sample_id": "skx-0", "target": "a"}], "line 1: .* has no example 'skx-0'.*Did you mean 'sky-0'"),
        ([{"target": "a"}], "line 1: no sample_id"),
        ([{"sample_id": "sky-0", "target": None}], "'sky-0': 'target' must be"),
        ([["sky-0", "red"]], "line 1: this is a JSON array"),
        (["red"], "line 1: expected a JSON object, not text: 'red'"),
        ([{"sample_id": "sky-0", "reply": "a"}], "line 1: no prediction.*the line has 'sample_id', 'reply'"),
        ([{"sample_id": "sky-0", "target": "a", "predict": "b"}], "line 1: 'target' and 'predict' can both be"),
        ([], "the file is empty"),
    ],
)
def test_a_bad_line_of_predictions_is_named(tmp_path: Path, gold: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_file(Colours(), write_lines(tmp_path / "p.json", lines), gold)


def test_broken_json_and_missing_files_are_named(tmp_path: Path, gold: Path) -> None:
    (tmp_path / "p.json").write_text('{"sample_id": "sky-0", "target": "red"}\n{"sample_id": \n')
    with pytest.raises(DataError, match=r"p\.json, line 2, character 16: broken JSON"):
        score_file(Colours(), tmp_path / "p.json", gold)
    (tmp_path / "p.json").write_text('{\n  "sample_id": "sky-0",\n  "target": "red"\n}\n')
    with pytest.raises(DataError, match=r"p\.json, line 1.*several lines.*jq -c \. p\.json"):
        score_file(Colours(), tmp_path / "p.json", gold)
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        score_file(Colours(), tmp_path / "nothing.json", gold)


@pytest.mark.parametrize(("encoding", "name"), [("gbk", "GB18030"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE")])
def test_predictions_in_another_encoding_are_named_with_line_and_remedy(
    tmp_path: Path, gold: Path, encoding: str, name: str
) -> None:
    (tmp_path / "p.json").write_bytes('{"sample_id": "sky-0", "target": "红"}\n'.encode(encoding))
    with pytest.raises(DataError, match=rf"p\.json, line 1: byte .*iconv -f {name} -t UTF-8"):
        score_file(Colours(), tmp_path / "p.json", gold)


def test_gold_examples_without_a_target_are_neither_scored_nor_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = examples("sky", 6)
    golds = [
        {"sample_id": e.id, "task": e.task, "input": e.prompt, "target": " " if i % 3 == 0 else e.target}
        for i, e in enumerate(rows)
    ]
    lines = [{"sample_id": e.id, "target": e.target} for e in rows]
    gold, path = write_lines(tmp_path / "g.json", golds), write_lines(tmp_path / "p.json", lines)
    score = score_file(Colours(), path, gold, min_examples=1).scores.root["strict"].tasks["sky"]
    assert (score.value, score.n) == (1.0, 4)
    (note,) = [line for line in caplog.messages if "without a target" in line]
    assert note.startswith("test: 2 examples without a target left out (sky 2); the first is ")
    assert rows[0].id in note
    assert f"all 4 predictions equal their targets: is {path} a copy of the gold file?" in caplog.messages


def test_earlier_predictions_for_examples_without_a_target_are_ignored(tmp_path: Path) -> None:
    rows = [replace(e, target="" if i == 2 else e.target) for i, e in enumerate(examples("sky", 6))]
    lines = [{"sample_id": e.id, "task": e.task, "input": e.prompt, "target": e.target} for e in rows]
    gold = write_lines(tmp_path / "gold.json", lines)
    evaluated = load_split(Colours(), str(gold), "test", ["sky"])
    spec = SimpleNamespace(data=SimpleNamespace(sample=True))
    run = SimpleNamespace(predictions=lambda tasks: {"sky": predict(rows, ["red"] * 6)})
    data = RunData(spec=cast(Any, spec), suite=Colours(), evaluated=evaluated)
    assert scores_of(cast(Any, run), data, None).scores.root["official"].tasks["sky"].n == 5


@pytest.mark.parametrize("columns", [("predict", "label"), ("response", "labels"), ("text", None)])
def test_predictions_without_ids_are_matched_by_order_where_the_user_says_so(
    tmp_path: Path, gold: Path, columns: tuple[str, str | None]
) -> None:
    rows = [*examples("sky", 6), *examples("sea", 5)]
    texts = noisy(rows)
    prediction, own_gold = columns
    lines = [
        {"prompt": e.prompt, prediction: x} | ({own_gold: e.target} if own_gold else {})
        for e, x in zip(rows, texts, strict=True)
    ]
    path = write_lines(tmp_path / "p.json", lines)
    ids = write_lines(
        tmp_path / "ids.json", [{"id": e.id, "target": x} for e, x in zip(rows, texts, strict=True)][::-1]
    )
    with pytest.raises(DataError, match=r"line 1: no sample_id.*--by-order"):
        score_file(Colours(), path, gold)
    assert score_file(Colours(), path, gold, in_order=True).scores == score_file(Colours(), ids, gold).scores
    of_sky = write_lines(tmp_path / "sky.json", lines[:6])
    scores = score_file(Colours(), of_sky, gold, tasks=["sky"], in_order=True, min_examples=1).scores.root
    assert list(scores["official"].tasks) == ["sky"]


def test_an_order_that_does_not_fit_is_refused(tmp_path: Path, gold: Path) -> None:
    rows = [*examples("sky", 6), *examples("sea", 5)]
    few = write_lines(tmp_path / "few.json", [{"predict": "red"}] * 10)
    with pytest.raises(DataError, match=r"few.json: 10 predictions, but .* has 11 examples \(sky 6, sea 5\)"):
        score_file(Colours(), few, gold, in_order=True)
    of_sea = write_lines(tmp_path / "sea.json", [{"task": "sea", "predict": "red"}] * 4)
    with pytest.raises(DataError, match=r"sea.json: 4 predictions of sea, but .* has 5 examples of it"):
        score_file(Colours(), of_sea, gold, in_order=True)
    other = {"red": "green", "green": "blue", "blue": "red"}
    moved = write_lines(tmp_path / "moved.json", [{"predict": "red", "label": other[e.target]} for e in rows])
    with pytest.raises(DataError, match=r"moved.json, line 1: the line's own gold is .*11 of 11.*not in the order"):
        score_file(Colours(), moved, gold, in_order=True)


def test_a_gold_file_without_targets_is_refused(tmp_path: Path) -> None:
    gold = write_lines(tmp_path / "g.json", [{"sample_id": "a", "task": "sky", "input": "x", "target": ""}])
    with pytest.raises(DataError, match="withheld"):
        score_file(Colours(), write_lines(tmp_path / "p.json", [{"sample_id": "a", "target": "red"}]), gold)


def test_what_is_written_reads_back_and_is_json(tmp_path: Path) -> None:
    rows = examples("sky", 60)
    scored = score_predictions(Colours(), {"sky": rows}, {"sky": predict(rows, noisy(rows))})
    directory = RunDirectory(tmp_path / "run")
    write_scored(directory, scored)
    assert directory.scores() == scored.scores
    assert json.loads((directory.path / "diagnostics.json").read_text()) == {"sky": {"longest": 6}}
    draws = read_draws(directory)
    assert draws is not None
    for protocol, found in scored.draws["sky"].headlines.items():
        assert draws["sky"].headlines[protocol].value == found.value
        np.testing.assert_allclose(draws["sky"].headlines[protocol].draws, found.draws, atol=1e-5)
        np.testing.assert_allclose(draws["sky"].headlines[protocol].deviations, found.deviations, rtol=1e-6)
        np.testing.assert_array_equal(draws["sky"].correct[protocol], scored.draws["sky"].correct[protocol])
    assert draws["sky"].fingerprint == scored.draws["sky"].fingerprint
    out = json.loads(json.dumps(to_json(directory.path, None, scored.scores)))
    assert out.keys() == {"directory", "record", "scores"}
    assert out["scores"]["official"]["tasks"]["sky"]["n"] == 60


def test_damaged_draws_name_the_command_that_writes_them_again(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert read_draws(directory) is None
    file = tmp_path / "bootstrap.npz"
    np.savez_compressed(file, index=np.arange(999, dtype=np.uint8))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[80] ^= 255
    np.savez(file, index=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pickled = file.read_bytes()
    with ZipFile(file, "w") as archive:
        archive.writestr("index.npy", "not an array")
    for content in (b"PK\x03\x04 cut off", whole, whole[:-30], bytes(flipped), pickled, file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(StoreError, match="harness score"):
            read_draws(directory)


def test_the_table_names_the_protocol_and_prints_missing_as_a_dash() -> None:
    data = {"sky": examples("sky", 60), "sea": examples("sea", 60)}
    made = {"sky": predict(data["sky"], noisy(data["sky"])), "sea": []}
    scores = score_predictions(Colours(), data, made).scores
    text = render_scores(scores, "strict")
    value = scores.root["strict"].tasks["sky"].value
    assert value is not None
    assert "protocol strict" in text
    assert f"{100 * value:.1f}" in text
    assert f"mean of 2 tasks: {MISSING}" in text
    assert "unparsed  " in text
    assert "truncated" in text
    sea = next(line for line in text.splitlines() if line.startswith("sea"))
    assert sea.split()[2] == MISSING
    assert sea.split()[-3:] == [MISSING, "0", MISSING]
    with pytest.raises(UsageError, match="unknown protocol 'stict'"):
        render_scores(scores, "stict")
