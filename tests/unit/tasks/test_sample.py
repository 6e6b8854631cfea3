"""The embedded sample: its data and model, and the scripts that make them."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tasks.sample.generate.data import COUNTS, HELD_OUT_INSTANCES, HERE, INSTANCES, write
from tasks.sample.generate.superglue_items import TASKS as SUPERGLUE
from tasks.sample.generate.superni_examples import TASKS as SUPERNI_TASKS

PROMPTCBLUE_FIELDS = ["input", "target", "answer_choices", "task_type", "task_dataset", "sample_id"]
PROMPTCBLUE_TASKS = {
    "CMeEE-V2", "CMeIE", "CHIP-CDN", "CHIP-CDEE", "CHIP-STS", "CHIP-CTC", "CHIP-MDCFNPC", "KUAKE-IR", "KUAKE-QIC",
    "KUAKE-QQR", "KUAKE-QTR", "MedDG", "IMCS-V2-MRG", "IMCS-V2-NER", "IMCS-V2-DAC", "IMCS-V2-SR",
}  # fmt: skip
FIREFLY_KINDS = {
    "NLI", "SentimentAnalyze", "NER", "MRC", "TextMatching", "KeywordRecognition", "ClassicalChinese", "Couplet",
}  # fmt: skip
FILES = [Path("promptcblue") / f"{s}.json" for s in COUNTS] + [Path("firefly") / f"{s}.jsonl" for s in COUNTS]
FILES += [Path("superglue") / task / f"{split}.jsonl" for task in SUPERGLUE for split in ("train", "val")]
INSTRUCTIONS = [Path("superni") / "tasks" / f"{name}.json" for name in SUPERNI_TASKS]
FILES += [*INSTRUCTIONS, *(Path("superni") / "splits" / "default" / f"{part}_tasks.txt" for part in ("train", "test"))]
LABEL_TASKS = ("CHIP-STS", "CHIP-CTC", "KUAKE-IR", "KUAKE-QIC", "KUAKE-QQR", "KUAKE-QTR", "IMCS-V2-DAC")


@cache
def examples_of(suite: str, split: str) -> list[dict]:
    suffix = "json" if suite == "promptcblue" else "jsonl"
    text = (HERE / suite / f"{split}.{suffix}").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def all_examples(suite: str) -> list[dict]:
    return [example for split in COUNTS for example in examples_of(suite, split)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(HERE / "model")


def test_the_script_reproduces_the_committed_files_byte_for_byte(tmp_path):
    write(tmp_path)
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (HERE / file).read_bytes(), file


@pytest.mark.parametrize(
    ("suite", "key", "names"), [("promptcblue", "task_dataset", PROMPTCBLUE_TASKS), ("firefly", "kind", FIREFLY_KINDS)]
)
def test_every_task_has_its_examples_in_every_split(suite, key, names):
    for split, count in COUNTS.items():
        assert Counter(example[key] for example in examples_of(suite, split)) == dict.fromkeys(names, count)


def test_a_promptcblue_example_has_the_fields_of_the_benchmark_and_offers_its_label():
    for example in all_examples("promptcblue"):
        assert list(example) == PROMPTCBLUE_FIELDS
        assert example["input"].strip()
        assert " " not in example["input"] + example["target"]
        assert example["target"].strip() == example["target"] != ""
        if example["task_dataset"] in LABEL_TASKS:
            assert example["target"] in example["answer_choices"] or example["target"] == "非上述类型"
    assert len({example["sample_id"] for example in all_examples("promptcblue")}) == len(all_examples("promptcblue"))


def test_a_firefly_example_has_kind_input_and_target():
    assert all(
        list(example) == ["kind", "input", "target"] and example["target"] for example in all_examples("firefly")
    )


@pytest.mark.parametrize("file", INSTRUCTIONS, ids=lambda file: file.stem)
def test_an_instruction_task_has_its_examples_and_different_inputs(file):
    content = json.loads((HERE / file).read_text("utf-8"))
    task = SUPERNI_TASKS[file.stem]
    inputs = [e["input"] for key in ("Positive Examples", "Negative Examples", "Instances") for e in content[key]]
    assert len(set(inputs)) == len(inputs) == 3 + (HELD_OUT_INSTANCES if task.held_out else INSTANCES)
    assert all(output.strip() for instance in content["Instances"] for output in instance["output"])
    assert content["Output_language"] == ["English"]


def test_the_labels_of_the_instruction_tasks_are_about_balanced():
    for file in INSTRUCTIONS[:2]:
        content = json.loads((HERE / file).read_text("utf-8"))
        labels = Counter(instance["output"][0] for instance in content["Instances"])
        assert len(labels) == 2
        assert min(labels.values()) >= 0.4 * INSTANCES


@pytest.mark.parametrize("suite", ["promptcblue", "firefly"])
def test_no_prompt_occurs_twice_within_or_across_splits(suite):
    prompts = Counter(example["input"] for example in all_examples(suite))
    assert [p for p, n in prompts.items() if n > 1] == []


@pytest.mark.parametrize("form", ["letters", "t5", "lm-eval"])
def test_the_superglue_sample_has_every_task_in_every_split_and_no_text_in_two(form, hf_cache):
    from tasks.superglue.suite import SuperGLUE

    suite = SuperGLUE(format=form)
    source = str(suite.sample)
    prompts = {split: suite.read(source, split) for split in COUNTS}
    for split, least in (("train", 60), ("dev", 5), ("test", 24)):
        counts = Counter(prompts[split]["task"][:])
        assert set(counts) == set(suite.tasks)
        assert min(counts.values()) >= (least if form != "t5" else least // 3)
    assert not set(prompts["test"]["prompt"][:]) & {*prompts["train"]["prompt"][:], *prompts["dev"]["prompt"][:]}


@pytest.mark.parametrize("task", ["BoolQ", "CB", "COPA", "RTE", "WiC", "WSC"])
def test_the_labels_of_superglue_are_balanced(task):
    lines = (HERE / "superglue" / task / "val.jsonl").read_text("utf-8").splitlines()
    counts = Counter(json.loads(line)["label"] for line in lines)
    assert set(counts.values()) == {24 // (3 if task == "CB" else 2)}


@pytest.mark.parametrize("task", LABEL_TASKS)
def test_labels_are_balanced_and_every_test_label_occurs_in_training(task):
    train = Counter(
        example["target"] for example in examples_of("promptcblue", "train") if example["task_dataset"] == task
    )
    test = Counter(
        example["target"] for example in examples_of("promptcblue", "test") if example["task_dataset"] == task
    )
    assert set(test) <= set(train)
    assert max(test.values()) <= 12


def test_prompts_and_targets_are_short():
    lengths = sorted(len(example["input"]) for example in all_examples("promptcblue"))
    assert lengths[len(lengths) // 2] <= 90
    assert lengths[-1] <= 200
    assert max(len(example["target"]) for example in all_examples("promptcblue") + all_examples("firefly")) <= 160


def test_the_sample_is_small():
    assert sum((HERE / file).stat().st_size for file in FILES) < 1_500_000
    assert sum(file.stat().st_size for file in (HERE / "model").iterdir()) <= 5_000_000


def test_the_tokenizer_encodes_the_sample_without_unknown_tokens_and_decodes_it(tokenizer):
    for example in all_examples("promptcblue") + all_examples("firefly"):
        for text in (example["input"], example["target"]):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.eos_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_the_tokenizer_encodes_unknown_characters_as_bytes(tokenizer):
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


@pytest.mark.long
@pytest.mark.parametrize(("module", "name", "suite", "key"), [
    ("tasks.promptcblue.suite", "PromptCBLUE", "promptcblue", "task_dataset"),
    ("tasks.firefly.suite", "Firefly", "firefly", "kind"),
])  # fmt: skip
def test_gold_against_gold_is_perfect_under_every_protocol(module, name, suite, key):
    from harness.scoring.judge import judge
    from harness.task import Example

    tasks = getattr(pytest.importorskip(module), name)().tasks
    for task in tasks.values():
        chosen = [example for example in examples_of(suite, "test") if example[key] == task.name]
        if not chosen:
            continue
        examples = [
            Example(
                id=str(i), task=task.name, prompt=example["input"], target=example["target"],
                choices=None if example.get("answer_choices") is None else tuple(example["answer_choices"]),
            )
            for i, example in enumerate(chosen)
        ]  # fmt: skip
        for label, protocol in task.protocols.items():
            judged = judge(task, label, examples, [e.target for e in examples])
            value = judged.statistics.values(judged.statistics.per_unit.sum(0))[protocol.headline]
            assert judged.n_unparsed == 0, (task.name, label)
            assert float(value) == pytest.approx(1.0, abs=1e-6), (task.name, label)
