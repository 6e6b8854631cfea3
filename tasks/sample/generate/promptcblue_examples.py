"""The sample's examples of the 16 PromptCBLUE tasks; one function for each task makes its example number i.

Answer formats and label names are those of the benchmark. Sentences and prompt templates are written for this project.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.sample.generate import scenes
from tasks.sample.generate.labelled import ACTS, CRITERIA, SEARCHES, Labelled
from tasks.sample.generate.lexicon import SYNONYMS


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An example without id and task. content: its sentence, pair or dialogue, which is unique within the task."""

    content: str
    prompt: str
    target: str
    choices: list[str] | None = None


Maker = Callable[[random.Random, int], Draft]
TAIL = "\n答："
ENTITIES = "上述句子中的实体包含：\n"
STATUS_FINDINGS = {
    "yes": "已有症状疾病或者假设未来可能发生的疾病等",
    "no": "未患有症状疾病",
    "unknown": "没有回答、不知道、回答不明确或者模棱两可不好推断",
    "other": "无实际意义的不标注或者和病人当前的状态独立不标注",
}
STATUS_SYMPTOMS = {"no": "没有患有该症状", "yes": "患有该症状", "unknown": "无法根据上下文确定病人是否患有该症状"}
CMEEE_TYPES = {
    "疾病": ("disease",),
    "临床表现": ("symptom",),
    "药物": ("drug", "drug_class"),
    "医学检验项目": ("check",),
    "医疗程序": ("procedure",),
    "身体部位": ("part",),
    "微生物类": ("microbe",),
    "医院科室": ("department",),
    "医疗设备": ("device",),
}
IMCS_TYPES = {
    "症状": ("symptom",),
    "药物类别": ("drug_class",),
    "具体的药物名称": ("drug",),
    "医学检查检验": ("check",),
    "医疗操作": ("procedure",),
}


def _prompt(rng: random.Random, templates: Sequence[str], *, tail: float = 0.6, **parts: str) -> str:
    """A random template, filled in; a share ``tail`` of the prompts ends with the answer cue."""
    return rng.choice(templates).format(**parts) + (TAIL if rng.random() < tail else "")


def _entities(
    rng: random.Random, i: int, text: str, types: dict[str, list[str]], templates: Sequence[str], none: str | None
) -> Draft:
    """An example that asks for some types of entity.

    If ``none`` is given, every sixth example asks only for types that do not occur, and ``none`` is its target.
    """
    present = [t for t, words in types.items() if words]
    absent = [t for t, words in types.items() if not words]
    if none is not None and i % 6 == 5:
        asked = rng.sample(absent, 2)
    else:
        asked = rng.sample(present, min(len(present), 1 + i % 2)) + rng.sample(absent, rng.choice((0, 1)))
    rng.shuffle(asked)
    empty = not any(types[t] for t in asked)
    lines = "\n".join(f"{t}实体：{'，'.join(types[t])}" for t in asked)
    target = none if empty and none is not None else ENTITIES + lines
    prompt = _prompt(rng, templates, text=text, types="，".join(asked))
    return Draft(content=text, prompt=prompt, target=target, choices=asked)


def cmeee(rng: random.Random, i: int) -> Draft:
    scene = scenes.fill(rng, rng.choice(scenes.CLINICAL))
    types = {t: scene.of(*kinds) for t, kinds in CMEEE_TYPES.items()}
    templates = (
        "医学句子：{text}\n请按类型列出实体，类型：{types}",
        "{text}\n上面这句话里属于{types}的实体各有哪些？",
        "抽取{types}实体：\n{text}",
    )
    return _entities(rng, i, scene.text, types, templates, "上述句子没有指定类型实体")


def imcs_ner(rng: random.Random, i: int) -> Draft:
    scene = scenes.fill(rng, rng.choice(scenes.UTTERANCES))
    types = {t: scene.of(*kinds) for t, kinds in IMCS_TYPES.items()}
    templates = (
        "问诊中的一句：{text}\n请列出其中的{types}",
        "{text}\n这句问诊里的{types}实体有哪些？",
        "标出实体（{types}）：{text}",
    )
    return _entities(rng, i, scene.text, types, templates, None)


def cmeie(rng: random.Random, i: int) -> Draft:
    stated = rng.sample(list(scenes.RELATIONS), 2)
    sentence = scenes.related(rng, stated)
    other = rng.sample([r for r in scenes.RELATIONS if r not in stated], 2)
    asked = (stated[:1], [stated[1], other[0]], stated, stated[:1], stated[1:], other[:1])[i % 6]
    rng.shuffle(asked)
    lines = []
    for relation in asked:
        pairs = [f"头实体为{h}，尾实体为{t}。" for r, h, t in sentence.triples if r == relation]
        lines.append(f"具有{relation}关系的头尾实体对如下：{''.join(pairs)}")
    target = "没有指定类型的三元组" if i % 6 == 5 else "\n".join(lines)
    templates = (
        "找出句中的关系三元组，关系类型：{types}\n{text}",
        "{text}\n句中哪些实体之间有{types}关系？",
        "医学关系抽取（{types}）：{text}",
    )
    prompt = _prompt(rng, templates, text=sentence.text, types="，".join(asked))
    return Draft(content=sentence.text, prompt=prompt, target=target, choices=asked)


def cdn(rng: random.Random, i: int) -> Draft:
    found = scenes.diagnosis(rng, 1 if i % 3 else 2)
    others = rng.sample(sorted(set(SYNONYMS.values()) - set(found.names)), 4 - len(found.names))
    offered = others if i % 8 == 1 else [*found.names, *others]
    rng.shuffle(offered)
    kept = [name for name in found.names if name in offered]
    templates = (
        "把诊断“{text}”对应到标准词，候选：{choices}",
        "诊断写法：{text}\n从候选词中选出标准名称：{choices}",
        "{text}\n标准诊断名是下面的哪些？{choices}",
    )
    prompt = _prompt(rng, templates, text=found.text, choices="，".join(offered))
    target = "，".join(kept) or "没有对应的标准化实体"
    return Draft(content=found.text, prompt=prompt, target=target, choices=offered)


def cdee(rng: random.Random, i: int) -> Draft:
    hows = ("plain", "described", "placed", "denied", "unsure")
    chosen = [hows[i % 5]] + ([hows[(i // 5) % 5]] if i % 2 else [])
    parts = [scenes.event(rng, how) for how in chosen]
    text = scenes.fill(rng, "患者{n}{unit}前").text + "，".join(words for words, _ in parts) + "。"
    lines = [
        f"主体词：{e.subject}；发生状态：{e.state}；描述词：{'，'.join(e.descriptions)}；解剖部位：{'，'.join(e.places)}"
        for _, e in dict(parts).items()
    ]
    templates = (
        "抽取临床发现事件：{text}",
        "{text}\n请写出句中的临床发现事件及属性",
        "病历：{text}\n有哪些临床发现事件？",
    )
    target = "上述句子中的临床发现事件如下：\n" + "\n".join(dict.fromkeys(lines))
    return Draft(content=text, prompt=_prompt(rng, templates, text=text), target=target)


def _labelled(rng: random.Random, i: int, table: Labelled, templates: Sequence[str], hide: int = 0) -> Draft:
    """A sentence of label i mod n, with three to five labels to choose from.

    If ``hide`` is given, every ``hide``-th example does not offer the correct label.
    """
    label = list(table)[i % len(table)]
    text = scenes.fill(rng, rng.choice(table[label])).text
    offered = rng.sample([t for t in table if t not in (label, "非上述类型")], rng.choice((2, 3, 4)))
    if hide and i % hide == hide - 1:
        label = "非上述类型"
    if label != "非上述类型":
        offered.append(label)
    rng.shuffle(offered)
    prompt = _prompt(rng, templates, text=text, choices="，".join(offered))
    return Draft(content=text, prompt=prompt, target=label, choices=offered)


def ctc(rng: random.Random, i: int) -> Draft:
    templates = (
        "筛选标准：{text}\n属于哪一类？{choices}",
        "“{text}”是什么类型的入组条件？选项：{choices}",
        "给临床试验条件分类：{text}\n类型：{choices}",
    )
    return _labelled(rng, i, CRITERIA, templates, hide=7)


def qic(rng: random.Random, i: int) -> Draft:
    templates = (
        "搜索词：{text}\n想问的是哪一类？{choices}",
        "判断查询“{text}”的意图，可选：{choices}",
        "{text}\n这条医疗搜索的目的是：{choices}",
    )
    return _labelled(rng, i, SEARCHES, templates)


def dac(rng: random.Random, i: int) -> Draft:
    templates = (
        "问诊对话里的一句：{text}\n意图是？{choices}",
        "“{text}”这句话在做什么？选项：{choices}",
        "对话行为分类：{text}\n可选：{choices}",
    )
    return _labelled(rng, i, ACTS, templates)


def sts(rng: random.Random, i: int) -> Draft:
    same = i % 2 == 0
    kind = (True, True) if same else ((True, False), (False, True), (True, False))[i // 2 % 3]
    pair = scenes.questions(rng, same_topic=kind[0], same_group=kind[1])
    labels = ["相同", "不同"] if i % 4 == 3 or i % 8 == 4 else ["是的", "不是"]
    templates = (
        "“{a}”与“{b}”问的是一回事吗？选项：{choices}",
        "问题一：{a}\n问题二：{b}\n意思一样吗？{choices}",
        "比较两个问句：{a}／{b}\n回答{choices}",
    )
    prompt = _prompt(rng, templates, tail=1.0, a=pair.first, b=pair.second, choices="，".join(labels))
    target = labels[0] if same else labels[1]
    return Draft(content=f"{pair.first}|{pair.second}", prompt=prompt, target=target, choices=labels)


def ir(rng: random.Random, i: int) -> Draft:
    relevant = i % 2 == 0
    pair = scenes.questions(rng, same_topic=relevant, same_group=i % 4 < 3)
    text = scenes.reply(rng, pair.topics[1], pair.groups[1])
    templates = (
        "搜索：{a}\n网页：{b}\n二者相关吗？相关，不相关",
        "有人搜“{a}”，结果是“{b}”，是否相关？选项：相关，不相关",
        "查询和内容是否相关：\n{a}\n{b}",
    )
    prompt = _prompt(rng, templates, a=pair.first, b=text)
    labels = ["相关", "不相关"]
    return Draft(content=f"{pair.first}|{text}", prompt=prompt, target=labels[0 if relevant else 1], choices=labels)


def qqr(rng: random.Random, i: int) -> Draft:
    labels = ["完全一致", "后者是前者的语义子集", "后者是前者的语义父集", "语义无直接关联"]
    label = i % 4
    if label in (1, 2):
        wide, narrow = scenes.narrowed(rng)
        a, b = (wide, narrow) if label == 1 else (narrow, wide)
    else:
        pair = scenes.questions(rng, same_topic=label == 0, same_group=label == 0)
        a, b = pair.first, pair.second
    templates = (
        "前者：{a}\n后者：{b}\n语义关系是？{choices}",
        "搜索词“{a}”和“{b}”是什么关系？",
        "{a}，{b}\n判断两句的语义关系",
    )
    prompt = _prompt(rng, templates, a=a, b=b, choices="，".join(labels))
    return Draft(content=f"{a}|{b}", prompt=prompt, target=labels[label], choices=labels)


def qtr(rng: random.Random, i: int) -> Draft:
    labels = ["完全不匹配或者没有参考价值", "很少匹配有一些参考价值", "部分匹配", "完全匹配"]
    level = i % 4
    pair = scenes.questions(rng, same_topic=level >= 2, same_group=level in (1, 3))
    templates = (
        "搜索：{a}\n标题：{b}\n匹配到什么程度？{choices}",
        "“{a}”与标题“{b}”匹配到什么程度？",
        "{a}，{b}\n判断搜索和标题的匹配程度",
    )
    prompt = _prompt(rng, templates, a=pair.first, b=pair.second, choices="，".join(labels))
    return Draft(content=f"{pair.first}|{pair.second}", prompt=prompt, target=labels[level], choices=labels)


def mdcfnpc(rng: random.Random, i: int) -> Draft:
    order = [scenes.STATUSES[(i // 2 + k * (1 + i // 8 % 3)) % 4] for k in range(1 + i % 2)]
    found = scenes.findings(rng, order)
    labels = list(STATUS_FINDINGS.values())
    names = "，".join(word for word, _ in found.statuses)
    templates = (
        "{text}\n判断临床发现的阴阳性：{names}",
        "问诊记录：\n{text}\n临床发现：{names}\n它们的阴阳性分别是？",
    )
    prompt = _prompt(rng, templates, text=found.text, names=names)
    lines = [f"{word}：{STATUS_FINDINGS[status]}" for word, status in found.statuses]
    target = "上述对话中临床发现实体以及其阴阳性判别如下：\n" + "\n".join(lines)
    return Draft(content=found.text, prompt=prompt, target=target, choices=labels)


def imcs_sr(rng: random.Random, i: int) -> Draft:
    scene = scenes.current(rng, i)
    labels = list(STATUS_SYMPTOMS.values())
    templates = (
        "前文：\n{a}\n当前：\n{b}\n当前这句提到哪些症状，病人有没有？",
        "对话历史：\n{a}\n当前对话：\n{b}\n写出症状及其阴阳性",
    )
    prompt = _prompt(rng, templates, a=scene.history, b=scene.current)
    lines = [f"{word}：{STATUS_SYMPTOMS[status]}" for word, status in scene.statuses]
    target = "当前对话中的症状及其阴阳性判断为：\n" + "\n".join(lines)
    return Draft(content=f"{scene.history}|{scene.current}", prompt=prompt, target=target, choices=labels)


def meddg(rng: random.Random, i: int) -> Draft:
    scene = scenes.visit(rng, i)
    templates = ("{text}\n医生接下来会说什么？", "问诊对话：\n{text}\n写出医生的下一句", "替医生回复：\n{text}")
    return Draft(content=scene.history, prompt=_prompt(rng, templates, text=scene.history), target=scene.reply)


def mrg(rng: random.Random, i: int) -> Draft:
    scene = scenes.report(rng)
    templates = ("{text}\n请写诊疗报告", "根据对话写报告：\n{text}", "问诊：\n{text}\n整理成六个章节的诊疗报告")
    lines = [f"{name}：{text}" for name, text in scene.sections]
    target = "上述问诊对话的诊疗报告如下：\n" + "\n".join(lines)
    return Draft(content=scene.dialogue, prompt=_prompt(rng, templates, text=scene.dialogue), target=target)


# For each task its task_type in the benchmark's files, and the function that makes its examples.
TASKS: dict[str, tuple[str, Maker]] = {
    "CMeEE-V2": ("ner", cmeee),
    "CMeIE": ("spo_generation", cmeie),
    "CHIP-CDN": ("normalization", cdn),
    "CHIP-CDEE": ("event_extraction", cdee),
    "CHIP-STS": ("cls", sts),
    "CHIP-CTC": ("cls", ctc),
    "CHIP-MDCFNPC": ("attr_cls", mdcfnpc),
    "KUAKE-IR": ("matching", ir),
    "KUAKE-QIC": ("cls", qic),
    "KUAKE-QQR": ("matching", qqr),
    "KUAKE-QTR": ("matching", qtr),
    "MedDG": ("response_generation", meddg),
    "IMCS-V2-MRG": ("report_generation", mrg),
    "IMCS-V2-NER": ("ner", imcs_ner),
    "IMCS-V2-DAC": ("cls", dac),
    "IMCS-V2-SR": ("attr_cls", imcs_sr),
}
