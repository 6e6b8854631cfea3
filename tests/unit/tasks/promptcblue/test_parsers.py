"""PromptCBLUE's parsers accept any text in linear time, and reproduce each quirk of the released scorer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scoring.judge import judge
from harness.task import NOT_PARSED, Example
from tasks.promptcblue import labels
from tasks.promptcblue import parsers_official as official
from tasks.promptcblue import parsers_readme as readme
from tasks.promptcblue.answers import Entity, Event, Finding, Outside, Triple
from tasks.promptcblue.tasks import TASKS

GOLDS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "CMeEE-V2": ("上述句子中的实体包含：\n疾病实体：流感，肺炎\n药物实体：", ("疾病", "药物")),
    "CMeIE": (
        "具有病因关系的头尾实体对如下：头实体为流感，尾实体为病毒。头实体为肺炎，尾实体为细菌。\n"
        "具有预防关系的头尾实体对如下：",
        ("病因", "预防"),
    ),
    "CHIP-CDN": ("流行性感冒，肺炎", ("肺炎", "流行性感冒", "肺癌")),
    "CHIP-CDEE": (
        "上述句子中的临床发现事件如下：\n主体词：咳嗽；发生状态：否定；描述词：夜间，剧烈；解剖部位：肺",
        None,
    ),
    "CHIP-STS": ("相同", ("相同", "不同")),
    "CHIP-CTC": ("年龄", ("年龄", "性别")),
    "CHIP-MDCFNPC": ("上述对话中临床发现实体以及其阴阳性判别如下：\n头晕：阳性的\n发热：阴性的", ("阳性的", "阴性的")),
    "KUAKE-IR": ("不相关", ("相关", "不相关")),
    "KUAKE-QIC": ("病因分析", ("病因分析", "医疗费用")),
    "KUAKE-QQR": ("完全一致", labels.QUERY_PAIR),
    "KUAKE-QTR": ("部分匹配", labels.QUERY_TITLE),
    "MedDG": ("您好，多久了？", None),
    "IMCS-V2-MRG": (
        "上述问诊对话的诊疗报告如下：\n主诉：咳嗽。\n现病史：咳嗽两天。\n辅助检查：\n既往史：不详。\n诊断：感冒。\n建议：多饮水。",
        None,
    ),
    "IMCS-V2-NER": ("上述句子中的实体包含：\n症状实体：咳嗽", ("症状", "药物类别")),
    "IMCS-V2-DAC": ("给出诊断", ("给出诊断", "关于症状的询问")),
    "IMCS-V2-SR": ("当前对话中的症状及其阴阳性判断为：\n咳嗽：有", ("有", "没有", official.UNMARKED_SYMPTOM)),
}
EXAMPLES = {
    name: Example(id=name, task=name, prompt="问", target=target, choices=choices)
    for name, (target, choices) in GOLDS.items()
}
MARKERS = (
    *("，", "：", "；", "。", "\n", " ", "答：", "实体：", "实体", "疾病", "症状", "具有", "病因", "关系的头尾实体对"),
    *(
        "关系的头尾实体对如下：",
        "头实体为",
        "，尾实体为",
        "主体词：",
        "发生状态：",
        "描述词：",
        "解剖部位：",
        "主诉：",
        "诊断：",
    ),
    *("流感", "咳嗽", "阳性的", "有", "相同", "年龄", "\r", "\u2028", "\ufeff", "\x00", "😷", "\U0010ffff"),
)
ANY_TEXT = st.text(st.characters()) | st.lists(st.sampled_from(MARKERS) | st.text(max_size=3)).map("".join)


def parse(name: str, text: str, protocol: str = "official") -> Any:
    return TASKS[name].protocols[protocol].parse(text, EXAMPLES[name])


def damaged(rng: random.Random, text: str) -> str:
    """A text with typical errors of a model: truncated, repeated, shuffled, with stray markers, of another task."""
    for _ in range(rng.randint(0, 3)):
        place, other = rng.randint(0, len(text)), rng.randint(0, len(text))
        low, high = min(place, other), max(place, other)
        text = (
            text[:place],
            text[place:],
            text[:low] + text[high:],
            text[:place] + rng.choice(MARKERS) * rng.randint(1, 3) + text[place:],
            text[:low] + text[low:high] * 3 + text[high:],
            text.replace("：", ":").replace("，", ","),
            text.replace("\n", ""),
            "\n".join(rng.sample(text.split("\n"), text.count("\n") + 1)),
            "".join(rng.sample(text, len(text))),
            rng.choice(list(GOLDS.values()))[0],
            text[:place] + chr(rng.randrange(0x110000)) + text[place:],
            " \n ",
        )[rng.randrange(12)]
    return text


def fuzz(predictions: int, batch: int = 500) -> Iterator[tuple[str, int]]:
    """Parse and score damaged predictions of every task under two protocols; jieba's is left out because it is slow."""
    rng = random.Random(11)
    for _ in range(predictions // (batch * len(TASKS)) + 1):
        for name, task in TASKS.items():
            examples = [EXAMPLES[name]] * batch
            texts = [damaged(rng, EXAMPLES[name].target) for _ in range(batch)]
            for protocol in ("official", "readme"):
                statistics = judge(task, protocol, examples, texts).statistics
                for value in statistics.values(statistics.per_unit.sum(0)).values():
                    assert 0 <= float(value) <= 1
            yield name, batch


@pytest.mark.long
def test_a_hundred_thousand_damaged_predictions_are_parsed_and_scored() -> None:
    assert sum(n for _, n in fuzz(100_000)) >= 100_000


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT, choices=st.none() | st.lists(ANY_TEXT.filter(bool), max_size=4).map(tuple))
@always(text="", choices=None)
@always(text="\ud800", choices=())
def test_any_text_of_any_example_has_an_answer_under_every_protocol(text: str, choices: tuple[str, ...] | None) -> None:
    for name, task in TASKS.items():
        example = Example(id="x", task=name, prompt="", target=text, choices=choices)
        for protocol in task.protocols.values():
            answer = protocol.parse(text, example)
            assert answer is NOT_PARSED or isinstance(answer, str | tuple | dict | Outside)
            if task.invented is not None:
                assert task.invented(answer, example) in (True, False)


@settings(max_examples=60, deadline=None)
@given(prediction=ANY_TEXT, prompt=ANY_TEXT)
def test_diagnostics_of_any_prediction_are_json_values(prediction: str, prompt: str) -> None:
    for name, task in TASKS.items():
        if task.diagnose is not None:
            json.dumps(task.diagnose([replace(EXAMPLES[name], prompt=prompt)], [prediction]))


@pytest.mark.long
@pytest.mark.parametrize(
    "unit", [*MARKERS, "主体词：发生状态：描述词：，", "具有病因关系的头尾实体对如下：头实体为a，尾实体为b。"]
)
def test_parsing_takes_work_in_proportion_to_the_text(unit: str, count_calls: Callable[..., int]) -> None:
    def texts(n_bytes: int) -> list[str]:
        size = n_bytes // len(unit.encode("utf-8", "replace"))
        mixed = unit.join(["疾病实体：", "主诉：", "具有", "\n"] * (size // 40))
        return [unit * size, "领\n" + unit * size, mixed]

    for name, task in TASKS.items():
        for protocol in ("official", "readme"):
            parse = task.protocols[protocol].parse
            for small, large, long in zip(texts(4_000), texts(8_000), texts(100_000), strict=True):
                half, whole = (count_calls(parse, text, EXAMPLES[name]) for text in (small, large))
                assert whole <= 2 * half + 50, (name, protocol)
                parse(long, EXAMPLES[name])


@pytest.mark.parametrize("protocol", ["official", "readme", "jieba"])
@pytest.mark.parametrize("name", TASKS)
def test_targets_are_parsed_and_nonsense_is_not(name: str, protocol: str) -> None:
    assert parse(name, EXAMPLES[name].target, protocol) is not NOT_PARSED
    assert parse(name, " \t ", protocol) is NOT_PARSED
    if TASKS[name].kind not in ("cls", "matching", "response_generation", "normalization"):
        assert parse(name, "我不知道", protocol) is NOT_PARSED


@pytest.mark.parametrize("name", [n for n, t in TASKS.items() if t.kind != "response_generation"])
def test_both_parsers_agree_on_well_formed_texts(name: str) -> None:
    ours, theirs = (parse(name, EXAMPLES[name].target, protocol) for protocol in ("readme", "official"))
    assert (set(ours) == set(theirs)) if isinstance(ours, tuple) else (ours == theirs)


def test_the_phrase_for_none_is_an_answer() -> None:
    for name, text in (("CMeEE-V2", official.NO_ENTITY), ("CMeIE", official.NO_TRIPLE), ("CHIP-CDN", official.NO_NAME)):
        assert parse(name, text) == parse(name, text, "readme") == ()


def test_official_always_skips_the_first_line() -> None:
    text = "头晕：阳性的\n发热：阴性的"
    assert parse("CHIP-MDCFNPC", text) == (Finding(mention="发热", status="阴性的"),)
    assert len(parse("CHIP-MDCFNPC", text, "readme")) == 2
    assert parse("CHIP-CDEE", "主体词：咳嗽") is NOT_PARSED
    assert parse("CHIP-CDEE", "主体词：咳嗽", "readme")[0].subject == "咳嗽"
    assert parse("IMCS-V2-MRG", "主诉：咳\n诊断：感冒") == {"诊断": "感冒"}
    assert parse("IMCS-V2-MRG", "主诉：咳\n嗽\n诊断：感冒", "readme") == {"主诉": "咳\n嗽", "诊断": "感冒"}


def test_official_removes_a_marker_wherever_it_occurs_and_keeps_one_without_its_colon() -> None:
    assert parse("CMeEE-V2", "疾病实体：流疾病实体：感") == (Entity(mention="流感", type="疾病"),)
    assert parse("CMeEE-V2", "疾病实体流感") == (Entity(mention="疾病实体流感", type="疾病"),)
    assert parse("CMeEE-V2", "疾病实体流感", "readme") is NOT_PARSED


def test_official_ignores_types_outside_the_choices_and_readme_counts_them_as_wrong() -> None:
    text = "疾病实体：流感\n身体部位实体：肺"
    assert parse("CMeEE-V2", text) == (Entity(mention="流感", type="疾病"),)
    stray = parse("CMeEE-V2", text, "readme")
    assert stray[1] == Entity(mention="肺", type="身体部位")
    assert TASKS["CMeEE-V2"].invented(stray, EXAMPLES["CMeEE-V2"])  # type: ignore[misc]


def test_official_takes_the_rest_of_a_line_as_the_relation() -> None:
    assert parse("CMeIE", "甲乙病因：头实体为流感，尾实体为病毒。") == (
        Triple(subject="甲乙病因：流感", predicate="病因：头实体为流感，尾实体为病毒。", object="病毒"),
    )
    assert parse("CMeIE", "甲乙病因：头实体为流感，尾实体为病毒。", "readme") is NOT_PARSED


def test_official_drops_names_that_are_not_candidates_and_readme_counts_them_as_wrong() -> None:
    assert parse("CHIP-CDN", "肺炎，肺气肿，肺炎") == ("肺炎",)
    assert parse("CHIP-CDN", "肺炎，肺气肿，肺炎", "readme") == ("肺炎", "肺气肿")
    assert parse("CHIP-CDN", "肺气肿") is NOT_PARSED
    assert parse("CHIP-CDN", "肺炎\n") is NOT_PARSED
    assert parse("CHIP-CDN", "肺炎\n", "readme") == ("肺炎",)


def test_official_parses_a_blank_line_as_an_event_and_a_nested_field_twice() -> None:
    blank = Event(subject="", status="", descriptions=(), places=())
    assert parse("CHIP-CDEE", " \n ") == (blank,)
    assert parse("CHIP-CDEE", " \n ", "readme") is NOT_PARSED
    nested = Event(subject="发生状态：否定", status="否定", descriptions=(), places=())
    assert parse("CHIP-CDEE", "领\n主体词：发生状态：否定") == (nested,)


def test_official_replaces_an_unknown_status_and_readme_keeps_it() -> None:
    text = "领\n头晕：很阳性\n发热：：阴性的"
    assert parse("CHIP-MDCFNPC", text) == (Finding(mention="头晕", status=official.UNMARKED_FINDING),)
    assert parse("CHIP-MDCFNPC", text, "readme")[0] == Finding(mention="头晕", status="很阳性")
    assert parse("IMCS-V2-SR", "领\n咳嗽：可能") == (Finding(mention="咳嗽", status=official.UNMARKED_SYMPTOM),)
    assert parse("CHIP-MDCFNPC", "领\n头晕：阳性的 ")[0].status == official.UNMARKED_FINDING


def test_official_takes_the_last_section_of_a_heading_after_its_last_occurrence() -> None:
    assert parse("IMCS-V2-MRG", "领\n主诉：甲主诉：乙\n主诉：丙主诉：丁\n续") == {"主诉": "丁"}


def test_any_text_is_a_label_in_official_and_a_sentence_is_not_a_label_in_readme() -> None:
    assert parse("KUAKE-IR", "我想是相关。\n") == "我想是相关。"
    assert parse("KUAKE-IR", "我想是相关。\n", "readme") is NOT_PARSED
    assert parse("KUAKE-IR", " 很相关\n", "readme") == Outside(text="很相关")
    assert parse("KUAKE-IR", " 相关\n", "readme") == "相关"


def test_a_label_outside_the_choices_is_invented() -> None:
    for protocol in ("official", "readme"):
        for text, expected in (
            ("年龄", False),
            (labels.NONE_OF_THESE, False),
            ("饮食", True),
            ("身高", True),
            ("", False),
        ):
            answer = parse("CHIP-CTC", text, protocol)
            assert TASKS["CHIP-CTC"].invented(answer, EXAMPLES["CHIP-CTC"]) is expected  # type: ignore[misc]


def test_chip_sts_accepts_either_pair_of_labels() -> None:
    for protocol in ("official", "readme"):
        assert [parse("CHIP-STS", word, protocol) for word in ("相同", "不同", "是的", "不是")] == ["是的", "不是"] * 2


def test_readme_uses_the_label_list_if_an_example_has_no_choices() -> None:
    example = Example(id="x", task="KUAKE-QTR", prompt="", target="", choices=None)
    assert readme.label(labels.QUERY_TITLE)("部分匹配", example) == "部分匹配"
    assert readme.label(labels.QUERY_TITLE)("部分不匹配", example) == Outside(text="部分不匹配")
