"""The tiny model's training text: the suites' language in other words and other instruction formats.

Each piece is a question in a form that no suite uses, and its answer: what a word is, what a sentence says, which
option fits, whether two questions ask the same. So the model knows the words, copying, listing and choosing; the
suites' formats and label names it has never seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tasks.sample import general, scenes
from tasks.sample.labelled import ACTS, CRITERIA, SEARCHES
from tasks.sample.lexicon import FACTS, LISTS, QUESTIONS, SYNONYMS, WORDS
from tasks.sample.prose import PROSE


@dataclass(frozen=True, kw_only=True)
class Piece:
    """content: the sentence that the piece is about, which must not stand in a suite's dev or test split."""

    content: str
    question: str
    answer: str


NAMES = {
    "symptom": "难受", "disease": "毛病", "drug": "药", "drug_class": "药的种类", "check": "化验", "procedure": "疗法",
    "part": "身子", "department": "门诊", "microbe": "病菌", "device": "器械",
}  # fmt: skip
TAILS = {
    "临床表现": "样子", "药物治疗": "药", "病因": "病菌", "发病部位": "坏的地方", "就诊科室": "门诊",
    "辅助检查": "化验", "辅助治疗": "疗法", "并发症": "带来的毛病",
}  # fmt: skip
ASKED = {
    "cure": "怎么办", "drug": "吃啥", "cause": "为啥", "diet": "忌口", "care": "照顾", "harm": "坏处", "cost": "钱",
    "where": "去哪", "infect": "过人", "time": "几时好",
}  # fmt: skip
CALLED = (
    dict(zip(CRITERIA, "岁数 旧病 用药 开刀 怕药 化验单 孕 签名 别的研究 抽烟".split(), strict=True)),  # noqa: SIM905
    dict(zip(SEARCHES, "怎么办 为啥 忌讳 坏处 花钱 去哪 药效 看单子 猜病 闲话".split(), strict=True)),  # noqa: SIM905
    dict(
        zip(
            ACTS,
            "问难受 说难受 问人 说人 问做过啥 说做过啥 问药 说药 叫去医院 说是啥病 客气".split(),  # noqa: SIM905
            strict=True,
        )
    ),
)
STATE = {"yes": "有", "no": "没", "unknown": "不知", "other": "别人"}


def _quote(rng: random.Random, text: str) -> str:
    return rng.choice(("「{}」", "读{}", "{}，", "有话：{}")).format(text)


def word(rng: random.Random) -> Piece:
    kind = rng.choice(list(WORDS))
    named = rng.choice(WORDS[kind])
    return Piece(content="", question=f"{named}算啥", answer=NAMES[kind])


def pick_kind(rng: random.Random) -> Piece:
    kinds = rng.sample(list(WORDS), rng.choice((3, 4, 5)))
    listed = [rng.choice(WORDS[k]) for k in kinds]
    return Piece(content="", question=f"{'、'.join(listed)}里的{NAMES[kinds[0]]}", answer=listed[0])


def extract(rng: random.Random) -> Piece:
    scene = scenes.fill(rng, rng.choice(scenes.CLINICAL + scenes.UTTERANCES))
    present = list(dict.fromkeys(kind for _, kind in scene.mentions))
    kinds = rng.sample(present, min(len(present), rng.choice((1, 2)))) + rng.sample(list(WORDS), rng.choice((0, 1)))
    kinds = list(dict.fromkeys(kinds))
    rng.shuffle(kinds)
    parts = [f"{NAMES[k]}有{'、'.join(scene.of(k)) or '零'}" for k in kinds]
    question = f"{_quote(rng, scene.text)}挑{'、'.join(NAMES[k] for k in kinds)}"
    return Piece(content=scene.text, question=question, answer="；".join(parts))


def relate(rng: random.Random) -> Piece:
    stated = rng.sample(list(scenes.RELATIONS), 2)
    sentence = scenes.related(rng, stated)
    asked = rng.choice((stated[:1], stated, stated[1:], rng.sample(list(scenes.RELATIONS), 1)))
    parts = []
    for relation in asked:
        pairs = "、".join(f"{h}配{t}" for r, h, t in sentence.triples if r == relation)
        parts.append(f"{TAILS[relation]}是{pairs or '零'}")
    question = f"{_quote(rng, sentence.text)}找{'、'.join(TAILS[r] for r in asked)}"
    return Piece(content=sentence.text, question=question, answer="；".join(parts))


def rename(rng: random.Random) -> Piece:
    found = scenes.diagnosis(rng, rng.choice((1, 1, 2)))
    others = rng.sample(sorted(set(SYNONYMS.values()) - set(found.names)), rng.choice((1, 2, 3)))
    shown = [*found.names, *others]
    rng.shuffle(shown)
    if rng.random() < 0.4:
        common = rng.choice(list(SYNONYMS))
        return Piece(content="", question=f"{common}就是", answer=SYNONYMS[common])
    question = f"{_quote(rng, found.text)}在{'、'.join(shown)}里叫"
    return Piece(content=found.text, question=question, answer="、".join(found.names))


def happen(rng: random.Random) -> Piece:
    hows = ("plain", "described", "placed", "denied", "unsure")
    made = [scenes.event(rng, rng.choice(hows)) for _ in range(rng.choice((1, 2, 2, 3)))]
    text = scenes.fill(rng, "患者{n}{unit}前").text + "，".join(words for words, _ in made) + "。"
    state = {"": "真", "否定": "没", "不确定": "疑"}
    parts = [f"{e.subject}（{state[e.state]}{''.join(('、', *e.descriptions, *e.places))}）" for _, e in made]
    return Piece(content=text, question=f"{_quote(rng, text)}说了啥", answer="；".join(parts))


def compare(rng: random.Random) -> Piece:
    if rng.random() < 0.3:
        a, b = scenes.narrowed(rng)
        if rng.random() < 0.5:
            return Piece(content=f"{a}|{b}", question=f"甲：{a}。乙：{b}。谁说得窄", answer="乙")
        return Piece(content=f"{b}|{a}", question=f"甲：{b}。乙：{a}。谁说得窄", answer="甲")
    pair = scenes.questions(rng, same_topic=rng.random() < 0.5, same_group=rng.random() < 0.5)
    ask = rng.randrange(3)
    yes = (pair.same_topic, pair.same_group, pair.same_topic and pair.same_group)[ask]
    question = f"甲：{pair.first}。乙：{pair.second}。{('病', '问法', '全')[ask]}一样不"
    return Piece(content=f"{pair.first}|{pair.second}", question=question, answer="一样" if yes else "两样")


def answered(rng: random.Random) -> Piece:
    pair = scenes.questions(rng, same_topic=rng.random() < 0.5, same_group=rng.random() < 0.7)
    said = scenes.reply(rng, pair.topics[1], pair.groups[1])
    question = f"甲：{pair.first}。乙：{said}说的病一样不"
    return Piece(content=said, question=question, answer="一样" if pair.same_topic else "两样")


def asked(rng: random.Random) -> Piece:
    group = rng.choice(list(QUESTIONS))
    topic = rng.choice(LISTS["topic"])
    text = rng.choice(QUESTIONS[group]).format(t=topic)
    question, answer = rng.choice((("问啥", ASKED[group]), ("说的是谁", topic)))
    return Piece(content="", question=f"{_quote(rng, text)}{question}", answer=answer)


def sort(rng: random.Random) -> Piece:
    table, called = rng.choice(tuple(zip((CRITERIA, SEARCHES, ACTS), CALLED, strict=True)))
    label = rng.choice(list(table))
    text = scenes.fill(rng, rng.choice(table[label])).text
    shown = [called[t] for t in rng.sample([t for t in table if t != label], rng.choice((1, 2, 3, 4)))]
    fits = rng.random() < 0.9
    if fits:
        shown.append(called[label])
    rng.shuffle(shown)
    question = f"{_quote(rng, text)}归到{'、'.join(shown)}"
    return Piece(content=text, question=question, answer=called[label] if fits else "都不是")


def status(rng: random.Random) -> Piece:
    found = scenes.findings(rng, [rng.choice(scenes.STATUSES) for _ in range(rng.choice((1, 2, 3)))])
    parts = [f"{w}{STATE[s]}" for w, s in found.statuses]
    question = f"{found.text}\n查{'、'.join(w for w, _ in found.statuses)}"
    return Piece(content=found.text, question=question, answer="；".join(parts))


def current(rng: random.Random) -> Piece:
    scene = scenes.current(rng, rng.randrange(6))
    parts = [f"{w}{STATE[s]}" for w, s in scene.statuses]
    question = f"早先：{scene.history}\n这回：{scene.current}\n查这回"
    return Piece(content=f"{scene.history}|{scene.current}", question=question, answer="；".join(parts))


def fact(rng: random.Random) -> Piece:
    symptom = rng.choice(list(FACTS))
    known = FACTS[symptom]
    question, answer = rng.choice(
        (
            (f"{symptom}常伴着", known.companion),
            (f"{symptom}常吃的药", known.drug),
            (f"{symptom}要验", known.check),
            (f"{symptom}八成是", known.disease),
        )
    )
    return Piece(content="", question=question, answer=answer)


def consult(rng: random.Random) -> Piece:
    scene = scenes.report(rng)
    told = dict(scene.sections)
    asked_of = {"主诉": "多久", "辅助检查": "验过啥", "既往史": "旧病", "诊断": "啥病", "建议": "吃啥"}
    names = rng.sample(list(asked_of), rng.choice((1, 2)))
    answers = []
    for name in names:
        text = told[name].rstrip("。").removeprefix("曾患").removeprefix("口服")
        answers.append("零" if text in ("无", "不详") else text)
    question = f"{scene.dialogue}\n说说{'、'.join(asked_of[name] for name in names)}"
    return Piece(content=scene.dialogue, question=question, answer="；".join(answers))


def talk(rng: random.Random) -> Piece:
    scene = scenes.visit(rng, rng.randrange(5))
    history = scene.history.replace("患者：", "病人说").replace("医生：", "大夫说")
    reply = (
        scene.reply.replace("有没有", "可有")
        .replace("可以先吃", "吃")
        .replace("考虑", "怕是")
        .replace("建议查", "去验")
    )
    return Piece(content=scene.history, question=f"{history}\n大夫说", answer=reply.replace("您好，", ""))


def infer(rng: random.Random) -> Piece:
    action, who, when = rng.choice(general.ACTIONS), general.person(rng), rng.choice(general.WHEN)
    i = rng.randrange(3)
    a, b = f"{who}{when}{action[0]}", f"{who}{action[1 + i]}"
    return Piece(content=f"{a}|{b}", question=f"甲：{a}。乙：{b}。乙对不", answer=("对", "错", "难说")[i])


def mood(rng: random.Random) -> Piece:
    good = rng.random() < 0.5
    said = rng.choice(general.PRAISE if good else general.BLAME)
    text = f"{rng.choice(general.GOODS)}的{rng.choice(general.ASPECTS)}{said}"
    return Piece(content=text, question=f"{_quote(rng, text)}夸还是骂", answer="夸" if good else "骂")


def names(rng: random.Random) -> Piece:
    scene = general.news(rng)
    groups = rng.sample(
        (("谁", scene.people), ("哪里", scene.places), ("单位", scene.organisations)), rng.choice((1, 2))
    )
    parts = [f"{asked_of}有{'、'.join(found) or '零'}" for asked_of, found in groups]
    question = f"{_quote(rng, scene.text)}挑{'、'.join(g for g, _ in groups)}"
    return Piece(content=scene.text, question=question, answer="；".join(parts))


def passage(rng: random.Random) -> Piece:
    scene = general.passage(rng)
    return Piece(
        content=f"{scene.text}|{scene.question}", question=f"{scene.text}想知道{scene.question}", answer=scene.answer
    )


def shopping(rng: random.Random) -> Piece:
    x, y = rng.sample(general.GOODS, 2)
    one, other = rng.sample(general.MEANINGS, 2)
    same = rng.random() < 0.5
    first, second = rng.sample(one, 2)
    wrong_thing = rng.random() < 0.5
    if not same and not wrong_thing:
        second = rng.choice(other)
    a, b = first.format(x=x), second.format(x=y if not same and wrong_thing else x)
    return Piece(content=f"{a}|{b}", question=f"甲：{a}。乙：{b}。全一样不", answer="一样" if same else "两样")


def points(rng: random.Random) -> Piece:
    text, listed = general.study(rng)
    return Piece(content=text, question=f"{_quote(rng, text)}挑要点", answer="、".join(listed))


def old(rng: random.Random) -> Piece:
    tables = (general.SUBJECTS, general.VERBS, general.OBJECTS, general.TIMES, general.PLACES_OLD, general.PARALLEL)
    if rng.random() < 0.5:
        table = rng.choice(tables)
        key = rng.choice(list(table))
        joined = "对" if table is general.PARALLEL else "古时说"
        return Piece(content="", question=f"{key}{joined}", answer=table[key])
    before, after = general.classical(rng) if rng.random() < 0.5 else general.couplet(rng)
    return Piece(content=before, question=f"前句{before}后句", answer=after)


def spell(rng: random.Random, spellings: Sequence[str]) -> Piece:
    text = "".join(rng.choices(spellings, k=rng.randint(3, 10)))
    return Piece(content="", question=f"照抄{text}", answer=text)


def prose(rng: random.Random) -> Piece:
    text = rng.choice(PROSE)
    return Piece(content="", question="", answer=text)


MAKERS: tuple[tuple[Callable[[random.Random], Piece], int], ...] = (
    (word, 2), (pick_kind, 3), (extract, 8), (relate, 6), (rename, 6), (happen, 5), (compare, 9), (answered, 3),
    (asked, 3), (sort, 8), (status, 6), (current, 5), (fact, 4), (consult, 5), (talk, 4), (infer, 3), (mood, 2),
    (names, 3), (passage, 3), (shopping, 3), (points, 2), (old, 4), (prose, 6),
)  # fmt: skip


def pieces(rng: random.Random, spellings: Sequence[str], forbidden: str) -> Iterator[Piece]:
    """Endless pieces, none about a sentence that stands in ``forbidden`` (the suites' dev and test prompts)."""
    makers, weights = [m for m, _ in MAKERS], [w for _, w in MAKERS]
    while True:
        piece = spell(rng, spellings) if rng.random() < 0.06 else rng.choices(makers, weights)[0](rng)
        if not piece.content or not all(part in forbidden for part in piece.content.split("|")):
            yield piece
