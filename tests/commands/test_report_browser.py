"""A report in a real browser, opened from disk: sorted, filtered, compared, linked; light, dark and narrow.

The tests need the extra ``browser`` and a Chromium: that of Debian, or the one that ``playwright install chromium``
downloads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_report import Flags, toy_block, toy_board, toy_html
from toy_runs import ToyRuns

from harness.leaderboard.build import build_leaderboard
from harness.leaderboard.report.examples import TableExamples
from harness.leaderboard.report.make import ReportOptions, assemble, board_for_report, make_report
from harness.leaderboard.report.page import blocks_of
from harness.store.run_directory import find_runs

pytestmark = pytest.mark.slow
Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboards" / "records"
BOARDS = ("planted", "promptcblue")
HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"> \u202etxt.exe & </script><script>document.title='hacked'</script>"
)

NAMELESS = """() => [...document.querySelectorAll("button, select, input, a, [role=img], [role=region]")]
    .filter((e) => e.checkVisibility() && !e.closest(".legend"))
    .filter((e) => !e.getAttribute("aria-label") && !e.textContent.trim())
    .filter((e) => !e.labels || !e.labels.length || !e.labels[0].textContent.trim())
    .map((e) => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="the extra [browser] is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.executable_path
        path = found if Path(found).exists() else shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """``open_page(file, "#=board", width=400, dark=True)``; errors and requests of a page fail the test."""
    contexts, faults = [], []

    def call(file: Path, address: str = "", *, width: int = 1300, dark: bool = False, **options: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on(
            "request", lambda request: faults.append(request.url) if not request.url.startswith("file://") else None
        )
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.goto(f"file://{file}{address}")
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    yield call
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of the published boards."""
    folder = tmp_path_factory.mktemp("reports")
    made = {}
    for name in BOARDS:
        names = [str(run.path) for run in find_runs(RECORDS) if f"-{name}-" in run.name]
        made[name] = folder / f"{name}.html"
        made[name].write_text(make_report(board_for_report(names, folder, None), ReportOptions()), "utf-8")
    return made


def rows(page: Any, caption: str) -> list[str]:
    """The names of the rows of a table, from the first."""
    table = page.locator("table", has=page.locator("caption", has_text=caption))
    return [text.strip("▾▸† ‡") for text in table.locator("tbody th").all_inner_texts()]


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("view", ["board", "examples", "training", "runs"])
def test_every_view_fits_its_screen_and_asks_for_nothing(
    name: str, dark: bool, width: int, view: str, files: dict[str, Path], open_page: Command, tmp_path: Path
) -> None:
    page = open_page(files[name], f"#={view}", width=width, dark=dark)
    page.locator(f'[data-view="{view}"]').wait_for(state="visible")
    if view == "examples":
        page.wait_for_selector("ol.list li")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("[data-view]:visible").count() == 1
    page.screenshot(path=tmp_path / "screen.png", full_page=True)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark


def test_a_column_sorts_the_rows_and_ablations_stay_below_their_method(
    files: dict[str, Path], open_page: Command
) -> None:
    page = open_page(files["planted"])
    (table,) = blocks_of(files["planted"].read_text("utf-8"))["board"]["tables"]
    assert rows(page, "Means") == [row["method"] for row in table["rows"]]
    heading = page.locator("table", has_text="Means, in percent").get_by_role("button", name="unparsed")
    heading.click()
    shown = rows(page, "Means")
    unparsed = {row["method"]: sum(row["unparsed"].values()) for row in table["rows"]}
    parent = {row["method"]: row["parent"] for row in table["rows"]}
    top = [method for method in shown if parent[method] is None]
    assert [unparsed[m] for m in top] == sorted((unparsed[m] for m in top), reverse=True)
    for method in (m for m in shown if parent[m] is not None):
        above = [m for m in shown[: shown.index(method)] if parent[m] is None]
        assert above[-1] == table["rows"][parent[method]]["method"]
    assert page.locator('th[aria-sort="descending"]').inner_text().startswith("unparsed")
    heading.click()
    assert page.locator('th[aria-sort="ascending"]').count() == 1


def test_rows_are_filtered_and_ablations_folded(files: dict[str, Path], open_page: Command) -> None:
    page = open_page(files["planted"])
    n = len(rows(page, "Means"))
    page.get_by_role("button", name="Fold or unfold ablations").click()
    folded = rows(page, "Means")
    assert len(folded) < n
    assert not any("+" in name for name in folded)
    page.get_by_label("Filter rows").fill("nearest")
    assert rows(page, "Means") == ["nearest"]


def test_a_reference_shows_the_differences_that_python_has_computed(files: dict[str, Path], open_page: Command) -> None:
    page = open_page(files["planted"])
    (table,) = blocks_of(files["planted"].read_text("utf-8"))["board"]["tables"]
    names = [row["method"] for row in table["rows"]]
    page.get_by_label("Reference row").select_option(label="lora_all")
    line = (
        page.locator("table", has_text="Means, in percent")
        .locator("tbody tr", has=page.locator("th", has_text="moe_lora"))
        .first
    )
    value, low, high, _, _, mdd, significant, _ = table["against"][names.index("lora_all")][names.index("moe_lora")][0]
    text = line.inner_text().replace("\u00a0", " ")
    assert f"{100 * value:+.1f} ({100 * low:.1f} to {100 * high:.1f})" in text
    assert ("▲" in text) == bool(significant and value > 0)
    assert f"{100 * mdd:.1f}" in text


def test_the_lists_of_two_rows_have_the_counts_of_compare(
    files: dict[str, Path], open_page: Command, harness: Command
) -> None:
    runs = {
        method: [r.path for r in find_runs(RECORDS) if r.name.startswith(f"{method}-planted")]
        for method in ("moe_lora", "lora_all")
    }
    seeds = {path: path.name for path in runs["lora_all"]}
    compared = harness("compare", *runs["moe_lora"], "--with", *seeds, "--json").json["tasks"]["pick-last"][
        "discordant"
    ]
    page = open_page(files["planted"], "#pick-last//moe_lora/lora_all")
    page.wait_for_selector("ol.list li")
    for pair in compared:
        page.get_by_label("Seeds").select_option(str(pair["seeds"][0]))
        for key, n in (("a", pair["only_a"]), ("b", pair["only_b"])):
            page.get_by_label("List").select_option(key)
            assert page.locator('[data-slot="matches"]').inner_text().startswith(f"{n} of 100 examples")
        line = f"only A right {pair['only_a']}, only B right {pair['only_b']}, p "
        test = page.locator("li", has_text=f"seed {pair['seeds'][0]}: {line}").text_content()
        assert float(test.rpartition(" p ")[2]) == pytest.approx(pair["p"], rel=0.01)


def test_a_link_opens_its_example_and_keys_move_through_the_list(files: dict[str, Path], open_page: Command) -> None:
    blocks = blocks_of(files["promptcblue"].read_text("utf-8"))
    block = next(b for b in blocks.values() if b.get("task") == "CMeEE-V2")
    page = open_page(files["promptcblue"], f"#CMeEE-V2/{block['ids'][3]}/lora_single/nearest", width=400, dark=True)
    page.locator("h2", has_text=block["ids"][3]).wait_for(state="visible")
    assert block["prompts"][3].splitlines()[0] in page.locator(".detail .text").first.inner_text()
    assert page.locator(".detail .chip.missing, .detail .chip.found").count() > 0
    assert page.get_by_label("Row A").evaluate("e => e.selectedOptions[0].textContent") == "lora_single"
    page.keyboard.press("j")
    page.locator("h2", has_text=block["ids"][4]).wait_for(state="visible")
    assert page.url.endswith(f"#CMeEE-V2/{block['ids'][4]}/lora_single/nearest")
    page.keyboard.press("k")
    page.locator("h2", has_text=block["ids"][3]).wait_for(state="visible")
    page.keyboard.press("f")
    page.keyboard.type(block["prompts"][5][:12])
    assert page.locator("ol.list li").count() >= 1
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator(".detail h2").wait_for(state="detached")


def test_examples_are_filtered_by_length_and_by_what_did_not_parse(files: dict[str, Path], open_page: Command) -> None:
    blocks = blocks_of(files["promptcblue"].read_text("utf-8"))
    order = [(row["method"], seed) for row in blocks["board"]["tables"][0]["rows"] for seed in row["seeds"]]
    block = next(b for b in blocks.values() if b.get("task") == "CMeEE-V2")
    page = open_page(files["promptcblue"], "#CMeEE-V2//nearest/no_finetune")
    page.get_by_label("List").select_option("all")
    places = [i for i, (method, _) in enumerate(order) if method in ("nearest", "no_finetune")]
    unparsed = [
        e for e, line in enumerate(block["predictions"]) if any(block["unparsed"][0][e][line[i]] == "1" for i in places)
    ]
    page.get_by_label("Only").select_option("unparsed")
    assert page.locator('[data-slot="matches"]').inner_text().startswith(f"{len(unparsed)} of ")
    page.get_by_label("Only").select_option("")
    longest = max(max(of_example) for of_example in block["lengths"])
    page.get_by_label("Characters, from").fill(str(longest // 2))
    long = [
        e
        for e, line in enumerate(block["predictions"])
        if any(block["lengths"][e][line[i]] >= longest // 2 for i in places)
    ]
    assert 0 < len(long) < len(block["ids"])
    assert page.locator('[data-slot="matches"]').inner_text().startswith(f"{len(long)} of ")


def test_hostile_texts_are_printed_and_do_nothing(open_page: Command, tmp_path: Path) -> None:
    flags: Flags = {"lora": [[False, True]], "moe": [[True, True]]}
    board = toy_board(tmp_path, flags)
    file = tmp_path / "toys.html"
    file.write_text(toy_html(board, toy_block(board, flags, {0: HOSTILE}, {0: HOSTILE})), "utf-8")
    page = open_page(file, "#sky/sky0/moe/lora")
    page.wait_for_selector(".detail .text")
    assert page.title() == "toys, protocol official"
    assert page.locator("img").count() == 0
    assert "<img src=x onerror=" in page.locator(".detail .text").first.inner_text()
    assert "U+202E" in page.locator(".detail .text").first.inner_text()


def test_the_second_table_has_its_own_rows_examples_and_links(open_page: Command, tmp_path: Path) -> None:
    runs = ToyRuns(tmp_path / "runs")
    flags: Flags = {"lora": [[True, False, True]], "moe": [[True, True, True]], "cgc": [[True, True, False]]}
    in_tables = [("lora", "one"), ("moe", "one"), *((method, "two") for method in flags)]
    made = [runs(method, {"sky": flags[method][0]}, data=data) for method, data in in_tables]
    board = build_leaderboard(made, "toys", "official")
    examples = [TableExamples(blocks=(toy_block(board, flags, table=i),), reason=None) for i in range(2)]
    file = tmp_path / "toys.html"
    file.write_text(assemble(board, examples, ReportOptions()), "utf-8")
    assert [len(table.rows) for table in board.tables] == [3, 2]
    page = open_page(file)
    assert len(rows(page, "Means")) == 3
    page.get_by_label("Table").select_option("1")
    page.locator('[data-table="1"] [data-slot="tables"] table').first.wait_for(state="visible")
    assert page.locator('[data-table="0"]').is_hidden()
    page.locator('[data-table="1"] td a').first.click()
    page.locator('[data-table="1"] ol.list li').first.wait_for(state="visible")
    assert page.url.endswith("/2")
    linked = open_page(file, "#sky/sky1/cgc/lora")
    linked.locator('[data-table="0"] h2', has_text="sky1").wait_for(state="visible")
    second = open_page(file, "#sky/sky1/moe/lora/2")
    second.locator('[data-table="1"] h2', has_text="sky1").wait_for(state="visible")


def test_a_report_of_one_run_has_its_board_and_its_examples(open_page: Command, tmp_path: Path) -> None:
    flags: Flags = {"lora": [[True, False, True]]}
    board = toy_board(tmp_path, flags)
    file = tmp_path / "toys.html"
    file.write_text(toy_html(board, toy_block(board, flags)), "utf-8")
    assert rows(open_page(file), "Means") == ["lora"]
    page = open_page(file, "#sky/sky1/lora/lora")
    page.locator("h2", has_text="sky1").wait_for(state="visible")
    assert page.locator(".detail .card").count() == 1
    bare = tmp_path / "bare.html"
    bare.write_text(make_report(board, ReportOptions(examples=False)), "utf-8")
    page = open_page(bare, "#=examples")
    page.get_by_text("No examples:").wait_for(state="visible")
    page.keyboard.press("j")


def test_every_control_has_a_name_and_every_table_a_caption(files: dict[str, Path], open_page: Command) -> None:
    for view in ("board", "examples", "training"):
        page = open_page(files["planted"], f"#={view}")
        if view == "examples":
            page.wait_for_selector("ol.list li")
        nameless = page.evaluate(NAMELESS)
        assert nameless == []
        assert page.evaluate("[...document.querySelectorAll('table')].every((t) => t.caption && t.caption.textContent)")
        assert page.locator("h1").count() == 1


def test_paper_has_the_content_and_no_controls(files: dict[str, Path], open_page: Command) -> None:
    page = open_page(files["planted"])
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.get_by_label("Reference row").is_visible()
    assert page.locator("table").first.is_visible()
    assert len(page.pdf()) > 10_000


def test_without_javascript_the_page_has_its_sentences_facts_and_commands(
    files: dict[str, Path], open_page: Command
) -> None:
    page = open_page(files["planted"], java_script_enabled=False)
    text = page.locator("main").inner_text()
    assert "ranked methods" in text
    assert "need JavaScript" in text
    assert page.locator("pre").first.text_content().startswith("harness run --method")
