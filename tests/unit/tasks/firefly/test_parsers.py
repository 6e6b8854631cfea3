"""Firefly's parsers."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.task import NOT_PARSED, Example
from tasks.firefly.labels import FAMILIES, class_of, offered
from tasks.firefly.source import make_example
from tasks.firefly.tasks import PROTOCOL, TASKS

PROMPTS = {
    "NLI": "前提：天在下雨\n假设：地是湿的\n关系是蕴含、中立还是矛盾？",
    "SentimentAnalyze": "这条评论积极还是消极？\n很好用",
    "TextMatching": "“几点了”和“现在几点”意思相同吗？选项：是的，不是。答案：",
    "NER": "列出人名、地名和机构名：\n张三去了北京。",
    "KeywordRecognition": "找出关键词，用逗号隔开：\n一段摘要",
    "MRC": "文章：桥建于1930年。\n问题：桥建于何时？\n回答：",
    "Couplet": "上联：春风\n下联：",
}


def example_of(kind: str, prompt: str, target: str) -> Example:
    line = {"kind": kind, "input": prompt, "target": target}
    return make_example("1", line, "line 1", needs_target=False)


def parse(kind: str, text: str, prompt: str | None = None, target: str = "") -> object:
    e = example_of(kind, prompt or PROMPTS[kind], target)
    return TASKS[kind].protocols[PROTOCOL].parse(text, e)


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("NLI", "蕴含", "蕴含"),
        ("NLI", " 矛盾。", "矛盾"),
        ("NLI", "两句话的关系是“中立”，无法推出。", "中立"),
        ("NLI", "中立，仍是中立", "中立"),
        ("NLI", "不是矛盾就是中立", NOT_PARSED),
        ("NLI", "并不矛盾", NOT_PARSED),
        ("NLI", "也许", NOT_PARSED),
        ("NLI", "", NOT_PARSED),
        ("SentimentAnalyze", "这是消极的评论", "消极"),
        ("SentimentAnalyze", "不积极", NOT_PARSED),
        ("SentimentAnalyze", "积极，但有消极的地方", NOT_PARSED),
        ("SentimentAnalyze", "正面", NOT_PARSED),
        ("TextMatching", "是的，意思一样", "是的"),
        ("TextMatching", "不是的", "不是"),
        ("TextMatching", "“不是”", "不是"),
        ("TextMatching", "是", NOT_PARSED),
        ("TextMatching", "是的，不是", NOT_PARSED),
    ],
)
def test_a_label_is_parsed_in_the_forms_that_the_prompt_offers(kind: str, text: str, answer: object) -> None:
    assert parse(kind, text) == answer


@pytest.mark.parametrize(
    ("kind", "prompt", "text", "answer"),
    [
        ("NLI", "一定成立、一定不成立，还是无法确定？", "一定不成立", "矛盾"),
        ("NLI", "一定成立（蕴含）、一定不成立（矛盾）或无法确定（中立）？", "一定成立", "蕴含"),
        ("NLI", "甲能推出乙吗？是的、不是或也许？", "也许吧", "中立"),
        ("NLI", "自然语言推理：前提：甲\n假设：乙", "entailment", "蕴含"),
        ("TextMatching", "甲和乙意思是否相同？", "否", "不是"),
        ("SentimentAnalyze", "Positive or negative? 答 positive 或 negative：好", "Negative.", "消极"),
        ("SentimentAnalyze", "情感？选项：好评，差评", "差评", "消极"),
        ("SentimentAnalyze", "心情？选项：高兴、生气、难过", "他很生气", "生气"),
        ("TextMatching", "相同还是不相同？", "不相同", "不是"),
        ("TextMatching", "回答相同或不同", "这两句不同", "不是"),
        ("TextMatching", "选项：是、否", "是", "是的"),
        ("TextMatching", "选项：是、否", "否。", "不是"),
    ],
)
def test_templates_with_other_wordings_have_the_same_classes(kind: str, prompt: str, text: str, answer: object) -> None:
    assert parse(kind, text, prompt) == answer


def test_choices_are_what_the_prompt_offers() -> None:
    assert offered("NLI", PROMPTS["NLI"]) == ("蕴含", "中立", "矛盾")
    assert offered("TextMatching", PROMPTS["TextMatching"]) == ("是的", "不是")
    assert offered("SentimentAnalyze", "选项：好评，差评\n选项：“高兴”；“生气”") == ("高兴", "生气")
    assert offered("NLI", "前提：甲\n假设：乙") is None
    assert example_of("MRC", "选项：甲，乙", "甲").choices is None


def test_an_answer_outside_the_options_is_invented() -> None:
    invented = TASKS["NLI"].invented
    assert invented is not None
    two = Example(id="1", task="NLI", prompt="选项：蕴含，矛盾", target="", choices=("蕴含", "矛盾"))
    assert TASKS["NLI"].protocols[PROTOCOL].parse("中立", two) == "中立"
    assert invented("中立", two)
    assert not invented("矛盾", two)
    assert not invented(NOT_PARSED, two)
    assert not invented("中立", Example(id="1", task="NLI", prompt="", target=""))


def test_every_form_belongs_to_one_class() -> None:
    for kind, families in FAMILIES.items():
        for family in families:
            assert [class_of(kind, form) for form in family] == list(families[0])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("人名：张三，李四\n地名：无\n机构名：", {("人名", "张三"), ("人名", "李四")}),
        ("人名: 张三、李四；地名: 北京。", {("人名", "张三"), ("人名", "李四"), ("地名", "北京")}),
        ("人名：无\n地名：无\n机构名：无", set()),
        ("找到如下实体\n人名：“张三”，张三", {("人名", "张三")}),
        ("人名：Smith, J，Lee", {("人名", "Smith, J"), ("人名", "Lee")}),
        ("张三，北京", NOT_PARSED),
        ("", NOT_PARSED),
    ],
)
def test_entities_follow_their_type(text: str, answer: object) -> None:
    assert parse("NER", text) == answer


def test_a_list_of_mentions_is_an_answer_if_the_prompt_does_not_ask_for_types() -> None:
    assert parse("NER", "张三，李四", prompt="找出所有人名：张三和李四。") == {("", "张三"), ("", "李四")}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("稀疏表示，分类", {"稀疏表示", "分类"}),
        ("关键词：ＥＬＭ,分类;排序。", {"elm", "分类", "排序"}),
        ("N,N-二甲基，合成", {"n,n-二甲基", "合成"}),
        ("分类\n分类", {"分类"}),
        (" ，。", NOT_PARSED),
    ],
)
def test_keywords_are_a_set(text: str, answer: object) -> None:
    assert parse("KeywordRecognition", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1930年", "1930年"),
        ("答案：《１９３０ 年》。", "1930年"),
        ("回答：1930年", "1930年"),
        ("Abc，def", "abcdef"),
        ("……", "......"),
        (" \n", NOT_PARSED),
    ],
)
def test_short_answers_are_normalised(text: str, answer: object) -> None:
    assert parse("MRC", text) == answer


def test_a_text_may_repeat_the_last_words_of_the_prompt() -> None:
    assert parse("Couplet", "下联：秋 雨\n") == "秋雨"
    assert parse("Couplet", "横批：秋雨") == "横批：秋雨"


TEXTS = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["不", "是", "的", "蕴含", "矛盾", "积极", "：", ":", "，", "\n", "；", "人名", "无", "答案", "\x00", "ﷺ"]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(TASKS)), text=TEXTS, prompt=TEXTS)
def test_any_text_gives_an_answer_or_not_parsed(kind: str, text: str, prompt: str) -> None:
    task = TASKS[kind]
    e = example_of(kind, prompt, "")
    answer = task.protocols[PROTOCOL].parse(text, e)
    assert answer is NOT_PARSED or isinstance(answer, (str, frozenset))
    assert answer != ""
    assert task.invented is None or task.invented(answer, e) in (True, False)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(FAMILIES)), text=TEXTS, prompt=TEXTS)
def test_diagnostics_of_any_prediction_are_json_values(kind: str, text: str, prompt: str) -> None:
    diagnose = TASKS[kind].diagnose
    assert diagnose is not None
    json.dumps(diagnose([example_of(kind, prompt, text)], [text]))


@pytest.mark.long
@pytest.mark.parametrize("unit", ["不", "是的", "人名：甲，", "选项：", "答案：", "（“", " ", "ﷺ", "一定不"])
def test_parsing_takes_work_in_proportion_to_the_text(unit: str, count_calls: Callable[..., int]) -> None:
    for kind in ("NLI", "TextMatching", "NER", "KeywordRecognition", "MRC", "Couplet"):
        parse = TASKS[kind].protocols[PROTOCOL].parse
        texts = [unit * (size // len(unit)) for size in (2_000, 4_000)]
        half, whole = (count_calls(parse, text, example_of(kind, text, "")) for text in texts)
        assert whole <= 2 * half + 50, f"{kind} on {unit!r}"
        long = unit * (200_000 // len(unit))
        parse(long, example_of(kind, long, ""))  # would not end if a search within the text were quadratic
