"""The embedded default: its files are what they say, and its scripts make them."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tasks.sample.generate.data import COUNTS, HERE, write

CLUE_FIELDS = ["input", "target", "answer_choices", "task_type", "task_dataset", "sample_id"]
CLUE_TASKS = {
    "CMeEE-V2", "CMeIE", "CHIP-CDN", "CHIP-CDEE", "CHIP-STS", "CHIP-CTC", "CHIP-MDCFNPC", "KUAKE-IR", "KUAKE-QIC",
    "KUAKE-QQR", "KUAKE-QTR", "MedDG", "IMCS-V2-MRG", "IMCS-V2-NER", "IMCS-V2-DAC", "IMCS-V2-SR",
}  # fmt: skip
FIRE_KINDS = {
    "NLI", "SentimentAnalyze", "NER", "MRC", "TextMatching", "KeywordRecognition", "ClassicalChinese", "Couplet",
}  # fmt: skip
FILES = [Path("promptcblue") / f"{s}.json" for s in COUNTS] + [Path("firefly") / f"{s}.jsonl" for s in COUNTS]
LABEL_TASKS = ("CHIP-STS", "CHIP-CTC", "KUAKE-IR", "KUAKE-QIC", "KUAKE-QQR", "KUAKE-QTR", "IMCS-V2-DAC")


@cache
def rows(suite: str, split: str) -> list[dict]:
    suffix = "json" if suite == "promptcblue" else "jsonl"
    text = (HERE / suite / f"{split}.{suffix}").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def everything(suite: str) -> list[dict]:
    return [row for split in COUNTS for row in rows(suite, split)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(HERE / "model")


def test_the_script_makes_the_committed_files_bit_for_bit(tmp_path):
    write(tmp_path)
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (HERE / file).read_bytes(), file


@pytest.mark.parametrize(
    ("suite", "key", "names"), [("promptcblue", "task_dataset", CLUE_TASKS), ("firefly", "kind", FIRE_KINDS)]
)
def test_every_task_has_its_rows_in_every_split(suite, key, names):
    for split, count in COUNTS.items():
        assert Counter(row[key] for row in rows(suite, split)) == dict.fromkeys(names, count)


def test_a_clue_row_has_the_fields_of_the_benchmark_and_offers_its_label():
    for row in everything("promptcblue"):
        assert list(row) == CLUE_FIELDS
        assert row["input"].strip()
        assert " " not in row["input"] + row["target"]
        assert row["target"].strip() == row["target"] != ""
        if row["task_dataset"] in LABEL_TASKS:
            assert row["target"] in row["answer_choices"] or row["target"] == "非上述类型"
    assert len({row["sample_id"] for row in everything("promptcblue")}) == len(everything("promptcblue"))


def test_a_firefly_row_has_kind_input_and_target():
    assert all(list(row) == ["kind", "input", "target"] and row["target"] for row in everything("firefly"))


@pytest.mark.parametrize("suite", ["promptcblue", "firefly"])
def test_no_prompt_occurs_twice_within_or_across_splits(suite):
    prompts = Counter(row["input"] for row in everything(suite))
    assert [p for p, n in prompts.items() if n > 1] == []


@pytest.mark.parametrize("task", LABEL_TASKS)
def test_no_label_has_more_than_its_share_and_none_of_the_test_is_new(task):
    train = Counter(row["target"] for row in rows("promptcblue", "train") if row["task_dataset"] == task)
    test = Counter(row["target"] for row in rows("promptcblue", "test") if row["task_dataset"] == task)
    assert set(test) <= set(train)
    assert max(test.values()) <= 12


def test_prompts_and_targets_are_short():
    lengths = sorted(len(row["input"]) for row in everything("promptcblue"))
    assert lengths[len(lengths) // 2] <= 90
    assert lengths[-1] <= 200
    assert max(len(row["target"]) for row in everything("promptcblue") + everything("firefly")) <= 160


def test_the_sample_is_small():
    assert sum((HERE / file).stat().st_size for file in FILES) < 1_500_000
    assert sum(file.stat().st_size for file in (HERE / "model").iterdir()) <= 5_000_000


def test_the_tokenizer_spells_the_sample_without_unknowns_and_back(tokenizer):
    for row in everything("promptcblue") + everything("firefly"):
        for text in (row["input"], row["target"]):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.eos_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_the_tokenizer_spells_what_it_has_never_seen_in_bytes(tokenizer):
    text = "龘靐 Ünïcode\t🙂\n\n  two  spaces "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_model_loads_and_generates_with_stock_transformers(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings >= 512
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("咳嗽算啥→", return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == "难受"


@pytest.mark.parametrize(("module", "name", "suite", "key"), [
    ("tasks.promptcblue.suite", "PromptCBLUE", "promptcblue", "task_dataset"),
    ("tasks.firefly.suite", "Firefly", "firefly", "kind"),
])  # fmt: skip
def test_gold_against_gold_is_perfect_under_every_protocol(module, name, suite, key):
    from harness.scoring.judge import judge
    from harness.task import Example

    tasks = getattr(pytest.importorskip(module), name)().tasks
    for task in tasks.values():
        chosen = [row for row in rows(suite, "test") if row[key] == task.name]
        if not chosen:
            continue
        examples = [
            Example(
                id=str(i), task=task.name, prompt=row["input"], target=row["target"],
                choices=None if row.get("answer_choices") is None else tuple(row["answer_choices"]),
            )
            for i, row in enumerate(chosen)
        ]  # fmt: skip
        for label, protocol in task.protocols.items():
            judged = judge(task, label, examples, [e.target for e in examples])
            value = judged.statistics.values(judged.statistics.per_example.sum(0))[protocol.headline]
            assert judged.n_unparsed == 0, (task.name, label)
            assert float(value) == pytest.approx(1.0, abs=1e-6), (task.name, label)
