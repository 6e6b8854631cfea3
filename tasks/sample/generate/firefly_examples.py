"""The sample's examples of eight Firefly kinds; one function for each kind makes its example number i."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.sample.generate import general
from tasks.sample.generate.promptcblue_examples import Draft, Maker


def _prompt(rng: random.Random, templates: Sequence[str], **parts: str) -> str:
    return rng.choice(templates).format(**parts)


def nli(rng: random.Random, i: int) -> Draft:
    action = rng.choice(general.ACTIONS)
    who, when = general.person(rng), rng.choice(general.WHEN)
    labels = ("蕴含", "矛盾", "中立")
    a, b = f"{who}{when}{action[0]}", f"{who}{action[1 + i % 3]}"
    templates = (
        "前提：{a}\n假设：{b}\n从“蕴含”“中立”“矛盾”中选一个。",
        "已知“{a}”，那么“{b}”是蕴含、中立还是矛盾？",
        "{a}。{b}。\n两句的推理关系（蕴含/矛盾/中立）：",
    )
    return Draft(content=f"{a}|{b}", prompt=_prompt(rng, templates, a=a, b=b), target=labels[i % 3])


def sentiment(rng: random.Random, i: int) -> Draft:
    good = i % 2 == 0
    thing, (x, y) = rng.choice(general.GOODS), rng.sample(general.ASPECTS, 2)
    ours, theirs = (general.PRAISE, general.BLAME) if good else (general.BLAME, general.PRAISE)
    text = (
        f"{thing}的{x}{rng.choice(ours)}，{y}也{rng.choice(ours)}",
        f"虽然{x}{rng.choice(theirs)}，但是这{thing}总的来说{rng.choice(ours)}",
        f"朋友说这家的{thing}{rng.choice(theirs)}，我用了以后觉得{rng.choice(ours)}",
    )[i // 2 % 3]
    templates = (
        "评论：{text}\n情感倾向是积极还是消极？",
        "判断这条评价的情感，回答积极或消极：{text}",
        "{text}\n作者的态度（积极/消极）：",
    )
    return Draft(content=text, prompt=_prompt(rng, templates, text=text), target="积极" if good else "消极")


def ner(rng: random.Random, i: int) -> Draft:
    scene = general.news(rng)
    groups = (("人名", scene.people), ("地名", scene.places), ("机构名", scene.organisations))
    target = "\n".join(f"{name}：{'，'.join(words) or '无'}" for name, words in groups)
    templates = (
        "找出人名、地名、机构名，没有的写“无”：\n{text}",
        "{text}\n这句话里的人名、地名、机构名各是什么？",
        "命名实体识别（人名、地名、机构名）：{text}",
    )
    return Draft(content=scene.text, prompt=_prompt(rng, templates, text=scene.text), target=target)


def mrc(rng: random.Random, i: int) -> Draft:
    scene = general.passage(rng)
    templates = ("{text}\n问题：{question}", "阅读短文，回答问题。\n{text}\n{question}", "{text}\n请问{question}")
    prompt = _prompt(rng, templates, text=scene.text, question=scene.question)
    return Draft(content=f"{scene.text}|{scene.question}", prompt=prompt, target=scene.answer)


def matching(rng: random.Random, i: int) -> Draft:
    same = i % 2 == 0
    x, y = rng.sample(general.GOODS, 2)
    one, other = rng.sample(general.MEANINGS, 2)
    first, second = rng.sample(one, 2)
    if not same and i % 4 == 1:
        second = rng.choice(other)
    a, b = first.format(x=x), second.format(x=y if i % 4 == 3 else x)
    templates = (
        "“{a}”，“{b}”，两句意思相同吗？选项：是的，不是",
        "句一：{a}\n句二：{b}\n是同一个意思吗？回答是的或者不是。",
        "用户说“{a}”，可以理解为“{b}”吗？是的，不是",
    )
    return Draft(content=f"{a}|{b}", prompt=_prompt(rng, templates, a=a, b=b), target="是的" if same else "不是")


def keywords(rng: random.Random, i: int) -> Draft:
    text, words = general.study(rng)
    templates = ("提取关键词：{text}", "{text}\n这段摘要的关键词有哪些？", "摘要：{text}\n关键词：")
    return Draft(content=text, prompt=_prompt(rng, templates, text=text), target="，".join(words))


def classical(rng: random.Random, i: int) -> Draft:
    old, new = general.classical(rng)
    if i % 4 == 3:
        templates: tuple[str, ...] = ("译成文言文：{text}", "{text}\n用古文怎么说？")
        return Draft(content=old, prompt=_prompt(rng, templates, text=new), target=old)
    templates = ("译成现代汉语：{text}", "{text}\n这句古文是什么意思？", "用白话解释“{text}”")
    return Draft(content=old, prompt=_prompt(rng, templates, text=old), target=new)


def couplet(rng: random.Random, i: int) -> Draft:
    first, second = general.couplet(rng)
    templates = ("上联：{text}\n下联：", "请对出“{text}”的下联", "我出上联“{text}”，下联是什么？")
    return Draft(content=first, prompt=_prompt(rng, templates, text=first), target=second)


KINDS: dict[str, Maker] = {
    "NLI": nli,
    "SentimentAnalyze": sentiment,
    "NER": ner,
    "MRC": mrc,
    "TextMatching": matching,
    "KeywordRecognition": keywords,
    "ClassicalChinese": classical,
    "Couplet": couplet,
}
