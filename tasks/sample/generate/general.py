"""Everyday words, sentences and dialogues: the general language of the sample, for the Firefly kinds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from tasks.sample.generate.lexicon import words


def _pairs(text: str) -> dict[str, str]:
    return dict(item.split(":") for item in text.split())


SURNAMES: Final = "王李张刘陈杨赵黄周吴徐孙马朱胡林郭何高罗"
GIVEN: Final = words("小明 建国 丽华 志强 秀英 海燕 文静 子涵 雨桐 国庆 春梅 晓东 思远 美玲 永康 佳怡")
PLACES: Final = words("北京 上海 广州 成都 南京 杭州 西安 武汉 青岛 昆明 长沙 桂林 苏州 厦门 拉萨 大连 哈尔滨 兰州")
ORGS: Final = words("大学 图书馆 人民医院 博物馆 电视台 动物园 师范学院 体育馆 植物园 音乐学院 科技公司 旅行社")
JOBS: Final = words("老师 医生 司机 厨师 画家 记者 农民 工程师 歌手 律师")
YEARS: Final = words("1978年 1985年 1990年 1996年 2001年 2005年 2008年 2012年 2016年 2019年")

# For each action a statement that follows from it, one that contradicts it, and one that is undecided.
ACTIONS: Final = (
    ("在公园跑步", "在运动", "在家睡觉", "跑了五公里"),
    ("在厨房炒菜", "在做饭", "在外面散步", "做的是鱼"),
    ("在教室写作业", "在学习", "在操场踢球", "作业很难"),
    ("买了三斤苹果", "买了水果", "什么都没买", "花了二十元"),
    ("坐火车回家", "在路上", "没有出门", "带了礼物"),
    ("养了一只猫", "有宠物", "不养动物", "猫是白色的"),
    ("弹了一下午钢琴", "会乐器", "不懂音乐", "要参加比赛"),
    ("把杯子打破了", "弄坏了东西", "杯子还好好的", "杯子是新的"),
    ("给妈妈打电话", "联系了家人", "没有和家人说话", "说了一小时"),
    ("骑车去上班", "有工作", "整天待在家里", "路上堵车"),
    ("在河边钓鱼", "在户外", "在办公室开会", "钓到一条大鱼"),
    ("读完了一本小说", "看了书", "从来不看书", "小说很厚"),
    ("种了两棵桃树", "种了树", "把树全砍了", "明年会开花"),
    ("发烧请了假", "身体不舒服", "身体很健康", "要休息三天"),
    ("考了全班第一", "成绩很好", "考试没及格", "得到了奖品"),
    ("洗了所有衣服", "做了家务", "一点家务也没做", "用的是洗衣机"),
)  # fmt: skip
WHEN: Final = words("今天 昨天 早上 下午 周末 刚才")

GOODS: Final = words("手机 耳机 酒店 外卖 衣服 鞋子 书 餐厅 电脑 水果 背包 电影 快递 面包")
ASPECTS: Final = words("质量 价格 服务 味道 包装 速度 样子 做工 客服 环境")
PRAISE: Final = words("很好 不错 让人满意 非常棒 超出期待 很划算 值得推荐 挺舒服 很贴心 令人惊喜")
BLAME: Final = words("很差 太糟了 让人失望 不值 非常烂 很难用 不会再买 太坑人 令人生气 一塌糊涂")

# Everyday questions: the wordings of a tuple have the same meaning, and {x} is a thing or a place.
MEANINGS: Final = (
    ("{x}多少钱", "{x}什么价格", "买{x}要花多少"),
    ("{x}在哪里买", "哪儿能买到{x}", "去什么地方买{x}"),
    ("{x}坏了怎么办", "{x}出问题怎么处理", "怎样修{x}"),
    ("{x}什么时候到货", "{x}哪天能到", "{x}几号到"),
    ("{x}能退吗", "可以退{x}吗", "{x}支持退货吗"),
    ("哪种{x}好", "{x}选什么牌子", "推荐一款{x}"),
    ("{x}怎么用", "如何使用{x}", "{x}的使用方法"),
    ("{x}是真的吗", "{x}是不是正品", "{x}会不会是假货"),
)  # fmt: skip

FIELDS: Final = {
    "农业": words("水稻 小麦 土壤 灌溉 施肥 产量 病虫害 种子"),
    "计算机": words("神经网络 数据库 图像识别 操作系统 加密算法 云计算 搜索引擎 机器翻译"),
    "环境": words("水污染 垃圾分类 空气质量 温室气体 湿地 酸雨 噪声 太阳能"),
    "经济": words("通货膨胀 利率 消费 就业 出口 税收 房价 股票"),
    "教育": words("课堂教学 阅读能力 学习兴趣 作文 家庭教育 考试 留学 教材"),
}
STUDY: Final = (
    "本文研究了{a}与{b}的关系。",
    "利用{a}方法分析{b}的变化，结果表明{c}也有影响。",
    "为了提高{a}，本文从{b}和{c}两方面进行讨论。",
    "随着{a}的发展，{b}受到重视。",
    "调查显示，{a}、{b}和{c}三者密切相关。",
)

SUBJECTS: Final = _pairs("吾:我 汝:你 彼:他 先生:老师 童子:孩子 客:客人 农夫:农民 老翁:老人")
VERBS: Final = _pairs("观:看 闻:听 食:吃 饮:喝 得:得到 失:失去 寻:寻找 畏:害怕 爱:喜爱 弃:抛弃 取:拿 市:买")
OBJECTS: Final = _pairs("犬:狗 酒:美酒 书:书本 舟:小船 豕:猪 日:太阳 鱼:鱼儿 履:鞋子 箭:弓箭 花:花朵 羹:汤 钱:钱财")
TIMES: Final = _pairs("昔:从前 今:现在 旦:早晨 暮:傍晚 明日:明天 昨夜:昨天夜里")
PLACES_OLD: Final = _pairs("于市:在集市上 于野:在野外 于山中:在山里 于江上:在江面上 于室:在屋里 于道:在路上")

# Opposite or parallel words: where the first line of a couplet has the key, the second has the value.
PARALLEL: Final = _pairs(
    "天:地 云:雨 春:秋 山:水 日:月 风:雪 花:鸟 红:绿 东:西 高:深 来:去 "
    "千:万 大:长 飞:流 青:白 开:落 南:北 江:海 松:竹 暖:寒 晨:夜 笑:歌"
)
LINES: Final = (
    "adnv", "nvan", "anav", "nnvv", "dnva", "anvan", "nvdan", "danva", "annva", "vnanv", "ananv", "dnvan",
)  # fmt: skip
CLASSES: Final = {"n": "天云春山日风花江松晨", "a": "红青高大暖", "d": "东南千", "v": "来飞开笑"}


@dataclass(frozen=True, kw_only=True)
class News:
    """A sentence and the names in it."""

    text: str
    people: list[str]
    places: list[str]
    organisations: list[str]


def person(rng: random.Random) -> str:
    return rng.choice(SURNAMES) + rng.choice(GIVEN)


def organisation(rng: random.Random) -> str:
    return rng.choice(PLACES) + rng.choice(ORGS)


def news(rng: random.Random) -> News:
    """A sentence about people, places and organisations (a place within an organisation's name does not count)."""
    p, q = person(rng), person(rng)
    a, b = rng.sample(PLACES, 2)
    o = organisation(rng)
    options: tuple[tuple[str, list[str], list[str], list[str]], ...] = (
        (f"{p}昨天从{a}来到{b}参加会议。", [p], [a, b], []),
        (f"{o}请来了{rng.choice(JOBS)}{p}。", [p], [], [o]),
        (f"{p}和{q}在{o}见了面。", [p, q], [], [o]),
        (f"{o}将在{a}举办展览。", [], [a], [o]),
        (f"{p}是{a}人，现在{o}工作。", [p], [a], [o]),
        (f"今年去{a}和{b}旅游的人很多。", [], [a, b], []),
        (f"{rng.choice(JOBS)}{p}获得了奖励。", [p], [], []),
    )
    text, people, places, organisations = rng.choice(options)
    return News(text=text, people=list(dict.fromkeys(people)), places=places, organisations=organisations)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A short text, a question about it, and the answer, which is a part of the text."""

    text: str
    question: str
    answer: str


def passage(rng: random.Random) -> Passage:
    """A short biography and one of four questions."""
    name, place, job, year, org = (
        person(rng), rng.choice(PLACES), rng.choice(JOBS), rng.choice(YEARS), organisation(rng),
    )  # fmt: skip
    text = f"{name}{year}出生在{place}，毕业于{org}，后来当了{job}。"
    friend = person(rng)
    if friend != name and rng.random() < 0.5:
        text += f"他和{friend}是朋友。"
    pairs = (
        (f"{name}是哪年出生的？", year),
        (f"{name}出生在哪里？", place),
        (f"{name}毕业于什么地方？", org),
        (f"{name}做什么工作？", job),
    )
    question, answer = rng.choice(pairs)
    return Passage(text=text, question=question, answer=answer)


def study(rng: random.Random) -> tuple[str, list[str]]:
    """A sentence of an abstract and its keywords."""
    a, b, c = rng.sample(rng.choice(list(FIELDS.values())), 3)
    template = rng.choice(STUDY)
    return template.format(a=a, b=b, c=c), [a, b, c] if "{c}" in template else [a, b]


def classical(rng: random.Random) -> tuple[str, str]:
    """A sentence in classical Chinese, and its translation into modern Chinese, word by word."""
    subject, verb, thing = rng.choice(list(SUBJECTS)), rng.choice(list(VERBS)), rng.choice(list(OBJECTS))
    when = rng.choice(["", *TIMES])
    where = rng.choice(["", *PLACES_OLD])
    old = when + subject + verb + thing + where
    new = TIMES.get(when, "") + SUBJECTS[subject] + PLACES_OLD.get(where, "") + VERBS[verb] + OBJECTS[thing]
    return old + "。", new + "。"


def couplet(rng: random.Random) -> tuple[str, str]:
    """The first line of a couplet, and the second line, which matches it character by character."""
    first = "".join(rng.choice(CLASSES[c]) for c in rng.choice(LINES))
    return first, "".join(PARALLEL[c] for c in first)
