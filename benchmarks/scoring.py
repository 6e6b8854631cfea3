"""How long 10,000 predictions of PromptCBLUE take to be parsed and scored, imports included.

    python benchmarks/scoring.py                  all three protocols; the limit is 10 s on two cores
    python benchmarks/scoring.py official         the released scorer's alone; the limit is 6 s
    python benchmarks/scoring.py --data FOLDER    texts of a test file instead of made-up ones

Made-up texts have the lengths of real ones: replies of 30 characters, reports of six sections and 130, extractions of
60, cut or changed at random so that answers are wrong in every way.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

STARTED = time.perf_counter()

from harness.scoring.judge import judge  # noqa: E402  (the clock must see the imports)
from harness.task import Example  # noqa: E402  (the clock must see the imports)
from tasks.promptcblue.answers import HEADINGS  # noqa: E402
from tasks.promptcblue.suite import PromptCBLUE  # noqa: E402

PREDICTIONS = 10_000
LIMITS = {"all": 10.0, "official": 6.0}
SYLLABLES = "患者咳嗽发热三天无恶心呕吐腹痛建议服用药物注意休息多饮水查血常规及肺部听诊正常感染炎症轻重左右上下"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("protocols", nargs="*", help="official, readme, jieba; all by default")
    arguments.add_argument("--data", type=Path, help="a folder with test.json")
    options = arguments.parse_args()

    rng = random.Random(0)
    preparing = time.perf_counter()
    examples = real(options.data) if options.data else {name: made_up(rng, name) for name in PromptCBLUE().tasks}
    share = -(-PREDICTIONS // len(examples))
    work = {}
    for name, some in examples.items():
        drawn = rng.choices(some, k=share)
        work[name] = (drawn, [damaged(rng, example.target) for example in drawn])
    prepared = time.perf_counter() - preparing

    chosen = options.protocols or ["official", "readme", "jieba"]
    for protocol in chosen:
        began = time.perf_counter()
        for name, (drawn, texts) in work.items():
            statistics = judge(PromptCBLUE().tasks[name], protocol, drawn, texts).statistics
            statistics.values(statistics.per_unit.sum(0))
        print(f"{protocol:>10}  {time.perf_counter() - began:6.2f} s")
    spent = time.perf_counter() - STARTED - prepared
    characters = sum(len(text) for _, texts in work.values() for text in texts)
    limit = LIMITS["official" if chosen == ["official"] else "all"]
    print(f"{'in all':>10}  {spent:6.2f} s with imports, limit {limit:.0f} s")
    print(f"            {share * len(work):,} predictions of {len(work)} tasks, {characters:,} characters")
    return int(spent > limit)


def real(folder: Path) -> Mapping[str, Sequence[Example]]:
    """The test examples of a folder by task."""
    found = defaultdict(list)
    with (folder / "test.json").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            choices = row["answer_choices"]
            example = Example(
                id=row["sample_id"],
                task=row["task_dataset"],
                prompt=row["input"],
                target=row["target"],
                choices=choices and tuple(choices),
            )
            found[example.task].append(example)
    return found


def made_up(rng: random.Random, name: str) -> Sequence[Example]:
    """Two hundred examples of a task, as long as real ones."""

    def some(size: int) -> str:
        return "".join(rng.choices(SYLLABLES, k=size))

    def one() -> tuple[str, tuple[str, ...] | None]:
        options = tuple({some(rng.randint(2, 6)): None for _ in range(8)})
        match PromptCBLUE().tasks[name].kind:
            case "ner":
                return "实体\n" + "\n".join(f"{o}实体：{some(4)}，{some(6)}" for o in options[:4]), options
            case "spo_generation":
                pair = f"头实体为{some(5)}，尾实体为{some(6)}。"
                return "\n".join(f"具有{o}关系的头尾实体对如下：{pair}" for o in options[:3]), options
            case "normalization":
                return "，".join(options[:2]), options
            case "event_extraction":
                event = f"主体词：{some(3)}；发生状态：否定；描述词：{some(2)}，{some(3)}；解剖部位：{some(2)}"
                return "\n".join(["事件", event, event[:20]]), None
            case "attr_cls":
                return "判别\n" + "\n".join(f"{some(3)}：{o}" for o in options[:5]), options
            case "response_generation":
                return some(30), None
            case "report_generation":
                return "报告\n" + "\n".join(f"{h}：{some(s)}。" for h, s in zip(HEADINGS, SIZES, strict=True)), None
            case _:
                return LABELS[0], LABELS

    return [
        Example(id=f"{name}-{i}", task=name, prompt="", target=target, choices=choices)
        for i, (target, choices) in enumerate(one() for _ in range(200))
    ]


SIZES = (8, 50, 10, 10, 12, 40)
LABELS = ("相关", "不相关", "部分匹配", "完全匹配")


def damaged(rng: random.Random, text: str) -> str:
    """Half of the texts unchanged, the others cut, repeated or with characters changed."""
    place = rng.randint(0, len(text))
    match rng.randrange(6):
        case 0:
            return text[:place]
        case 1:
            return text + "\n" + text[:place]
        case 2:
            return "".join(rng.choice(SYLLABLES) if rng.random() < 0.2 else char for char in text)
        case _:
            return text


if __name__ == "__main__":
    sys.exit(main())
