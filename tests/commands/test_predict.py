"""``harness predict``: a finished run applied to examples of any file, on toys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness.pipeline.predict_file as module

Command = Callable[..., Any]


def only(folder: Path) -> Path:
    """The one thing in a folder."""
    (found,) = folder.iterdir()
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, examples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in examples), encoding="utf-8")
    return path


def made(run: Path) -> dict[str, str]:
    """Every prediction of a run by id."""
    return {p["id"]: p["text"] for path in run.glob("predictions/*.jsonl") for p in lines(path)}


@pytest.fixture
def trained(toy_run: Command, made_once: Command, tmp_path: Path) -> Path:
    """A finished run whose tasks have weights of their own and answer differently."""

    def make() -> None:
        done = toy_run("--method", "lora_single", "--set", "train.lr=0.05")
        assert done.status == 0, done.err

    return only(made_once("strong lora_single", tmp_path / "runs", make))


@pytest.fixture
def test_file(plugin: Path) -> Path:
    return plugin / "toy_plugin" / "data" / "test.jsonl"


def test_predictions_equal_those_of_the_runs_own_evaluation_and_keep_the_order_of_the_file(
    trained: Path, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    own = made(trained)
    examples = [e for e in lines(test_file) if e["id"] in own][::-1]
    file, out = write(tmp_path / "some.jsonl", examples), tmp_path / "out.jsonl"
    done = harness("predict", trained, file, "--out", out)
    assert done.status == 0, done.err
    assert f"predictions: {out} (12 examples)" in done.out
    found = lines(out)
    assert [line["id"] for line in found] == [e["id"] for e in examples]
    assert {line["id"]: line["prediction"] for line in found} == own
    assert [line["task"] for line in found] == [e["task"] for e in examples]
    assert all(set(line) == {"id", "task", "prediction", "truncated"} for line in found)
    assert len(set(own.values())) > 1


def test_an_output_below_a_file_is_one_line_with_the_remedy(
    trained: Path, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = harness("predict", trained, test_file, "--out", tmp_path / "file" / "out.jsonl")
    assert done.status == 1
    remedy = "Choose another --out, in a folder that exists or can be created."
    assert done.err.strip().splitlines()[-1].endswith(remedy)


def test_a_file_of_prompts_needs_the_task_once_for_all_or_in_each_line(
    trained: Path, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    own = made(trained)
    example = next(e for e in lines(test_file) if e["id"] in own and e["task"] == "last")
    named = write(tmp_path / "named.jsonl", [{"prompt": example["prompt"], "task": "last", "id": 7}])
    (tmp_path / "plain.txt").write_text(f"{example['prompt']}\n\n{example['prompt']}\r\n")
    assert harness("predict", trained, named, "--out", tmp_path / "a.jsonl", "--prompts").status == 0
    (line,) = lines(tmp_path / "a.jsonl")
    assert line == {
        "id": "7", "task": "last", "prompt": example["prompt"], "prediction": own[example["id"]],
        "truncated": line["truncated"],
    }  # fmt: skip
    command = ("predict", trained, tmp_path / "plain.txt", "--out", tmp_path / "b.jsonl")
    unnamed = harness(*command)
    assert unnamed.status == 1
    assert "plain.txt, line 1: the example names no task" in unnamed.err
    assert "--task or in the file, one of colour, first, last" in unnamed.err
    assert not list(tmp_path.glob("b.jsonl*"))
    assert harness(*command, "--task", "last").status == 0
    assert [(x["id"], x["task"], x["prediction"]) for x in lines(tmp_path / "b.jsonl")] == [
        ("1", "last", own[example["id"]]),
        ("3", "last", own[example["id"]]),
    ]


def test_wrong_files_and_options_are_one_line_with_the_remedy(trained: Path, harness: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a_folder").mkdir()
    good = {"prompt": "colour: the red car =", "task": "colour"}
    for file, options, status, message in (
        ("empty.jsonl", (), 1, "empty.jsonl: the file is empty"),
        ("absent.jsonl", (), 1, "absent.jsonl: no such file"),
        ([{"question": "colour?"}], (), 1, "line 1: no column 'prompt'. The line has 'question'."),
        ([good, {"prompt": "x", "task": "color"}], (), 1, "line 2: the run has no task 'color'. Did you mean 'colour'"),
        ([good, {"prompt": " ", "task": "colour"}], (), 1, "line 2: the prompt is blank"),
        ([good, {"prompt": 3}], (), 1, "line 2: 'prompt' must be text, not a whole number: 3"),
        ([good], ("--task", "lastt"), 2, "unknown task 'lastt'. Did you mean 'last'"),
        ([good], ("--set", "eval.split=dev"), 2, "eval.split chooses examples of a split"),
        ([good], ("--set", "method.rank=4"), 2, "method.rank changes training"),
        ([good], ("--set", "train.lr=1"), 2, "harness predict takes eval.* and method.* keys"),
        ([good], ("--out", tmp_path / "a_folder"), 2, "this is a folder"),
        ([good], ("--out", tmp_path / "given.jsonl"), 2, "the file exists, and it is not the output of this command"),
    ):
        path = tmp_path / file if isinstance(file, str) else write(tmp_path / "given.jsonl", file)
        wrong = harness("predict", trained, path, "--out", tmp_path / "out.jsonl", *options)
        assert (wrong.status, message in wrong.err) == (status, True), wrong.err
        assert len(wrong.err.splitlines()) == 1
        assert not (tmp_path / "out.jsonl").exists()
    assert not list(tmp_path.glob("out.jsonl*")), "a command that fails at once leaves nothing"


@pytest.mark.long
def test_the_output_of_another_run_or_input_is_kept(
    trained: Path, toy_run: Command, harness: Command, tmp_path: Path
) -> None:
    file, out = write(tmp_path / "in.jsonl", [{"prompt": "first: a car =", "task": "first"}]), tmp_path / "out.jsonl"
    command = ("predict", trained, file, "--out", out)
    assert harness(*command).status == 0
    before = out.read_bytes()
    again = harness(*command)
    assert (again.status, "already complete" in again.err) == (0, True)
    other = toy_run("--method", "majority", "--json").json["directory"]
    for changed, what in (
        (("predict", other, file, "--out", out), "another run"),
        ((*command, "--prompts"), "another --prompts"),
        ((*command, "--set", "eval.max_new_tokens=2"), "another setting of eval.*"),
    ):
        refused = harness(*changed)
        assert (refused.status, what in refused.err, "start over" in refused.err) == (2, True, True), refused.err
    write(file, [{"prompt": "first: a doll =", "task": "first"}])
    refused = harness(*command)
    assert (refused.status, "another input file (or its content has changed)" in refused.err) == (2, True)
    assert out.read_bytes() == before
    out.unlink()
    assert harness(*command).status == 0, "without the output there is nothing to keep"


def test_keys_of_generation_apply(trained: Path, harness: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [{"prompt": "first: the red car 7 and a ball =", "task": "first"}])
    for limit in (1, 3):
        out = tmp_path / f"{limit}.jsonl"
        key = f"eval.max_new_tokens={limit}"
        done = harness("predict", trained, file, "--out", out, "--set", key, "--json")
        assert done.json == {"out": str(out), "n": 1, "left_out": {}, "chosen": {}, "fresh": True}
        (line,) = lines(out)
        assert len(line["prediction"]) <= limit
        assert line["truncated"] is True


def test_prompts_that_are_too_long_are_counted(trained: Path, harness: Command, tmp_path: Path) -> None:
    long, short = "first: the " + "red " * 60 + "car =", "first: a car ="
    file = write(tmp_path / "in.jsonl", [{"prompt": p, "task": "first"} for p in (long, short, long)])
    done = harness("predict", trained, file, "--out", tmp_path / "out.jsonl")
    assert (done.status, "truncated prompts: 2" in done.err) == (0, True), done.err
    done = harness("predict", trained, write(file, [{"prompt": short, "task": "first"}]), "--out", tmp_path / "b.jsonl")
    assert (done.status, "truncated prompts" in done.err) == (0, False)


@pytest.mark.long
def test_repeated_ids_and_examples_of_many_tasks_keep_their_places(
    trained: Path, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    tasks = ("last", "colour", "first", "last")
    examples = [
        {"id": "same", "prompt": f"{task}: the blue drum {i} and a kite =", "task": task}
        for i in range(3)
        for task in tasks
    ]
    out = tmp_path / "out.jsonl"
    assert harness("predict", trained, write(tmp_path / "in.jsonl", examples), "--out", out).status == 0
    found = lines(out)
    assert [(x["id"], x["task"]) for x in found] == [("same", e["task"]) for e in examples]
    for i, example in enumerate(examples[:4]):
        one = tmp_path / f"one{i}.jsonl"
        assert harness("predict", trained, write(tmp_path / f"in{i}.jsonl", [example]), "--out", one).status == 0
        assert lines(one)[0]["prediction"] == found[i]["prediction"]


def many(path: Path, n: int) -> Path:
    tasks = ("colour", "first", "last")
    return write(
        path, [{"prompt": f"{tasks[i % 3]}: the red car {i} and a kite =", "task": tasks[i % 3]} for i in range(n)]
    )


@pytest.mark.long
def test_an_interrupted_command_resumes_where_it_stopped_and_ends_with_the_same_bytes(
    trained: Path, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.generation.predictions import PredictionWriter

    monkeypatch.setattr(module, "CHUNK", 6)
    file = many(tmp_path / "in.jsonl", 20)
    assert harness("predict", trained, file, "--out", tmp_path / "alone.jsonl").status == 0
    out, write_predictions, n_writes = tmp_path / "out.jsonl", PredictionWriter.write, []

    def interrupted(self: Any, task: str, completions: Any) -> None:
        write_predictions(self, task, completions)
        n_writes.append(task)
        if len(n_writes) == 5:  # in the second chunk
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "write", interrupted)
        stopped = harness("predict", trained, file, "--out", out)
    assert (stopped.status, "Run the same command again" in stopped.err) == (130, True)
    assert len(lines(out)) == 6
    kept = sorted(p for p in out.with_name("out.jsonl.state").rglob("predictions/*.jsonl"))
    assert kept, "what was generated of the second chunk is on disk"
    with out.open("a") as torn:
        torn.write('{"id": "7", "ta')
    made_again: list[str] = []

    def counted(self: Any, task: str, completions: Any) -> None:
        new = list(completions)
        made_again.extend(c.id for c in new)
        write_predictions(self, task, new)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "write", counted)
        resumed = harness("predict", trained, file, "--out", out)
    assert (resumed.status, "6 of 20 predictions are in" in resumed.err) == (0, True), resumed.err
    assert 0 < len(made_again) < 14
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not list(out.with_name("out.jsonl.state").rglob("predictions"))


@pytest.mark.long
def test_an_edited_output_is_not_continued(
    trained: Path, harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    file, out = many(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    assert harness("predict", trained, file, "--out", out).status == 0
    content = out.read_text().splitlines(keepends=True)
    out.write_text("".join([content[1], content[0], *content[2:4]]))
    refused = harness("predict", trained, file, "--out", out)
    assert refused.status == 1
    assert "out.jsonl, line 1: the id is '2', but the input has '1' there" in refused.err
    out.write_text("".join(content[:3]))
    assert harness("predict", trained, file, "--out", out).status == 0
    assert out.read_text() == "".join(content)


@pytest.mark.slow
def test_a_killed_command_resumes(
    trained: Path, harness: Command, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    file, out = many(tmp_path / "in.jsonl", 1500), tmp_path / "out.jsonl"
    few = ("--set", "eval.max_new_tokens=2")
    process = start("predict", trained, file, "--out", out, *few)
    until = time.monotonic() + 120
    while not out.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert out.exists(), "no chunk was written"
    assert process.returncode == -signal.SIGKILL, "it had ended before"
    first = out.read_bytes()
    assert harness("predict", trained, file, "--out", out, *few).status == 0
    assert out.read_bytes().startswith(first[: first.rindex(b"\n")])
    assert [line["id"] for line in lines(out)] == [str(i) for i in range(1, 1501)]


@pytest.mark.long
def test_routers_choose_the_task_of_prompts_that_name_none(
    toy_run: Command, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    long = ("--set", "train.lr=0.02", "--set", "train.steps=20", "--set", "method.eta=1")
    assert toy_run("--method", "moa", *long).status == 0
    run = only(tmp_path / "runs")
    own = made(run)
    examples = [e for e in lines(test_file) if e["id"] in own]
    file = write(tmp_path / "in.jsonl", [{"id": e["id"], "prompt": e["prompt"]} for e in examples])
    done = harness("predict", run, file, "--out", tmp_path / "out.jsonl", "--json")
    assert done.status == 0, done.err
    found = lines(tmp_path / "out.jsonl")
    chosen = json.loads((run / "artefacts" / "router_accuracy.json").read_text())["tasks"]
    for task, row in chosen.items():
        names = [x["task"] for x, e in zip(found, examples, strict=True) if e["task"] == task]
        assert {name: names.count(name) for name in set(names)} == row["chosen"]
    assert done.json["chosen"] == {t: sum(x["task"] == t for x in found) for t in done.json["chosen"]}
    assert sum(done.json["chosen"].values()) == 12
    assert {x["id"]: x["prediction"] for x in found} == own
    label = ("--set", "method.routing=label")
    refused = harness("predict", run, file, "--out", tmp_path / "label.jsonl", *label)
    assert (refused.status, "one of colour, first, last" in refused.err) == (1, True)


def test_a_run_whose_tasks_share_all_weights_needs_no_task(
    toy_run: Command, harness: Command, test_file: Path, tmp_path: Path
) -> None:
    assert toy_run("--method", "lora_all").status == 0
    run = only(tmp_path / "runs")
    own = made(run)
    examples = [e for e in lines(test_file) if e["id"] in own]
    file = write(tmp_path / "in.jsonl", [{"id": e["id"], "prompt": e["prompt"]} for e in examples])
    assert harness("predict", run, file, "--out", tmp_path / "out.jsonl").status == 0
    found = lines(tmp_path / "out.jsonl")
    assert {x["id"]: x["prediction"] for x in found} == own
    assert {x["task"] for x in found} == {None}


@pytest.mark.parametrize("method", ["nearest", "majority"])
def test_baselines_predict_from_the_training_examples_of_the_task(
    toy_run: Command, harness: Command, test_file: Path, tmp_path: Path, method: str
) -> None:
    assert toy_run("--method", method).status == 0
    run = only(tmp_path / "runs")
    own = made(run)
    out = tmp_path / "out.jsonl"
    done = harness("predict", run, test_file, "--out", out)
    assert done.status == 0, done.err
    assert {x["id"]: x["prediction"] for x in lines(out) if x["id"] in own} == own
    (tmp_path / "plain.txt").write_text("the red car\n")
    unnamed = harness("predict", run, tmp_path / "plain.txt", "--out", tmp_path / "b.jsonl")
    assert (unnamed.status, "predicts from the training examples of a task" in unnamed.err) == (1, True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--clusters", "kind", "--set", "train.lr=0.05"), "one adapter for each cluster"),
        (("--shots", "1"), "in-context examples of the task"),
    ],
    ids=["clusters", "shots"],
)
def test_a_run_whose_prompts_or_weights_depend_on_the_task_predicts_as_it_was_evaluated(
    toy_run: Command,
    harness: Command,
    test_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    assert toy_run("--method", "lora_all", *options).status == 0
    run = only(tmp_path / "runs")
    own = made(run)
    file = write(tmp_path / "in.jsonl", [e for e in lines(test_file) if e["id"] in own])
    assert harness("predict", run, file, "--out", tmp_path / "out.jsonl").status == 0
    assert {x["id"]: x["prediction"] for x in lines(tmp_path / "out.jsonl")} == own
    (tmp_path / "plain.txt").write_text("the red car\n")
    unnamed = harness("predict", run, tmp_path / "plain.txt", "--out", tmp_path / "b.jsonl")
    assert (unnamed.status, reason in unnamed.err) == (1, True)


def test_a_run_that_is_moved_away_from_its_data_names_the_remedy(
    toy_run: Command, harness: Command, plugin: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(plugin / "toy_plugin" / "data", data)
    assert toy_run("--method", "majority", "--data", data).status == 0
    run, file = only(tmp_path / "runs"), tmp_path / "plain.txt"
    file.write_text("the red car\n")
    data.rename(tmp_path / "moved")
    command = ("predict", run, file, "--task", "colour", "--out", tmp_path / "out.jsonl")
    gone = harness(*command)
    assert (gone.status, "give their new location with --data" in gone.err) == (1, True)
    assert harness(*command, "--data", tmp_path / "moved").status == 0


SAMPLE = Path(__file__).parents[2] / "tasks" / "sample"


def test_a_file_of_the_suite_is_predicted_with_answers_or_without_and_can_be_scored(
    harness: Command, tmp_path: Path
) -> None:
    tasks = "CHIP-STS,KUAKE-QIC"
    command = ("run", "--suite", "promptcblue", "--method", "nearest", "--tasks", tasks, "--out", tmp_path / "runs")
    scores = harness(*command, "--json").json["scores"]
    run, test = only(tmp_path / "runs"), SAMPLE / "promptcblue" / "test.json"
    examples = lines(test)
    without = [{k: v for k, v in e.items() if k not in ("target", "answer_choices", "task_type")} for e in examples]
    array = tmp_path / "array.json"
    array.write_text(json.dumps(without, ensure_ascii=False, indent=2), encoding="utf-8")
    for file, out in ((test, tmp_path / "a.jsonl"), (array, tmp_path / "b.jsonl")):
        done = harness("predict", run, file, "--out", out)
        assert done.status == 0, done.err
        assert "examples of tasks that the run does not have" in done.err
        assert "CMeEE-V2 24" in done.err
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    found = lines(tmp_path / "a.jsonl")
    assert [x["id"] for x in found] == [e["sample_id"] for e in examples if e["task_dataset"] in tasks]
    assert {x["id"]: x["prediction"] for x in found} == made(run)
    assert any(not x["prediction"].isascii() for x in found)
    again = harness("score", tmp_path / "a.jsonl", "--suite", "promptcblue", "--gold", test, "--tasks", tasks, "--json")
    for task, score in scores["official"]["tasks"].items():
        assert again.json["scores"]["official"]["tasks"][task]["metrics"] == score["metrics"]
    other = write(tmp_path / "other.json", [e for e in examples if e["task_dataset"] == "MedDG"])
    nothing = harness("predict", run, other, "--out", tmp_path / "c.jsonl")
    assert (nothing.status, "no example of the run's tasks, which are CHIP-STS, KUAKE-QIC" in nothing.err) == (1, True)
    wrong = write(tmp_path / "wrong.json", [{"inptu": "什么？"}])
    column = harness("predict", run, wrong, "--out", tmp_path / "c.jsonl")
    assert column.status == 1
    assert "line 1: no column 'input'. Did you mean 'inptu'? The line has 'inptu'. Bare prompts" in column.err


def test_firefly_and_suites_from_files_read_their_own_form(harness: Command, tmp_path: Path) -> None:
    command = ("run", "--method", "nearest", "--out", tmp_path / "runs")
    assert harness(*command, "--suite", "firefly").status == 0
    run, out = only(tmp_path / "runs"), tmp_path / "firefly.jsonl"
    assert harness("predict", run, SAMPLE / "firefly" / "test.jsonl", "--out", out).status == 0
    own = made(run)
    assert {x["id"]: x["prediction"] for x in lines(out) if x["id"] in own} == own
    shutil.rmtree(tmp_path / "runs")
    assert harness("new", "suite", tmp_path / "shop").status == 0
    assert harness(*command, "--suite", tmp_path / "shop").status == 0
    run = only(tmp_path / "runs")
    own = made(run)
    for name in ("reviews_test.jsonl", "orders.csv"):
        done = harness("predict", run, tmp_path / "shop" / name, "--out", tmp_path / f"{name}.out")
        assert done.status == 0, done.err
        found = {x["id"]: x["prediction"] for x in lines(tmp_path / f"{name}.out")}
        assert {i: text for i, text in found.items() if i in own} == {i: t for i, t in own.items() if i in found}
        assert own.keys() & found.keys()
    new = tmp_path / "new.csv"
    new.write_text("order\nTwo teas please.\n")
    unknown = harness("predict", run, new, "--out", tmp_path / "new.jsonl")
    assert (unknown.status, "Name the task with --task, one of sentiment, orders" in unknown.err) == (1, True), (
        unknown.err
    )
    assert harness("predict", run, new, "--task", "orders", "--out", tmp_path / "new.jsonl").status == 0
    assert lines(tmp_path / "new.jsonl")[0]["id"] == "orders-2"  # the line of the file
