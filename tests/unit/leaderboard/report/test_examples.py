"""The examples of a report: each text once, what is kept where the file would be too large, McNemar's counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from toy_report import Flags, runs_of, toy_block, toy_board, toy_html

from harness.leaderboard.report.mcnemar import mcnemar_values
from harness.leaderboard.report.page import blocks_of, packed_blocks
from harness.scoring.compare import compare, to_json

RNG = np.random.default_rng(5)
FLAGS: Flags = {
    "lora": [[bool(x) for x in RNG.random(60) < 0.5] for _ in range(3)],
    "moe": [[bool(x) for x in RNG.random(60) < 0.8] for _ in range(3)],
}


def correct(block: dict, run: int) -> list[bool]:
    """Which predictions of a run a block says are correct."""
    flags = block["correct"][0]
    return [flags[e][texts[run]] == "1" for e, texts in enumerate(block["predictions"])]


def test_a_block_has_each_text_of_an_example_once_and_the_text_of_every_run(tmp_path: Path) -> None:
    board = toy_board(tmp_path, FLAGS)
    block = toy_block(board, FLAGS).content
    runs = [(row.label, run.record.spec.seed) for row in board.tables[0].rows for run in row.group.runs]
    for e, texts in enumerate(block["texts"]):
        assert len(texts) == len(set(texts)) <= 2
        for run, (method, seed) in enumerate(runs):
            assert texts[block["predictions"][e][run]] == ("yes" if FLAGS[method][seed][e] else "no")


def test_the_counts_of_every_pair_of_runs_are_those_of_compare(tmp_path: Path) -> None:
    board = toy_board(tmp_path, FLAGS)
    block = toy_block(board, FLAGS)
    p_values = mcnemar_values([block])
    found = to_json(compare(runs_of(tmp_path, FLAGS, "moe"), runs_of(tmp_path, FLAGS, "lora")))
    by_seed = {tuple(pair["seeds"]): pair for pair in found["tasks"]["sky"]["discordant"]}
    assert sorted(by_seed) == [(0, 0), (1, 1), (2, 2)]
    labels = [row.label for row in board.tables[0].rows]
    for seed in range(3):
        moe, lora = (np.array(correct(block.content, 3 * labels.index(m) + seed)) for m in ("moe", "lora"))
        only = int((moe & ~lora).sum()), int((lora & ~moe).sum())
        pair = by_seed[seed, seed]
        assert (pair["only_a"], pair["only_b"]) == only
        assert p_values[f"{min(only)},{max(only)}"] == pytest.approx(pair["p"])
        assert pair["p"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)


def test_p_values_cover_all_pairs_of_runs(tmp_path: Path) -> None:
    board = toy_board(tmp_path, FLAGS)
    block = toy_block(board, FLAGS)
    p_values = mcnemar_values([block])
    runs = [np.array(correct(block.content, run)) for run in range(6)]
    for a, b in itertools.combinations(runs, 2):
        assert ",".join(map(str, sorted([int((a & ~b).sum()), int((b & ~a).sum())]))) in p_values


def test_examples_on_which_runs_differ_are_kept_first(tmp_path: Path) -> None:
    board = toy_board(tmp_path, FLAGS)
    block = toy_block(board, FLAGS)
    same = [e for e in range(60) if len({FLAGS[method][seed][e] for method in FLAGS for seed in range(3)}) == 1]
    assert same
    assert set(block.order[-len(same) :]) == set(same)
    kept = block.keep(60 - len(same))
    assert [e for e in range(60) if kept["texts"][e] is None] == same
    assert kept["correct"] == block.content["correct"]
    assert kept["predictions"] == block.content["predictions"]
    assert all((kept[name][same[0]] is None) for name in ("prompts", "targets", "choices"))


def test_a_report_that_would_be_too_large_keeps_the_texts_of_a_part_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = toy_board(tmp_path, FLAGS)
    prompts = {i: "".join(map(chr, RNG.integers(0x4E00, 0x9FFF, 400))) for i in range(60)}
    block = toy_block(board, FLAGS, prompts)
    every = toy_html(board, block)
    small = toy_html(board, block, limit=60_000)
    assert sum(map(len, blocks_of_texts(small))) <= 60_000 < sum(map(len, blocks_of_texts(every)))
    found = blocks_of(small)
    n_kept, n, task, words = found["board"]["kept"]["t0-0"]
    assert (n, task) == (60, "sky")
    assert 0 < n_kept < 60
    assert words.startswith(f"This file has the texts of {n_kept} of them")
    assert sum(p is not None for p in found["t0-0"]["prompts"]) == n_kept
    assert f"texts of {n_kept} of 60 examples" in caplog.text
    assert "--all" in caplog.text
    assert toy_html(board, block, limit=60_000, everything=True) == every


def blocks_of_texts(html: str) -> list[str]:
    return list(packed_blocks(html).values())
