"""The example of docs/your_own_suite.md works as it is printed there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "your_own_suite.md"
Command = Callable[..., subprocess.CompletedProcess[str]]


def block(language: str, containing: str = "") -> str:
    """The only fenced block of a language on the page that contains a text."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (content,) = [text for text in found if containing in text]
    return str(content)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 training, 5 dev and 10 test reviews, two thirds of them positive."""
    folder = tmp_path_factory.mktemp("reviews")
    start = 0
    for split, n in (("train", 20), ("dev", 5), ("test", 10)):
        lines = [
            {"id": f"{split}-{i}", "review": f"Bought {i} of them.", "label": "negative" if i % 3 == 0 else "positive"}
            for i in range(start, start + n)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        start += n
    return folder


@pytest.fixture(scope="module")
def harness_with_reviews(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The installed command in a process of its own, with the page's package installed next to it."""
    source, site, work = (tmp_path_factory.mktemp(name) for name in ("package", "site", "work"))
    (source / "pyproject.toml").write_text(block("toml", "[build-system]"), encoding="utf-8")
    (source / "reviews_suite.py").write_text(block("python"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HOME": str(work / "hf")}

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "harness"), *map(str, arguments)]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False, timeout=120)

    return call


@pytest.mark.long
def test_the_suite_of_the_page_is_listed_and_its_data_are_valid(harness_with_reviews: Command, reviews: Path) -> None:
    assert "reviews" in harness_with_reviews("list").stdout
    done = harness_with_reviews("validate", "reviews", "--data", reviews)
    assert done.returncode == 0, done.stderr
    assert "No flaws found." in done.stdout
    assert re.search(r"sentiment +20 +5 +10", done.stdout)


@pytest.mark.long
def test_the_suite_of_the_page_runs_with_a_baseline_and_an_option(harness_with_reviews: Command, reviews: Path) -> None:
    majority = ("run", "--suite", "reviews", "--data", reviews, "--method", "majority", "--json")
    done = harness_with_reviews(*majority, "--set", "suite.question=Good or bad?")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["scores"]["official"]["tasks"]["sentiment"]["value"] == pytest.approx(0.7)
    spec = result["record"]["spec"]
    assert set(spec["data"]["fingerprints"]) == {"train.jsonl", "dev.jsonl", "test.jsonl"}
    assert "Good or bad?" in json.dumps(spec["suite"])
