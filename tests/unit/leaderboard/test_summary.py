"""The sentences before a table: they are computed, and say no more than the tests of the table do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_runs import ToyRuns

from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.export import to_json
from harness.leaderboard.markdown import render_markdown
from harness.leaderboard.summary import summary, warnings
from harness.leaderboard.tables import Table
from harness.scoring.significance import Pair, best_against, best_on_tasks
from harness.store.run_directory import RunDirectory

N = 200


@pytest.fixture
def toy_run(tmp_path: Path) -> ToyRuns:
    return ToyRuns(tmp_path / "runs")


def flags(p: float, seed: int = 0) -> list[bool]:
    return [bool(x) for x in np.random.default_rng(seed).permutation(N) < p * N]


def tasks(sky: float, sea: float, sun: float) -> dict[str, list[bool]]:
    return {"sky": flags(sky), "sea": flags(sea, 1), "sun": flags(sun, 2)}


def table_of(runs: list[RunDirectory]) -> Table:
    (table,) = build_leaderboard(runs, "toys", "official").tables
    return table


def test_the_best_method_is_named_with_the_others_by_significance(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", tasks(0.9, 0.9, 0.6)),
        *toy_run.seeds("cgc", tasks(0.9, 0.88, 0.6)),
        *toy_run.seeds("lora", tasks(0.5, 0.9, 0.59)),
    ]
    found = summary(table_of(runs))
    assert found[0].startswith("Best of 3 ranked methods: moe, mean 80.0 (")
    assert found[1] == "Its mean is significantly above that of lora."
    assert found[2].startswith("Its mean does not differ significantly from that of cgc (difference +0.7 (")
    assert "minimum detectable difference" in found[2]
    assert found[3] == "moe is significantly above cgc on 0 of 3 tasks, below on 0; no significant difference on 3."
    assert (
        found[4] == "moe is significantly above lora on 1 of 3 tasks (sky), below on 0; no significant difference on 2."
    )
    assert len(found) == 5


def test_the_best_method_may_be_below_on_a_task(toy_run: ToyRuns) -> None:
    runs = [*toy_run.seeds("moe", tasks(0.9, 0.9, 0.3)), *toy_run.seeds("lora", tasks(0.4, 0.6, 0.6))]
    assert (
        summary(table_of(runs))[-1] == "moe is significantly above lora on 2 of 3 tasks (sky, sea), below on 1 (sun)."
    )


def test_on_tasks_the_correction_is_for_all_pairs_of_rows_and_all_tasks(toy_run: ToyRuns) -> None:
    table = table_of([*toy_run.seeds("moe", tasks(0.9, 0.8, 0.7)), *toy_run.seeds("lora", tasks(0.8, 0.8, 0.6))])
    best, other = table.rows
    pairs = {t: [Pair(a=best.group, b=other.group, task=t, shared=table.seed_variance.get(t))] for t in table.tasks}
    for task, (found,) in best_on_tasks(pairs).items():
        (alone,) = best_against(pairs[task])
        assert alone.p_adjusted is not None
        assert found.p_adjusted == pytest.approx(min(1.0, 3 * alone.p_adjusted))
        assert found.estimate == alone.estimate


def test_one_seed_is_not_tested_and_one_method_has_nobody_to_beat(toy_run: ToyRuns) -> None:
    two = summary(table_of([toy_run("moe", tasks(0.9, 0.9, 0.9)), toy_run("lora", tasks(0.1, 0.1, 0.1))]))
    assert two == [two[0], "Its mean was not tested against that of lora."]
    one = summary(table_of([toy_run("other", tasks(0.9, 0.9, 0.9))]))
    assert one[0].startswith("One method is ranked: other, mean 90.0 (")
    assert len(one) == 1


def test_ablations_that_change_the_mean_are_counted(toy_run: ToyRuns) -> None:
    runs = [
        *toy_run.seeds("moe", tasks(0.9, 0.9, 0.9)),
        *toy_run.seeds("moe", tasks(0.5, 0.5, 0.5), ablation="no_gate"),
        *toy_run.seeds("moe", tasks(0.9, 0.9, 0.89), ablation="no_noise"),
    ]
    assert summary(table_of(runs))[-1].startswith(
        "1 of 2 ablations differ significantly from their method: moe+no_gate -40.0 ("
    )


def test_a_sample_has_a_warning_and_no_summary(toy_run: ToyRuns) -> None:
    table = table_of([*toy_run.seeds("moe", tasks(0.9, 0.9, 0.9), sample=True)])
    assert summary(table) == []
    assert warnings(table)[0].startswith("This is the embedded sample, not toys.")


def test_the_summary_is_before_the_table_in_markdown_and_in_the_json(toy_run: ToyRuns) -> None:
    runs = [*toy_run.seeds("moe", tasks(0.9, 0.9, 0.6)), *toy_run.seeds("lora", tasks(0.5, 0.9, 0.5))]
    board = build_leaderboard(runs, "toys", "official")
    lines = render_markdown(board).splitlines()
    assert lines[4].startswith("- Best of 2 ranked methods: moe")
    assert next(i for i, line in enumerate(lines) if line.startswith("|")) > 4
    assert to_json(board)["tables"][0]["summary"] == summary(board.tables[0])
