"""The HTML file of a report: one page without addresses, a strict policy, no text that becomes markup, equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_report import Flags, Parsed, toy_block, toy_board, toy_html

from harness.errors import StoreError
from harness.leaderboard.report.page import Page, blocks_of, pack, render, unpack, visible

FLAGS: Flags = {"lora": [[True, False, True, False]] * 2, "moe": [[True, True, True, False]] * 2}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><a href="https://example.org">x</a>',
    "&lt;b&gt; &amp; &#x3c;i&#x3e; {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u2066 \u200b\u0000\u001b[31m",
    "<!-- --> ]]> <style>*{display:none}</style>",
    "肝" * 33_334,  # 100 kB
)
EMPTY = {"tables": [], "orientation": [], "unfinished": [], "version": "1"}


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    board = toy_board(tmp_path_factory.mktemp("toys"), FLAGS)
    return toy_html(board, toy_block(board, FLAGS))


def test_the_file_loads_nothing_from_anywhere(html: str) -> None:
    page = Parsed(html)
    loading = {"src", "srcset", "data", "action", "formaction", "poster", "background", "ping", "style"}
    for tag, attributes in page.tags:
        assert not loading & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    assert re.findall(r"https?://[^\s\"']+", html) == ["http://www.w3.org/2000/svg"]  # the name of a namespace
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_the_files_own_script_and_style_by_hash_and_nothing_else(html: str) -> None:
    page = Parsed(html)
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = [content for content in page.texts["script"] if "DecompressionStream" in content]
    (style,) = page.texts["style"]
    assert directives == {
        "default-src": "'none'",
        "script-src": f"'{sha256(scripts[0])}'",
        "style-src": f"'{sha256(style)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert len(scripts) == 1


def sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_script_has_no_door_from_text_to_markup_or_code(html: str) -> None:
    (script,) = (content for content in Parsed(html).texts["script"] if "DecompressionStream" in content)
    for door in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "XMLHttpRequest",
    ):
        assert door not in script
    assert len(script.splitlines()) <= 600


def test_equal_runs_make_equal_bytes(tmp_path: Path, html: str) -> None:
    board = toy_board(tmp_path, FLAGS)
    assert toy_html(board, toy_block(board, FLAGS)) == html


def test_hostile_prompts_and_predictions_are_data_and_come_back_unchanged(tmp_path: Path) -> None:
    flags: Flags = {"lora": [[False] * len(HOSTILE)], "moe": [[True] * len(HOSTILE)]}
    board = toy_board(tmp_path, flags)
    texts = dict(enumerate(HOSTILE))
    page = toy_html(board, toy_block(board, flags, prompts=texts, texts=texts))
    parsed = Parsed(page)
    blocks = [a for tag, a in parsed.tags if tag == "script" and a.get("type") == "application/octet-stream"]
    assert len([tag for tag, _ in parsed.tags if tag == "script"]) == len(blocks) + 1
    assert not {"img", "i", "b"} & {tag for tag, _ in parsed.tags}
    block = blocks_of(page)["t0-0"]
    assert block["prompts"] == list(HOSTILE)
    assert [next(t for t in texts_ if t != "yes") for texts_ in block["texts"]] == list(HOSTILE)


@pytest.mark.parametrize("hostile", HOSTILE[:-1])
def test_hostile_names_are_text_wherever_the_page_prints_them(hostile: str) -> None:
    heat = {"caption": hostile, "columns": (hostile,), "lines": ()}
    table = {
        "title": hostile, "sentences": [hostile], "rows": [hostile], "tasks": [hostile], "seeds": [0],
        "unranked": [hostile], "missing": [hostile], "facts": [(hostile, hostile)], "verdicts": [hostile],
        "seed_noise": [], "tuned": True, "gated": True,
        "matrices": [heat], "clusters": [hostile], "skills": [heat], "no_examples": None,
        "sweeps": [{"title": hostile, "points": [hostile]}], "left_out": [hostile],
        "runs": [{"name": hostile, "runs": [{"name": hostile, "command": hostile, "facts": [(hostile, hostile)]}]}],
    }  # fmt: skip
    plain, other = (
        Parsed(render(Page(title=title, text={**EMPTY, "tables": [rows]}, blocks={"board": pack({})})))
        for title, rows in (("x", neutral(table)), (hostile, table))
    )
    shape = [(tag, sorted(set(attributes) - {"lang"})) for tag, attributes in other.tags]
    assert shape == [(tag, sorted(set(attributes) - {"lang"})) for tag, attributes in plain.tags]
    assert visible(hostile).replace("\n", " ").split() == other.texts["title"][0].replace("\n", " ").split()


def neutral(value: object) -> object:
    """The same structure with a harmless text in place of every text."""
    if isinstance(value, str):
        return "x"
    if isinstance(value, dict):
        return {key: neutral(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(neutral, value))
    return value


@given(
    st.recursive(
        st.text() | st.none() | st.integers(-(10**6), 10**6), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@settings(max_examples=60, deadline=None)
def test_any_data_come_back_from_their_block(value: object) -> None:
    block = pack(value)
    assert re.fullmatch(r"[A-Za-z0-9+/=]*", block)
    assert json.dumps(unpack(block)) == json.dumps(value)


def test_half_of_a_surrogate_pair_does_not_stop_the_report() -> None:
    assert unpack(pack({"text": "a\ud83d"})) == {"text": "a?"}


def test_a_character_that_reorders_text_is_printed_as_its_code_point() -> None:
    assert visible("a\u202eb\u0000c") == "a[U+202E]b[U+0000]c"
    assert visible("一行\n两行") == "一行\n两行"


def test_a_damaged_block_is_an_error_with_the_remedy() -> None:
    with pytest.raises(StoreError, match="Write the report again"):
        unpack("AAAA")
