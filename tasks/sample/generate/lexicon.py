"""Common medical words and small tables of related words: the medical language of the sample.

The tables are simplified on purpose. They are not medical advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Kinds = dict[str, tuple[str, ...]]


def words(text: str) -> tuple[str, ...]:
    """The words of a text, separated by spaces."""
    return tuple(text.split())


WORDS: Final[Kinds] = {
    "symptom": words(
        "咳嗽 发热 头痛 头晕 恶心 呕吐 腹泻 腹痛 腹胀 便秘 胸闷 胸痛 心悸 气短 乏力 失眠 耳鸣 鼻塞 流涕 咽痛 "
        "皮疹 瘙痒 水肿 盗汗 口干 口苦 反酸 嗳气 厌食 消瘦 "
        "抽搐 麻木 腰痛 尿频 尿急 便血 咯血 声音嘶哑 打喷嚏 畏寒"
    ),
    "disease": words(
        "肺炎 支气管炎 哮喘 肺结核 感冒 咽炎 鼻炎 中耳炎 胃炎 胃溃疡 "
        "肠炎 阑尾炎 肝炎 胆囊炎 胰腺炎 肾炎 膀胱炎 高血压 "
        "冠心病 心肌炎 贫血 糖尿病 甲亢 痛风 湿疹 荨麻疹 水痘 "
        "麻疹 手足口病 脑膜炎 癫痫 关节炎 骨质疏松 结膜炎 白内障 痔疮"
    ),
    "drug": words(
        "阿莫西林 布洛芬 阿司匹林 头孢克肟 蒙脱石散 奥美拉唑 二甲双胍 "
        "硝苯地平 氯雷他定 对乙酰氨基酚 氨溴索 奥司他韦 青霉素 "
        "红霉素 阿奇霉素 多潘立酮 胰岛素 地塞米松 沙丁胺醇 左氧氟沙星 "
        "利巴韦林 乳果糖 甘草片 叶酸 硝酸甘油 西替利嗪"
    ),
    "drug_class": words(
        "抗生素 退烧药 止咳药 益生菌 抗病毒药 止泻药 抗过敏药 维生素 化痰药 降压药 激素 消炎药 止痛药 胃药"
    ),
    "check": words(
        "血常规 尿常规 便常规 胸片 心电图 血糖 肝功能 肾功能 血压 胃镜 "
        "肠镜 腹部彩超 脑电图 血沉 血脂 骨密度 尿酸 肺功能 "
        "过敏原检查 核磁共振"
    ),
    "procedure": words("输液 雾化 手术 透析 化疗 放疗 灌肠 洗胃 按摩 针灸 热敷 吸氧 导尿 拔牙 缝合 接种疫苗 换药 理疗"),
    "part": words(
        "肺部 胃部 肝脏 心脏 肾脏 大脑 鼻腔 咽喉 眼睛 耳朵 皮肤 关节 小腿 手指 膝盖 腰部 胸部 颈部 口腔 脚踝"
    ),
    "department": words(
        "呼吸科 消化科 心内科 儿科 皮肤科 眼科 耳鼻喉科 骨科 神经科 泌尿科 内分泌科 急诊科 口腔科 妇产科"
    ),
    "microbe": words(
        "流感病毒 肺炎球菌 幽门螺杆菌 大肠杆菌 结核杆菌 轮状病毒 链球菌 支原体 葡萄球菌 疱疹病毒 真菌 沙门氏菌"
    ),
    "device": words("呼吸机 血压计 体温计 助听器 轮椅 监护仪 血糖仪 起搏器 雾化器 超声仪 石膏 支架"),
}

# Everyday words and their standard names (CHIP-CDN).
SYNONYMS: Final[dict[str, str]] = {
    "血压高": "高血压", "血糖高": "糖尿病", "伤风": "感冒", "拉肚子": "腹泻", "发烧": "发热", "烂胃": "胃溃疡",
    "肺部发炎": "肺炎", "气管发炎": "支气管炎", "肝脏发炎": "肝炎", "肾脏发炎": "肾炎", "嗓子发炎": "咽炎",
    "鼻子发炎": "鼻炎", "耳朵发炎": "中耳炎", "肠子发炎": "肠炎", "胆囊发炎": "胆囊炎", "盲肠炎": "阑尾炎",
    "气喘病": "哮喘", "肺痨": "肺结核", "血色素低": "贫血", "尿酸高": "痛风", "羊癫疯": "癫痫", "红眼病": "结膜炎",
    "风疹块": "荨麻疹", "关节发炎": "关节炎", "骨头疏松": "骨质疏松", "甲状腺亢进": "甲亢", "睡不着": "失眠",
    "肚子痛": "腹痛", "肚子胀": "腹胀", "头疼": "头痛", "脑袋晕": "头晕", "大便干": "便秘", "大便带血": "便血",
    "心慌": "心悸", "身上痒": "瘙痒", "浮肿": "水肿", "夜里出汗": "盗汗", "没胃口": "厌食", "嗓子疼": "咽痛",
    "流鼻涕": "流涕", "腰疼": "腰痛", "怕冷": "畏寒",
    "耳朵响": "耳鸣", "没力气": "乏力", "胸口疼": "胸痛", "咳血": "咯血",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fact:
    """The words that go with a main symptom in dialogues and reports."""

    companion: str  # the second symptom that a doctor asks about
    drug: str
    check: str
    disease: str


def _fact(text: str) -> Fact:
    companion, drug, check, disease = text.split()
    return Fact(companion=companion, drug=drug, check=check, disease=disease)


FACTS: Final[dict[str, Fact]] = {
    "咳嗽": _fact("发热 氨溴索 胸片 支气管炎"),
    "发热": _fact("畏寒 布洛芬 血常规 感冒"),
    "头痛": _fact("恶心 阿司匹林 核磁共振 高血压"),
    "头晕": _fact("乏力 硝苯地平 血压 高血压"),
    "呕吐": _fact("腹痛 多潘立酮 胃镜 胃炎"),
    "腹泻": _fact("呕吐 蒙脱石散 便常规 肠炎"),
    "腹痛": _fact("腹泻 奥美拉唑 腹部彩超 胃溃疡"),
    "腹胀": _fact("嗳气 多潘立酮 胃镜 胃炎"),
    "便秘": _fact("便血 乳果糖 肠镜 痔疮"),
    "胸闷": _fact("气短 硝酸甘油 心电图 冠心病"),
    "气短": _fact("咳嗽 沙丁胺醇 肺功能 哮喘"),
    "鼻塞": _fact("流涕 氯雷他定 过敏原检查 鼻炎"),
    "咽痛": _fact("声音嘶哑 阿莫西林 血常规 咽炎"),
    "皮疹": _fact("瘙痒 西替利嗪 过敏原检查 湿疹"),
    "水肿": _fact("腰痛 地塞米松 肾功能 肾炎"),
    "尿频": _fact("尿急 左氧氟沙星 尿常规 膀胱炎"),
    "口干": _fact("消瘦 二甲双胍 血糖 糖尿病"),
    "反酸": _fact("腹胀 奥美拉唑 胃镜 胃炎"),
    "乏力": _fact("头晕 叶酸 血常规 贫血"),
    "抽搐": _fact("发热 地塞米松 脑电图 癫痫"),
}

# Questions by group: all wordings of a group ask the same, and {t} is a disease or a symptom.
QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "cure": ("{t}怎么治疗", "{t}怎么治", "如何治疗{t}", "{t}怎样才能治好"),
    "drug": ("{t}吃什么药", "{t}用什么药好", "{t}该服用什么药物", "治{t}的药有哪些"),
    "cause": ("{t}是什么引起的", "{t}是什么原因", "引起{t}的原因", "为什么会有{t}"),
    "diet": ("{t}不能吃什么", "{t}的饮食禁忌", "{t}要忌口什么", "有{t}吃什么不好"),
    "care": ("{t}要注意什么", "{t}的注意事项", "有{t}该注意些什么", "{t}平时怎么护理"),
    "harm": ("{t}有什么危害", "{t}不治会怎样", "{t}会有什么后果", "{t}的危害"),
    "cost": ("治{t}要花多少钱", "{t}的治疗费用", "看{t}大概多少钱", "{t}治好花费多少"),
    "where": ("{t}挂什么科", "{t}看哪个科", "有{t}去什么科室", "{t}属于哪个科"),
    "infect": ("{t}会传染吗", "{t}传染不传染", "{t}有没有传染性", "{t}能传给别人吗"),
    "time": ("{t}多久能好", "{t}几天能好", "{t}要多长时间才好", "{t}什么时候能好"),
}
ANSWERS: Final[dict[str, str]] = {
    "cure": "治疗{t}要听医生的安排，多数人可以治好。",
    "drug": "{t}可以在医生指导下服用{drug}。",
    "cause": "{t}多由{microbe}感染引起。",
    "diet": "有{t}时忌辛辣油腻，饮食要清淡。",
    "care": "{t}期间多休息，注意保暖。",
    "harm": "{t}长期不治会影响健康。",
    "cost": "{t}的费用大约{n}百元。",
    "where": "{t}可以到{department}就诊。",
    "infect": "{t}一般不会传染给家人。",
    "time": "{t}大约{n}天可以好转。",
}
WHO: Final = ("小儿", "老年人", "孕妇", "婴儿", "夏天", "冬天", "晚上", "产后", "青少年", "术后")
LISTS: Final[dict[str, tuple[str, ...]]] = {
    **WORDS,
    "topic": WORDS["disease"] + WORDS["symptom"],
    "n": words("一 二 三 四 五 六 七 八 九 十"),
    "unit": words("天 周 个月"),
    "degree": words("轻度 中度 重度 持续 反复 间断 阵发性 剧烈 明显"),
    "side": words("左侧 右侧 双侧"),
    "who": WHO,
    "kin": words("妈妈 爸爸 奶奶 爷爷 姐姐 弟弟 外婆 同事"),
    "age": words("两 三 四 五 六 七 八 九 十 十二 十五 二十 三十 四十 五十 六十"),
    "year": words("18 20 25 30 35 40 45 50 55 60 65 70 75 80"),
    "num": words("1 2 3 4 5 6 7 8 9 10"),
}
