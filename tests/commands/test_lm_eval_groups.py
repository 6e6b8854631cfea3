"""lm-eval's groups as suites, through the installed command: local task files over local JSON lines."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval_folder import TaskFolder, toy_group

Harness = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, hf_cache: Path) -> TaskFolder:
    return toy_group(tmp_path / "tasks")


@pytest.fixture
def group_run(harness: Harness, folder: TaskFolder, toy_model: Path, tmp_path: Path) -> Harness:
    """``group_run("--method", …)``: a quick run on the toy group; returns its JSON."""

    def call(*arguments: Any) -> Any:
        suite = ["--suite", "lm-eval:toygroup", "--set", f"suite.include_path={folder.path}"]
        quick = ["train.steps=6", "train.lr=0.01", "eval.max_new_tokens=8", "train.max_length=96"]
        keys = [word for key in quick for word in ("--set", key)]
        place = ["--out", tmp_path / "runs", "--json"]
        done = harness("run", *suite, "--model", toy_model, *keys, *place, *arguments)
        assert done.status == 0, done.err
        return done.json | {"err": done.err}

    return call


def _lines(run: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions" / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora_all", "no_finetune"])
def test_a_group_is_trained_on_and_scored_as_lm_eval_scores_the_run(
    harness: Harness, group_run: Harness, folder: TaskFolder, method: str
) -> None:
    run = group_run("--method", method, "--set", "train.steps=60")
    tasks = run["scores"]["official"]["tasks"]
    assert set(tasks) == {"toy_choices", "toy_text"}
    arguments = ["--tasks", "toy_choices,toy_text", "--include-path", folder.path, "--json"]
    theirs = harness("lm-eval", run["directory"], *arguments)
    assert theirs.status == 0, theirs.err
    adapted = theirs.json["adapted"]
    metrics = tasks["toy_choices"]["metrics"]
    assert metrics["acc"] == pytest.approx(adapted["toy_choices"]["acc,none"])
    assert metrics["acc_norm"] == pytest.approx(adapted["toy_choices"]["acc_norm,none"])
    assert tasks["toy_text"]["metrics"]["exact_match"] == pytest.approx(adapted["toy_text"]["exact_match,strip"])


def test_what_is_left_out_is_named_with_the_reason(harness: Harness, folder: TaskFolder, tmp_path: Path) -> None:
    suite = ["--suite", "lm-eval:toygroup", "--set", f"suite.include_path={folder.path}", "--out", tmp_path / "runs"]
    done = harness("run", *suite, "--method", "majority")
    assert done.status == 0, done.err
    assert "note: toy_untrained is left out: it has no training split" in done.err
    assert "note: toy_bad is left out: lm-eval cannot open it" in done.err


@pytest.mark.long
def test_a_choice_is_stored_with_its_likelihoods_and_scored_again_without_the_model(
    harness: Harness, group_run: Harness, tmp_path: Path
) -> None:
    run = group_run("--method", "lora_all")
    directory = Path(run["directory"])
    stored = _lines(directory, "toy_choices")
    answers = [json.loads(line["text"]) for line in stored]
    assert len(answers) == 12
    assert all(len(answer["log_likelihoods"]) == 3 for answer in answers)
    best = [max(zip(a["log_likelihoods"], (" red", " blue", " green"), strict=True))[1] for a in answers]
    assert [answer["choice"] for answer in answers] == best
    right = sum(choice.strip() == ("red", "blue", "green")[int(line["id"].rpartition("-")[2]) % 3]
                for choice, line in zip(best, stored, strict=True))  # fmt: skip
    assert run["scores"]["official"]["tasks"]["toy_choices"]["metrics"]["acc"] == pytest.approx(right / 12)
    assert run["record"]["generation"]["choices"] == 36
    again = harness("score", directory, "--json")
    assert again.status == 0, again.err
    assert again.json["scores"] == run["scores"]
    checked = harness("verify", directory)
    assert checked.status == 0, checked.err
    assert "scores: same" in checked.out


@pytest.mark.long
def test_a_run_resumes_with_the_choices_that_are_missing(group_run: Harness) -> None:
    run = group_run("--method", "lora_all")
    directory = Path(run["directory"])
    file = directory / "predictions" / "toy_choices.jsonl"
    kept = file.read_text().splitlines()[:5]
    file.write_text("".join(f"{line}\n" for line in kept))
    (directory / "record.json").unlink()
    again = group_run("--method", "lora_all")
    assert again["scores"] == run["scores"]
    assert file.read_text().splitlines()[:5] == kept
    assert len(_lines(directory, "toy_choices")) == 12


@pytest.mark.long
@pytest.mark.parametrize("method", ["cgc_lora", "moe_lora", "moa", "majority", "nearest", "empty"])
def test_folded_and_routed_adapters_and_baselines_choose(group_run: Harness, method: str) -> None:
    budget = ["--budget", "active:8"] if method.endswith("lora") else []
    tasks = group_run("--method", method, *budget)["scores"]["official"]["tasks"]
    value, unparsed = tasks["toy_choices"]["value"], tasks["toy_choices"]["n_unparsed"]
    if method == "empty":
        assert (value, unparsed) == (0.0, 12)
    elif method == "majority":  # red is a third of the test lines
        assert (value, unparsed) == (pytest.approx(1 / 3), 0)
    else:
        assert 0.0 <= value <= 1.0
        assert unparsed == 0


@pytest.mark.long
def test_clusters_by_kind_are_the_groups(group_run: Harness, folder: TaskFolder) -> None:
    folder.group("one", ["toy_choices"])
    folder.group("two", ["toy_text"])
    folder.group("toygroup", ["one", "two"])
    run = group_run("--method", "lora_all", "--clusters", "kind")
    assert set(run["record"]["spec"]["clusters"]["groups"]) == {"one", "two"}
    assert run["record"]["generation"]["choices"] == 36


@pytest.mark.long
def test_the_score_on_dev_during_training_is_that_of_an_evaluation(harness: Harness, group_run: Harness) -> None:
    run = group_run("--method", "lora_all", "--tasks", "toy_choices", "--set", "train.eval_every=6")["directory"]
    events = [json.loads(line) for line in (Path(run) / "train.jsonl").read_text().splitlines()]
    (dev,) = [event["dev"] for event in events if "dev" in event]
    done = harness("evaluate", run, "--split", "dev", "--json")
    assert done.status == 0, done.err
    assert dev == pytest.approx(done.json["scores"]["official"]["tasks"]["toy_choices"]["value"])


@pytest.mark.long
def test_a_moved_folder_is_found_with_data_and_a_changed_document_is_an_error(
    harness: Harness, group_run: Harness, folder: TaskFolder
) -> None:
    run = group_run("--method", "nearest")["directory"]
    moved = folder.path.parent / "moved"
    folder.path.rename(moved)
    gone = harness("score", run)
    assert gone.status == 1
    assert "--data" in gone.err
    assert harness("score", run, "--data", moved).status == 0
    assert harness("evaluate", run, "--split", "dev", "--data", moved).status == 0
    with (moved / "test.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "new", "choices": ["red", "blue"], "gold": 0, "colour": "red"}) + "\n")
    other = harness("score", run, "--data", moved)
    assert other.status == 1
    assert "is not the data that" in other.err


@pytest.mark.long
def test_equal_folders_at_two_places_are_the_same_run(
    harness: Harness, group_run: Harness, folder: TaskFolder, tmp_path: Path
) -> None:
    first = group_run("--method", "majority")["record"]
    copy = toy_group(tmp_path / "elsewhere" / "copy")
    suite = ["--suite", "lm-eval:toygroup", "--set", f"suite.include_path={copy.path}", "--out", tmp_path / "others"]
    keys = ["--set", "eval.max_new_tokens=8", "--set", "train.max_length=96"]
    second = harness("run", *suite, *keys, "--method", "majority", "--json")
    assert second.status == 0, second.err
    assert second.json["record"]["run_id"] == first["run_id"]
    assert str(folder.path) not in json.dumps(first["spec"])


@pytest.mark.long
def test_the_prompt_of_a_task_is_part_of_a_runs_identity(group_run: Harness, folder: TaskFolder) -> None:
    first = group_run("--method", "majority")["record"]["run_id"]
    folder.choices("toy_choices", doc_to_text="Say: {{text}}")
    assert group_run("--method", "majority")["record"]["run_id"] != first


def test_runs_have_a_leaderboard_by_the_name_that_they_recorded(
    harness: Harness, group_run: Harness, tmp_path: Path
) -> None:
    group_run("--method", "majority")
    board = harness("leaderboard", "lm-eval-toygroup", "--out", tmp_path / "runs")
    assert board.status == 0, board.err
    assert "| majority†" in board.out


@pytest.mark.long
def test_a_leaderboards_file_names_the_group_and_its_options(
    harness: Harness, folder: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = tmp_path / "boards" / "toys.toml"
    board.parent.mkdir()
    board.write_text(
        f'suite = "lm-eval:toygroup"\nbaselines = ["majority"]\nseeds = [0]\n'
        f'[settings]\nsuite.include_path = "{folder.path}"\n',
        encoding="utf-8",
    )
    monkeypatch.chdir(board.parent)
    done = harness("sweep", board, "--out", tmp_path / "runs")
    assert done.status == 0, done.err
    assert "| majority†" in board.with_suffix(".md").read_text(encoding="utf-8")


def test_validate_prints_the_first_targets_of_each_task(harness: Harness, folder: TaskFolder) -> None:
    done = harness("validate", "lm-eval:toygroup", "--set", f"suite.include_path={folder.path}")
    assert done.status == 0, done.err
    assert "toy_choices: ' red', ' blue', ' green'" in done.out
    assert "toy_bad is left out" in done.out


def test_predictions_of_another_program_are_scored_as_texts_of_choices(
    harness: Harness, folder: TaskFolder, tmp_path: Path
) -> None:
    file = tmp_path / "predictions.jsonl"
    lines = [{"id": f"toy_choices-test-{i}", "prediction": "red" if i < 6 else "a drum"} for i in range(12)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    suite = ["--suite", "lm-eval:toy_choices", "--set", f"suite.include_path={folder.path}"]
    done = harness("score", file, *suite, "--json")
    assert done.status == 0, done.err
    scores = done.json["scores"]["official"]["tasks"]["toy_choices"]
    assert (scores["value"], scores["n_unparsed"]) == (pytest.approx(2 / 12), 6)


def test_list_names_the_argument_and_describes_a_group(harness: Harness, folder: TaskFolder) -> None:
    assert "lm-eval:GROUP" in harness("list").out
    assert "suite.include_path" in harness("list", "lm-eval").out
    done = harness("list", "lm-eval:toygroup", "--set", f"suite.include_path={folder.path}")
    assert done.status == 0, done.err
    assert "acc" in done.out
    assert "exact_match" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "lm-eval"], ["needs an argument", "lm-eval:GROUP"]),
        (["--suite", "lm-eval:"], ["is incomplete", "lm-eval:GROUP"]),
        (["--suite", "lm-eval:toy_bad"], ["no task can be trained on", "nowhere"]),
        (["--suite", "lm-eval:toy_untrained"], ["no task can be trained on", "it has no training split"]),
        (["--suite", "lm-eval:toygroup", "--set", "suite.include=x"], ["suite.include", "suite.include_path"]),
        (["--suite", "lm-eval:toygroup", "--set", "suite.dev_share=2"], ["suite.dev_share = 2", "between 0 and 1"]),
        (["--suite", "lm-eval:toygroup", "--set", "suite.headline=f1"], ["suite.headline", "acc_norm"]),
        (["--suite", "lm-eval:toygroup", "--set", "suite.include_path=nowhere"], ["nowhere", "not a folder"]),
        (["--suite", "lm-eval:toygroup", "--tasks", "toy_choice"], ["unknown task", "'toy_choices'"]),
    ],
)
def test_a_wrong_group_or_option_is_an_error_of_one_line(
    harness: Harness, folder: TaskFolder, arguments: list[str], words: list[str]
) -> None:
    place = [] if any("include_path" in a for a in arguments) else ["--set", f"suite.include_path={folder.path}"]
    done = harness("run", "--method", "majority", *place, *arguments)
    assert done.status == 2
    assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1
    for word in words:
        assert word in done.err


def test_data_that_are_missing_are_an_error_of_one_line(harness: Harness, folder: TaskFolder) -> None:
    shutil.move(folder.path / "test.jsonl", folder.path / "elsewhere.jsonl")
    done = harness("validate", "lm-eval:toy_choices", "--set", f"suite.include_path={folder.path}")
    assert done.status == 1
    assert "the data of lm-eval's toy_choices are not on this disk" in done.err


def test_a_back_end_that_generates_cannot_choose(harness: Harness, folder: TaskFolder, toy_model: Path) -> None:
    suite = ["--suite", "lm-eval:toygroup", "--set", f"suite.include_path={folder.path}"]
    done = harness("run", *suite, "--method", "no_finetune", "--backend", f"lm-eval:hf,pretrained={toy_model}")
    assert done.status == 2
    assert "toy_choices is answered by choosing" in done.err


@pytest.mark.long
def test_a_prompt_without_choices_cannot_be_tried(
    harness: Harness, group_run: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = group_run("--method", "lora_all")["directory"]
    monkeypatch.setattr("sys.stdin", io.StringIO("the red car is"))
    done = harness("try", run, "--task", "toy_choices")
    assert done.status == 2
    assert "toy_choices is answered by choosing among the choices of an example" in done.err
