"""The training text of the tiny model: the suites' language in other words and other instruction formats.

Each piece is a question and its answer, in a form that no suite uses: which kind of word something is, which facts a
sentence has, which option fits, whether two questions ask the same. The model learns the words, and to copy, list and
choose, but not the suites' formats and label names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tasks.sample.generate import general, scenes
from tasks.sample.generate.labelled import ACTS, CRITERIA, SEARCHES
from tasks.sample.generate.lexicon import FACTS, LISTS, QUESTIONS, SYNONYMS, WORDS
from tasks.sample.generate.prose import PROSE


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A question and its answer.

    content: the sentence that the piece is about, which must not occur in a suite's dev or test split.
    """

    content: str
    question: str
    answer: str
    cue: str = ""  # text between question and answer


CUES = ("→", "→", "＝", "\n应：", "\n", "，", "")
VARIANTS = 3  # each kind and label has three names, and a piece uses one of them consistently


def _named(text: str) -> dict[str, list[str]]:
    """A table of the names of each key, from lines ``key name name name``."""
    return {key: names for key, *names in (line.split() for line in text.strip().splitlines())}


NAMES = _named("""
symptom 难受 症状 不适
disease 毛病 疾病 病
drug 药 药物 药名
drug_class 药的种类 药类 哪类药
check 化验 检查 检验
procedure 疗法 操作 做法
part 身子 部位 身体
department 门诊 科室 哪科
microbe 病菌 微生物 病原
device 器械 设备 仪器
""")
TAILS = _named("""
临床表现 样子 表现 难受
药物治疗 药 用药 药物
病因 病菌 起因 原因
发病部位 坏处 部位 身子
就诊科室 门诊 科室 哪科
辅助检查 化验 检查 检验
辅助治疗 疗法 帮治 做法
并发症 后病 并发 毛病
""")
ASKED = _named("""
cure 怎么办 治法 治疗
drug 吃啥 用药 药物
cause 为啥 起因 病因
diet 忌口 饮食 吃喝
care 照顾 护理 注意
harm 坏处 后果 危害
cost 钱 费用 价钱
where 去哪 科室 就医
infect 过人 传染 传给谁
time 几时好 时间 多久
""")
CALLED = (
    _named("""
年龄 岁数 年纪 几岁
疾病 旧病 得过的病 病史
药物 用药 吃药 药
治疗或手术 开刀 手术 治疗
过敏耐受 怕药 过敏 不耐受
实验室检查 化验单 检查 实验室
怀孕相关 孕 怀孕 产妇
知情同意 签名 同意 签字
参与其它试验 别的研究 参与试验 别处试验
吸烟状况 抽烟 吸烟 烟
"""),
    _named("""
治疗方案 怎么办 治疗 方案
病因分析 为啥 病因 原因
注意事项 忌讳 注意 小心
后果表述 坏处 后果 危害
医疗费用 花钱 费用 价钱
就医建议 去哪 就医 看病
功效作用 药效 功效 作用
指标解读 看单子 指标 解读
病情诊断 猜病 诊断 病情
非上述类型 闲话 别的 无关
"""),
    _named("""
关于症状的询问 问难受 询问症状 症状的提问
关于症状的回答 说难受 回答症状 症状的说明
关于个人基本信息的询问 问人 询问个人 信息的提问
关于个人基本信息的回答 说人 回答个人 信息的说明
关于已有检查和治疗的提问 问做过啥 询问已有检查 治疗的提问
关于已有检查和治疗的回答 说做过啥 回答已有检查 治疗的说明
关于用药建议的提问 问药 询问用药 用药的提问
关于用药建议的解答 说药 解答用药 用药的说明
关于就医建议的解答 叫去医院 解答就医 就医的说明
给出诊断 说是啥病 诊断 病名
非上述类型 客气 别的 无关
"""),
)
STATE = _named("""
yes 有 患有 是
no 没 没有 未患
unknown 不知 不明确 无法确定
other 别人 无关 独立
""")
EQUAL = (("一样不", "一样", "两样"), ("相同吗", "相同", "不同"), ("是不是一致", "是", "不是"))


def _quote(rng: random.Random, text: str) -> str:
    return rng.choice(("「{}」", "读{}", "{}，", "有话：{}")).format(text)


def word(rng: random.Random) -> Piece:
    kind = rng.choice(list(WORDS))
    named = rng.choice(WORDS[kind])
    v = rng.randrange(VARIANTS)
    return Piece(content="", question=f"{named}算{('啥', '哪类', '什么')[v]}", answer=NAMES[kind][v])


def pick_kind(rng: random.Random) -> Piece:
    kinds = rng.sample(list(WORDS), rng.choice((3, 4, 5)))
    listed = [rng.choice(WORDS[k]) for k in kinds]
    return Piece(content="", question=f"{'、'.join(listed)}里的{rng.choice(NAMES[kinds[0]])}", answer=listed[0])


def extract(rng: random.Random) -> Piece:
    scene = scenes.fill(rng, rng.choice(scenes.CLINICAL + scenes.UTTERANCES))
    present = list(dict.fromkeys(kind for _, kind in scene.mentions))
    kinds = rng.sample(present, min(len(present), rng.choice((1, 2)))) + rng.sample(list(WORDS), rng.choice((0, 1)))
    kinds = list(dict.fromkeys(kinds))
    rng.shuffle(kinds)
    form, v = rng.randrange(3), rng.randrange(VARIANTS)
    if form == 0:
        said = "、".join(f"{found}（{NAMES[kind][v]}）" for found, kind in scene.mentions)
        return Piece(content=scene.text, question=f"{_quote(rng, scene.text)}逐个说", answer=said)
    if form == 1:
        answer = "、".join(scene.of(kinds[0])) or "零"
        return Piece(content=scene.text, question=f"{_quote(rng, scene.text)}单挑{NAMES[kinds[0]][v]}", answer=answer)
    parts = [f"{NAMES[k][v]}有{'、'.join(scene.of(k)) or '零'}" for k in kinds]
    question = f"{_quote(rng, scene.text)}挑{'、'.join(NAMES[k][v] for k in kinds)}"
    return Piece(content=scene.text, question=question, answer="；".join(parts))


def relate(rng: random.Random) -> Piece:
    stated = rng.sample(list(scenes.RELATIONS), 2)
    sentence = scenes.related(rng, stated)
    asked = rng.choice((stated[:1], stated, stated[1:], rng.sample(list(scenes.RELATIONS), 1)))
    parts, v = [], rng.randrange(VARIANTS)
    for relation in asked:
        pairs = "、".join(f"{h}配{t}" for r, h, t in sentence.triples if r == relation)
        parts.append(f"{TAILS[relation][v]}是{pairs or '零'}")
    question = f"{_quote(rng, sentence.text)}找{'、'.join(TAILS[r][v] for r in asked)}"
    return Piece(content=sentence.text, question=question, answer="；".join(parts))


def rename(rng: random.Random) -> Piece:
    found = scenes.diagnosis(rng, rng.choice((1, 1, 2)))
    others = rng.sample(sorted(set(SYNONYMS.values()) - set(found.names)), rng.choice((1, 2, 3)))
    options = [*found.names, *others]
    rng.shuffle(options)
    if rng.random() < 0.4:
        common = rng.choice(list(SYNONYMS))
        return Piece(content="", question=f"{common}就是", answer=SYNONYMS[common])
    question = f"{_quote(rng, found.text)}在{'、'.join(options)}里叫"
    return Piece(content=found.text, question=question, answer="、".join(found.names))


def happen(rng: random.Random) -> Piece:
    hows = ("plain", "described", "placed", "denied", "unsure")
    events = [scenes.event(rng, rng.choice(hows)) for _ in range(rng.choice((1, 2, 2, 3)))]
    text = scenes.fill(rng, "患者{n}{unit}前").text + "，".join(words for words, _ in events) + "。"
    state = {"": "真", "否定": "没", "不确定": "疑"}
    parts = [f"{e.subject}（{state[e.state]}{''.join(('、', *e.descriptions, *e.places))}）" for _, e in events]
    return Piece(content=text, question=f"{_quote(rng, text)}说了啥", answer="；".join(parts))


def compare(rng: random.Random) -> Piece:
    if rng.random() < 0.3:
        a, b = scenes.narrowed(rng)
        if rng.random() < 0.5:
            return Piece(content=f"{a}|{b}", question=f"甲：{a}。乙：{b}。谁说得窄", answer="乙")
        return Piece(content=f"{b}|{a}", question=f"甲：{b}。乙：{a}。谁说得窄", answer="甲")
    pair = scenes.questions(rng, same_topic=rng.random() < 0.5, same_group=rng.random() < 0.5)
    ask, (how, equal, unequal) = rng.randrange(3), rng.choice(EQUAL)
    yes = (pair.same_topic, pair.same_group, pair.same_topic and pair.same_group)[ask]
    question = f"甲：{pair.first}。乙：{pair.second}。{('病', '问法', '全')[ask]}{how}"
    return Piece(content=f"{pair.first}|{pair.second}", question=question, answer=equal if yes else unequal)


def answered(rng: random.Random) -> Piece:
    pair = scenes.questions(rng, same_topic=rng.random() < 0.5, same_group=rng.random() < 0.7)
    said = scenes.reply(rng, pair.topics[1], pair.groups[1])
    how, equal, unequal = rng.choice(EQUAL)
    question = f"甲：{pair.first}。乙：{said}说的病{how}"
    return Piece(content=said, question=question, answer=equal if pair.same_topic else unequal)


def asked(rng: random.Random) -> Piece:
    group = rng.choice(list(QUESTIONS))
    topic = rng.choice(LISTS["topic"])
    text = rng.choice(QUESTIONS[group]).format(t=topic)
    v = rng.randrange(VARIANTS)
    question, answer = rng.choice(((("问啥", "意图", "目的")[v], ASKED[group][v]), ("说的是谁", topic)))
    return Piece(content="", question=f"{_quote(rng, text)}{question}", answer=answer)


def sort(rng: random.Random) -> Piece:
    table, called = rng.choice(tuple(zip((CRITERIA, SEARCHES, ACTS), CALLED, strict=True)))
    label = rng.choice(list(table))
    text = scenes.fill(rng, rng.choice(table[label])).text
    v = rng.randrange(VARIANTS)
    options = [called[t][v] for t in rng.sample([t for t in table if t != label], rng.choice((1, 2, 3, 4)))]
    fits = rng.random() < 0.9
    if fits:
        options.append(called[label][v])
    rng.shuffle(options)
    question = f"{_quote(rng, text)}{rng.choice(('归到', '是', '类别'))}{rng.choice('、，').join(options)}"
    return Piece(content=text, question=question, answer=called[label][v] if fits else "都不是")


def status(rng: random.Random) -> Piece:
    found = scenes.findings(rng, [rng.choice(scenes.STATUSES) for _ in range(rng.choice((1, 2, 3)))])
    v = rng.randrange(VARIANTS)
    parts = [f"{w}{STATE[s][v]}" for w, s in found.statuses]
    question = f"{found.text}\n{('查', '判断', '看')[v]}{'、'.join(w for w, _ in found.statuses)}"
    return Piece(content=found.text, question=question, answer="；".join(parts))


def current(rng: random.Random) -> Piece:
    scene = scenes.current(rng, rng.randrange(6))
    v = rng.randrange(VARIANTS)
    parts = [f"{w}{STATE[s][v]}" for w, s in scene.statuses]
    question = f"早先：{scene.history}\n这回：{scene.current}\n{('查', '判断', '看')[v]}这回"
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
    sections = dict(scene.sections)
    asked_of = {"主诉": "多久", "辅助检查": "验过啥", "既往史": "旧病", "诊断": "啥病", "建议": "吃啥"}
    names = rng.sample(list(asked_of), rng.choice((1, 2)))
    answers = []
    for name in names:
        text = sections[name].rstrip("。").removeprefix("曾患").removeprefix("口服")
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
    text = "".join(rng.choices(spellings, k=rng.randint(1, 6)))
    return Piece(content="", question=f"照抄{text}", answer=text)


def prose(rng: random.Random) -> Piece:
    text = rng.choice(PROSE)
    return Piece(content="", question="", answer=text)


MAKERS: tuple[tuple[Callable[[random.Random], Piece], int], ...] = (
    (word, 1), (pick_kind, 3), (extract, 12), (relate, 8), (rename, 5), (happen, 6), (compare, 11), (answered, 3),
    (asked, 2), (sort, 9), (status, 6), (current, 3), (fact, 3), (consult, 5), (talk, 3), (infer, 2), (mood, 2),
    (names, 4), (passage, 4), (shopping, 4), (points, 3), (old, 4), (prose, 4),
)  # fmt: skip


def pieces(rng: random.Random, spellings: Sequence[str], forbidden: str) -> Iterator[Piece]:
    """An endless stream of pieces, none about a sentence in ``forbidden`` (the prompts of dev and test splits)."""
    makers, weights = [m for m, _ in MAKERS], [w for _, w in MAKERS]
    while True:
        piece = spell(rng, spellings) if rng.random() < 0.1 else rng.choices(makers, weights)[0](rng)
        if not piece.content or not all(part in forbidden for part in piece.content.split("|")):
            yield replace(piece, cue=rng.choice(CUES) if piece.question else "")
