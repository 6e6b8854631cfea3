"""Annotated sentences and dialogues, filled with words of the lexicon, from which the examples are made.

A template has slots such as ``{symptom}`` or ``{symptom1}``: the name of a list in ``lexicon.LISTS``, with a number if
the same word is used again. Words of one list are distinct within a text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.sample.generate.lexicon import ANSWERS, FACTS, LISTS, QUESTIONS, SYNONYMS, WHO, WORDS, Fact

_SLOT = re.compile(r"\{([a-z_]+)(\d?)\}")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A text, the (word, kind) pairs of its slots in order, and the words of its numbered slots."""

    text: str
    mentions: tuple[tuple[str, str], ...]
    slots: dict[str, str] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[str]:
        """The distinct words of these kinds, in the order of the text."""
        return list(dict.fromkeys(word for word, kind in self.mentions if kind in kinds))


def fill(rng: random.Random, template: str, **given: str) -> Scene:
    """Fill a template's slots with random words. ``given`` has the words of some slots (``symptom1``, ``t``)."""
    slots = dict(given)
    mentions: list[tuple[str, str]] = []

    def word(match: re.Match[str]) -> str:
        kind, name = match[1], match[1] + match[2]
        chosen = slots.get(name)
        if chosen is None:
            used = {w for w, _ in mentions} | set(slots.values())
            chosen = rng.choice([w for w in LISTS[kind] if w not in used])
            if match[2]:
                slots[name] = chosen
        if kind in WORDS:
            mentions.append((chosen, kind))
        return chosen

    return Scene(text=_SLOT.sub(word, template), mentions=tuple(mentions), slots=slots)


CLINICAL = (
    "{disease}患者常有{symptom}和{symptom}，病变多在{part}。",
    "{drug}可用于治疗{microbe}引起的{disease}。",
    "医生为患者安排了{check}和{check}，排除{disease}。",
    "患者因{symptom}来{department}就诊，给予{drug}后{symptom}消失。",
    "{procedure}前应复查{check}，必要时使用{device}。",
    "感染{microbe}后可出现{symptom}，严重时发展为{disease}。",
    "{device}可以帮助{disease}患者，{procedure}也有效。",
    "{part}受累时多见{symptom}，应尽早做{check}。",
    "{department}建议{disease}患者接受{procedure}。",
    "{disease}伴{symptom}者可用{drug}或{drug}。",
    "{check}提示{disease}，给予{procedure}和{drug}。",
    "{part}出现{symptom}，考虑{microbe}感染。",
    "{disease}和{disease}都可引起{symptom}。",
    "{department}用{device}监测{part}，同时查{check}。",
)
UTTERANCES = (
    "宝宝{symptom}，可以吃{drug}吗",
    "孩子{symptom}还{symptom}，要不要用{drug_class}",
    "昨天做了{check}，现在还是{symptom}",
    "先去查{check}，再决定要不要{procedure}",
    "{drug}是{drug_class}，一天两次",
    "如果{symptom}加重就做{procedure}",
    "吃了{drug}和{drug}，{symptom}好多了",
    "{drug_class}先停了，{procedure}三天再看",
    "{check}没问题，不用{procedure}",
    "有没有{symptom}，做过{check}吗",
    "{procedure}以后{symptom}好一点，{drug}还要吃吗",
    "这是{symptom}引起的，吃{drug_class}就行",
)

# For each relation, clauses about a disease; the words of their slots are the tails of the relation.
RELATIONS: dict[str, tuple[str, ...]] = {
    "临床表现": ("常有{symptom1}和{symptom2}", "表现为{symptom1}", "可出现{symptom1}"),
    "药物治疗": ("可用{drug1}治疗", "首选{drug1}", "可服用{drug1}或{drug2}"),
    "病因": ("多由{microbe1}引起", "与{microbe1}感染有关"),
    "发病部位": ("主要累及{part1}", "病变位于{part1}"),
    "就诊科室": ("应到{department1}就诊", "由{department1}诊治"),
    "辅助检查": ("需要查{check1}", "可通过{check1}确诊"),
    "辅助治疗": ("可配合{procedure1}", "{procedure1}有一定帮助"),
    "并发症": ("容易并发{disease2}", "可并发{disease2}"),
}


@dataclass(frozen=True, kw_only=True)
class Related:
    """A sentence and its (relation, head, tail) triples, in the order of the text."""

    text: str
    triples: tuple[tuple[str, str, str], ...]


def related(rng: random.Random, relations: Sequence[str]) -> Related:
    """A sentence about one disease, with a clause for each relation."""
    head = rng.choice(WORDS["disease"])
    clauses, triples = [], []
    used: dict[str, str] = {"disease1": head}
    for relation in relations:
        scene = fill(rng, rng.choice(RELATIONS[relation]), **used)
        clauses.append(scene.text)
        triples += [(relation, head, word) for word, _ in scene.mentions]
    return Related(text=head + "，".join(clauses) + "。", triples=tuple(triples))


@dataclass(frozen=True, kw_only=True)
class Event:
    """A clinical finding event."""

    subject: str
    state: str = ""  # "", 否定 or 不确定
    descriptions: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


SIGNS = ("疼痛", "肿胀", "结节", "出血", "红肿", "压痛", "破损", "积液")


def event(rng: random.Random, how: str) -> tuple[str, Event]:
    """One finding as a phrase, and its annotation. how: plain, described, placed, denied or unsure."""
    symptom, degree = rng.choice(WORDS["symptom"]), rng.choice(LISTS["degree"])
    if how == "plain":
        return rng.choice(("出现", "伴")) + symptom, Event(subject=symptom)
    if how == "described":
        return rng.choice(("出现", "有")) + degree + symptom, Event(subject=symptom, descriptions=(degree,))
    if how == "placed":
        part, sign = rng.choice(WORDS["part"]), rng.choice(SIGNS)
        return part + degree + sign, Event(subject=sign, descriptions=(degree,), places=(part,))
    if how == "denied":
        return rng.choice(("无", "否认", "未见")) + symptom, Event(subject=symptom, state="否定")
    disease = rng.choice(WORDS["disease"])
    return rng.choice(("疑似", "考虑", "不排除")) + disease, Event(subject=disease, state="不确定")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Two questions, and whether they have the same topic and belong to the same group."""

    first: str
    second: str
    same_topic: bool
    same_group: bool
    topics: tuple[str, str]
    groups: tuple[str, str]


def questions(rng: random.Random, *, same_topic: bool, same_group: bool) -> Questions:
    """Two questions in different wordings, with the same or another topic and group."""
    one, two = rng.sample(LISTS["topic"], 2)
    g, h = rng.sample(list(QUESTIONS), 2)
    two, h = (one if same_topic else two), (g if same_group else h)
    first = rng.choice(QUESTIONS[g])
    second = rng.choice([form for form in QUESTIONS[h] if form != first])
    return Questions(
        first=first.format(t=one),
        second=second.format(t=two),
        same_topic=same_topic,
        same_group=same_group,
        topics=(one, two),
        groups=(g, h),
    )


def narrowed(rng: random.Random) -> tuple[str, str]:
    """A question, and the same question restricted to some people or some time."""
    topic, form = rng.choice(LISTS["topic"]), rng.choice(list(QUESTIONS.values()))
    wide, narrow = rng.choice(form), rng.choice(form)
    return wide.format(t=topic), narrow.format(t=rng.choice(WHO) + topic)


def reply(rng: random.Random, topic: str, group: str) -> str:
    """A sentence that answers a question of this group about this topic."""
    return fill(rng, ANSWERS[group].replace("{t}", topic)).text


STATUSES = ("yes", "no", "unknown", "other")
_TURNS = {
    "yes": ("患者：最近有点{f}", "医生：有{f}吗\n患者：有的", "患者：这几天一直{f}"),
    "no": ("患者：没有{f}", "医生：有{f}吗\n患者：没有", "患者：现在不{f}了"),
    "unknown": ("医生：有{f}吗\n患者：不清楚", "医生：会{f}吗\n患者：没注意过", "患者：不知道算不算{f}"),
    "other": ("患者：我{kin}以前有{f}", "医生：{f}大多和受凉有关", "医生：有的人会{f}"),
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A dialogue and the status of each finding, in the order of the text."""

    text: str
    statuses: tuple[tuple[str, str], ...]


def findings(rng: random.Random, statuses: Sequence[str]) -> Findings:
    """A dialogue with one finding of each status."""
    words = rng.sample(WORDS["symptom"], len(statuses))
    turns = [fill(rng, rng.choice(_TURNS[s]).replace("{f}", w)).text for w, s in zip(words, statuses, strict=True)]
    return Findings(text="\n".join(turns), statuses=tuple(zip(words, statuses, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Current:
    """A history, the current utterance, and the status of each symptom in the utterance."""

    history: str
    current: str
    statuses: tuple[tuple[str, str], ...]


def current(rng: random.Random, how: int) -> Current:
    """One of six situations; if the doctor asks again, the status follows from the history."""
    s = rng.sample(WORDS["symptom"], 3)
    stated = f"患者：宝宝{s[2]}{rng.choice(LISTS['n'])}{rng.choice(LISTS['unit'])}了"
    denied = rng.choice((f"患者：没有{s[2]}", f"患者：没{s[2]}"))
    lead = rng.choice(("医生：你好", "医生：多大了", "医生：哪里不舒服", "患者：医生在吗")) + "\n"
    ask, again = rng.choice(("医生：有{}吗", "医生：会不会{}")), rng.choice(("医生：{}还有吗", "医生：还是{}吗"))
    situations = (
        (stated, f"患者：还有{s[0]}", ((s[0], "yes"),)),
        (stated, f"患者：没有{s[0]}", ((s[0], "no"),)),
        (stated, ask.format(s[0]), ((s[0], "unknown"),)),
        (denied, f"患者：有{s[0]}，没有{s[1]}", ((s[0], "yes"), (s[1], "no"))),
        (stated, again.format(s[2]), ((s[2], "yes"),)),
        (denied, f"医生：有{s[0]}吗，不{s[2]}吧", ((s[0], "unknown"), (s[2], "no"))),
    )
    history, utterance, statuses = situations[how % len(situations)]
    return Current(history=lead + history, current=utterance, statuses=statuses)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A dialogue about a main symptom, and the doctor's next utterance."""

    history: str
    reply: str


def visit(rng: random.Random, stage: int) -> Visit:
    """The dialogue up to one of five stages; the reply depends on the stage and on ``FACTS``."""
    symptom = rng.choice(list(FACTS))
    fact = FACTS[symptom]
    n, unit = rng.choice(LISTS["n"]), rng.choice(LISTS["unit"])
    opening = f"患者：{symptom}，怎么办（{rng.choice('男女')}，{rng.choice(LISTS['year'])}岁）"
    asked = f"{opening}\n医生：您好，{symptom}多久了？\n患者：{n}{unit}了"
    heard = f"{asked}\n医生：有没有{fact.companion}？\n患者："
    stages = (
        (opening, f"您好，{symptom}多久了？"),
        (asked, f"有没有{fact.companion}？"),
        (heard + "有的", f"考虑{fact.disease}，建议查{fact.check}。"),
        (heard + "没有", f"可以先吃{fact.drug}观察。"),
        (f"{opening}\n患者：有{n}{unit}了，吃什么药好", f"可以吃{fact.drug}。"),
    )
    history, answer = stages[stage % len(stages)]
    return Visit(history=history, reply=answer)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A dialogue and its six sections."""

    dialogue: str
    sections: tuple[tuple[str, str], ...]


def report(rng: random.Random) -> Report:
    """A short consultation with all the facts of its report."""
    symptom = rng.choice(list(FACTS))
    fact: Fact = FACTS[symptom]
    n, unit = rng.choice(LISTS["n"]), rng.choice(LISTS["unit"])
    other = rng.choice([s for s in WORDS["symptom"] if s != symptom])
    has, past, check = rng.random() < 0.5, rng.choice(WORDS["disease"]), rng.choice(WORDS["check"])
    tested, ill = rng.random() < 0.5, rng.random() < 0.3
    drug = rng.choice((fact.drug, rng.choice(WORDS["drug"])))
    turns = [
        f"患者：宝宝{symptom}{n}{unit}了" + (f"，以前得过{past}" if ill else ""),
        f"医生：有{other}吗",
        "患者：" + ("有" if has else "没有") + (f"，做过{check}" if tested else ""),
        f"医生：考虑{fact.disease}，先吃{drug}",
    ]
    sections = (
        ("主诉", f"{symptom}{n}{unit}。"),
        ("现病史", f"患儿{symptom}{n}{unit}，{'有' if has else '无'}{other}。"),
        ("辅助检查", f"{check}。" if tested else "无。"),
        ("既往史", f"曾患{past}。" if ill else "不详。"),
        ("诊断", f"{fact.disease}。"),
        ("建议", f"口服{drug}。"),
    )
    return Report(dialogue="\n".join(turns), sections=sections)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A diagnosis in everyday words and its standard names."""

    text: str
    names: tuple[str, ...]


def diagnosis(rng: random.Random, n: int) -> Diagnosis:
    """One or two everyday words, joined, with a degree, a side or a group of patients."""
    words = rng.sample(list(SYNONYMS), n)
    head = rng.choice((*LISTS["degree"], *LISTS["side"], "产后", "老年", "小儿", "术后"))
    names = tuple(SYNONYMS[w] for w in words)
    return Diagnosis(text=head + rng.choice(("伴", "合并", "并发")).join(words), names=names)
