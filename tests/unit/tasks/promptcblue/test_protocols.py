"""PromptCBLUE's protocols: their metrics on the same predictions, their tokens, and the diagnostics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scoring.judge import judge
from harness.task import Example
from tasks.common.rouge import rouge
from tasks.common.tokens import characters, words
from tasks.promptcblue.answers import Entity
from tasks.promptcblue.diagnostics import sentence, tags
from tasks.promptcblue.tasks import TASKS


def make_example(task: str, target: str, choices: tuple[str, ...] | None = None, prompt: str = "问") -> Example:
    return Example(id=target, task=task, prompt=prompt, target=target, choices=choices)


def metrics(examples: list[Example], predictions: list[str], protocol: str) -> dict[str, float]:
    statistics = judge(TASKS[examples[0].task], protocol, examples, predictions).statistics
    return {name: float(value) for name, value in statistics.values(statistics.per_unit.sum(0)).items()}


def headline(examples: list[Example], predictions: list[str], protocol: str) -> float:
    return metrics(examples, predictions, protocol)[TASKS[examples[0].task].protocols[protocol].headline]


def test_every_task_has_the_three_protocols_and_the_official_one_first() -> None:
    assert len(TASKS) == 16
    for task in TASKS.values():
        assert list(task.protocols) == ["official", "readme", "jieba"]


def test_headlines_are_those_of_the_benchmark() -> None:
    named = {name: tuple(p.headline for p in task.protocols.values()) for name, task in TASKS.items()}
    for name in ("CHIP-STS", "KUAKE-IR", "KUAKE-QQR", "KUAKE-QTR"):
        assert named.pop(name) == ("weighted_f1", "micro_f1", "micro_f1")
    assert named.pop("CHIP-CTC") == ("macro_f1", "macro_f1", "micro_f1")
    assert {named.pop(name) for name in ("KUAKE-QIC", "IMCS-V2-DAC")} == {("macro_f1",) * 3}
    assert {named.pop(name) for name in ("MedDG", "IMCS-V2-MRG")} == {("rouge_l",) * 3}
    assert set(named.values()) == {("f1",) * 3}


@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        ("CHIP-STS", "是的", "不是"),
        ("CHIP-CTC", "非上述类型", "年龄"),
        ("IMCS-V2-DAC", "非上述类型", "给出诊断"),
        ("KUAKE-QIC", "非上述类型", "病因分析"),
        ("KUAKE-IR", "相关", "不相关"),
        ("KUAKE-QTR", "完全不匹配或者没有参考价值", "部分匹配"),
        ("KUAKE-QQR", "完全一致", "语义无直接关联"),
    ],
)
def test_an_empty_prediction_is_the_first_label_in_official_and_wrong_in_readme(
    task: str, first: str, second: str
) -> None:
    examples = [make_example(task, first, (first, second)), make_example(task, second, (first, second))]
    assert metrics(examples, ["", second], "official")["accuracy"] == 1.0
    assert metrics(examples, ["", second], "readme")["accuracy"] == 0.5
    assert judge(TASKS[task], "official", examples, ["", second]).n_unparsed == 1


def test_ten_different_wrong_labels_cost_more_macro_f1_than_equal_ones_in_official_alone() -> None:
    choices = ("饮食", "睡眠", "锻炼", "年龄")
    examples = [make_example("CHIP-CTC", choices[i % 4], choices) for i in range(100)]
    right = [e.target for e in examples][10:]
    one_label = ["饮食"] * 10 + right
    one_invented = ["身高"] * 10 + right
    ten_invented = [f"身高{i}" for i in range(10)] + right
    official, readme = (
        [headline(examples, predictions, protocol) for predictions in (one_label, one_invented, ten_invented)]
        for protocol in ("official", "readme")
    )
    assert official[0] > official[1] > official[2]
    assert official[2] == pytest.approx(official[1] * 5 / 14)
    assert readme[1] == readme[2] == pytest.approx(official[1] * 5 / 4)
    assert [judge(TASKS["CHIP-CTC"], "readme", examples, ten_invented).n_invented] == [10]


def test_an_unparsed_extraction_has_no_items_and_costs_recall_alone() -> None:
    examples = [
        make_example("IMCS-V2-NER", "症状实体：咳", ("症状",)),
        make_example("IMCS-V2-NER", "症状实体：痛", ("症状",)),
    ]
    for protocol in ("official", "readme", "jieba"):
        values = metrics(examples, ["症状实体：咳", "不知道"], protocol)
        assert values == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3})
        assert judge(TASKS["IMCS-V2-NER"], protocol, examples, ["症状实体：咳", "不知道"]).n_unparsed == 1


def test_repeated_items_count_once() -> None:
    examples = [make_example("IMCS-V2-NER", "症状实体：咳", ("症状",))]
    assert headline(examples, ["症状实体：咳，咳，咳\n症状实体：咳"], "official") == 1.0


def test_an_empty_reply_matches_the_full_stop_of_a_reply_under_official_and_nothing_under_readme() -> None:
    examples = [make_example("MedDG", "好的。")]
    assert headline(examples, [" "], "official") == pytest.approx(2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3), abs=1e-7)
    assert headline(examples, [" "], "readme") == 0.0
    assert headline(examples, ["好的。"], "readme") == headline(examples, ["好的。"], "official")


def test_jieba_counts_words_where_official_counts_characters() -> None:
    examples = [make_example("MedDG", "我们喜欢北京")]
    assert headline(examples, ["你们喜欢北京"], "official") == pytest.approx(5 / 6, abs=1e-7)
    assert headline(examples, ["你们喜欢北京"], "jieba") == pytest.approx(2 / 3, abs=1e-7)


def test_a_report_is_the_mean_of_its_sections() -> None:
    lead = "上述问诊对话的诊疗报告如下：\n"
    gold = lead + "主诉：咳嗽\n现病史：发热\n辅助检查：\n既往史：\n诊断：感冒\n建议：多饮水"
    examples = [make_example("IMCS-V2-MRG", gold)]
    assert headline(examples, [lead + "主诉：咳嗽\n诊断：肺炎"], "official") == pytest.approx(3 / 6, abs=1e-7)
    assert headline(examples, ["主诉：咳嗽\n诊断：肺炎"], "official") == pytest.approx(2 / 6, abs=1e-7)
    assert headline(examples, ["主诉：咳嗽\n诊断：肺炎"], "readme") == pytest.approx(3 / 6, abs=1e-7)
    assert headline(examples, ["不知道"], "official") == pytest.approx(2 / 6, abs=1e-7)
    assert headline(examples, ["不知道"], "readme") == 0.0


def test_only_the_sections_of_the_gold_report_count_under_official() -> None:
    examples = [
        make_example("IMCS-V2-MRG", "领\n主诉：咳嗽"),
        make_example("IMCS-V2-MRG", "领\n主诉：痛\n诊断：甲\n建议：乙"),
    ]
    predictions = ["领\n主诉：咳嗽\n诊断：多余", "领\n主诉：痛"]
    assert headline(examples, predictions, "official") == pytest.approx(2 / 4, abs=1e-7)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.characters())
    | st.text(st.sampled_from("aA1 ,.$^`~ΑΣς中文豈㐀é\u0301İﬁ…。\t\n\u2028\u3000\x85\xad\ufffd½‿ｦ가"))
)
@always(text="ΑΣ ΑΣ中Σ Σ́a")
def test_characters_are_those_of_transformers_basic_tokenizer(text: str) -> None:
    from transformers import BasicTokenizer

    assert list(characters(text)) == (BasicTokenizer(tokenize_chinese_chars=True).tokenize(text) or ["无", "。"])


@settings(max_examples=60, deadline=None)
@given(
    pair=st.lists(
        st.text(st.sampled_from("患者咳嗽三天建议服药吗啊A1 。？?!…”’，\n\u2028."), max_size=30), min_size=2, max_size=2
    )
)
def test_rouge_of_both_sorts_of_tokens_is_that_of_rouge_chinese_on_joined_tokens(pair: list[str]) -> None:
    import jieba
    from rouge_chinese import Rouge

    for tokens, cut in ((characters, characters), (words, jieba.lcut)):
        joined = [" ".join(cut(text)).strip() or "无 。" for text in pair]
        theirs = Rouge().get_scores([joined[1]], [joined[0]])[0]
        ours = rouge(tokens(pair[0]), tokens(pair[1]))
        for key, value in (("rouge-l", ours.rouge_l), ("rouge-1", ours.rouge_1), ("rouge-2", ours.rouge_2)):
            assert value == pytest.approx(theirs[key]["f"], abs=1e-9)


NER_PROMPTS = [
    "找出指定的实体：\n{}\n实体类型选项：疾病，药物\n答：",
    "{}\n问题：句子中的疾病，药物实体是什么？\n答：",
    "下面句子中的疾病，药物实体有哪些？\n{}",
    "{}\n这个句子里面实体有哪些？\n实体选项：疾病，药物",
]


@pytest.mark.parametrize("prompt", NER_PROMPTS)
def test_the_sentence_of_a_prompt_is_its_text_without_the_template(prompt: str) -> None:
    text = "流感是疾病，无药物实体。"
    assert sentence(make_example("CMeEE-V2", "", ("疾病", "药物"), prompt.format(text))) == text


def test_a_sentence_that_contains_the_only_choice_is_not_an_instruction() -> None:
    prompt = "孩子有什么症状\n上述问诊中的症状实体是什么？\n答："
    assert sentence(make_example("IMCS-V2-NER", "", ("症状",), prompt)) == "孩子有什么症状"
    assert sentence(make_example("IMCS-V2-NER", "", ("症状",), "答：")) == "答："


def test_a_mention_is_tagged_wherever_it_occurs_and_longer_ones_come_first() -> None:
    entities = [Entity(mention="流感", type="病"), Entity(mention="感", type="别"), Entity(mention="无", type="病")]
    assert tags("流感与流感感", entities) == ["B-病", "I-病", "O", "B-病", "I-病", "B-别"]


def diagnosed(examples: list[Example], predictions: list[str]) -> Any:
    diagnose = TASKS[examples[0].task].diagnose
    assert diagnose is not None
    figures = diagnose(examples, predictions)
    assert json.loads(json.dumps(figures)) == figures
    return figures


def test_entities_are_also_scored_on_the_sentence() -> None:
    choices, prompt = ("疾病", "药物"), NER_PROMPTS[0].format("流感与流感，肺炎")
    examples = [make_example("CMeEE-V2", "疾病实体：流感，肺炎", choices, prompt)]
    figures = diagnosed(examples, ["疾病实体：流感，水痘\n药物实体：肺炎"])
    assert figures["seqeval"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert figures["not_in_sentence"] == 1
    assert diagnosed(examples, [""])["seqeval"]["f1"] == 0.0
    assert diagnosed([make_example("CMeEE-V2", "", choices, "")], [""])["seqeval"] is None


def test_a_confusion_matrix_has_a_column_for_all_other_predictions() -> None:
    examples = [make_example("KUAKE-IR", label, ("相关", "不相关")) for label in ("相关", "相关", "不相关", "不相关")]
    figures = diagnosed(examples, ["相关", "不相关", "不 相关", ""])
    assert figures == {"accuracy": 0.25, "labels": ["相关", "不相关"], "confusion": [[1, 1, 0], [0, 0, 2]]}
