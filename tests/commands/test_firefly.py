"""All kinds of Firefly from a copy of the hub's data set, through the installed command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.firefly.tasks import TASKS

Command = Callable[..., Any]

QUESTIONS = {
    "NLI": ("“甲”和“乙”的关系是蕴含、中立还是矛盾？", "中立"),
    "SentimentAnalyze": ("这句话是积极还是消极？", "积极"),
    "TextMatching": ("两句话的意思相似吗？请回答相似或不相似。", "相似"),
    "NER": ("找出句子中的人名：小红来了", "小红"),
}


def copy_of_the_hub(folder: Path, n: int) -> Path:
    """A folder with one file of n lines of every kind, and of BELLE, whose lines are left out."""
    folder.mkdir()
    with (folder / "firefly-train-1.1M.jsonl").open("w", encoding="utf-8") as file:
        for i in range(n):
            for kind in TASKS:
                question, answer = QUESTIONS.get(kind, (f"请写一句关于{kind}的话", "好的"))
                line = {"kind": kind, "input": f"{question}（第{i}题）", "target": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return folder


def test_all_kinds_of_a_copy_of_the_hub_are_evaluated(harness: Command, tmp_path: Path) -> None:
    data = copy_of_the_hub(tmp_path / "firefly-train-1.1M", 60)
    options = ("--suite", "firefly", "--data", data, "--set", "suite.kinds=all", "--set", "suite.test_share=0.3")
    done = harness("run", *options, "--method", "majority", "--out", tmp_path / "runs", "--json")
    assert done.status == 0, done.err
    scores = done.json["scores"]["harness"]["tasks"]
    assert set(scores) == set(TASKS) - {"BELLE"}
    assert len(scores) == 23
    for name, score in scores.items():
        assert score["n"] > 0, name
        assert score["value"] == pytest.approx(1), name
