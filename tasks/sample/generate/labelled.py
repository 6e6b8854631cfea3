"""Sentences by label, for the tasks that ask for the type of a sentence. Slots have the format of ``scenes``."""

from __future__ import annotations

from typing import Final

Labelled = dict[str, tuple[str, ...]]

CRITERIA: Final[Labelled] = {
    "年龄": ("年龄{year}岁以上", "{year}岁以下的成年人", "受试者满{year}周岁", "年龄不超过{year}岁"),
    "疾病": ("患有{disease}或{disease}", "合并{disease}者", "既往有{disease}病史", "同时患{disease}的病人"),
    "药物": ("近{num}周服用过{drug}", "正在使用{drug}", "长期口服{drug_class}者", "{num}天内用过{drug_class}"),
    "治疗或手术": (
        "近{num}个月接受过{procedure}",
        "计划进行{procedure}的病人",
        "既往做过{part}手术",
        "{num}周内接受{procedure}者",
    ),
    "过敏耐受": ("对{drug}过敏者", "已知对{drug_class}不能耐受", "对{drug}有过敏史", "不耐受{drug}的病人"),
    "实验室检查": (
        "{check}检查明显异常",
        "{check}结果高于正常值{num}倍",
        "{check}低于正常下限",
        "{check}和{check}均在正常范围",
    ),
    "怀孕相关": ("怀孕{num}个月的妇女", "产后{num}周内的女性", "哺乳期未满{num}个月", "{num}个月内有怀孕计划"),
    "知情同意": (
        "{year}岁以上须本人签署同意书",
        "{kin}代为签字同意",
        "自愿参加并在{num}天内签字",
        "本人或{kin}签署知情同意书",
    ),
    "参与其它试验": (
        "{num}个月内参加过其他试验",
        "正在参与另一项{disease}研究",
        "近{num}周进入过别的药物试验",
        "曾参加{drug}的临床试验",
    ),
    "吸烟状况": ("每天吸烟{num}支以上", "吸烟超过{year}年", "戒烟不足{num}个月", "{num}周内仍在抽烟者"),
}

SEARCHES: Final[Labelled] = {
    "治疗方案": ("{topic}怎么治疗", "{topic}吃什么药", "{who}{topic}用什么办法好", "治{topic}的药有哪些"),
    "病因分析": ("{topic}是什么引起的", "{who}为什么会{topic}", "引起{topic}的原因", "怎么会得{topic}"),
    "注意事项": ("{topic}要注意什么", "{who}{topic}不能吃什么", "{topic}的饮食禁忌", "有{topic}能不能运动"),
    "后果表述": ("{topic}有什么危害", "{who}{topic}不治会怎样", "{topic}会有什么后果", "{topic}会影响寿命吗"),
    "医疗费用": ("治{topic}要花多少钱", "做{check}多少钱", "{procedure}的费用是多少", "看{topic}贵不贵"),
    "就医建议": ("{topic}挂什么科", "{who}{topic}去哪个医院", "有{topic}要不要去医院", "看{topic}找哪个科室"),
    "功效作用": ("{drug}有什么作用", "{drug}治什么病", "{drug_class}的功效", "吃{drug}有什么好处"),
    "指标解读": ("{check}偏高说明什么", "{check}低怎么看", "{check}正常值是多少", "{check}结果怎么读"),
    "病情诊断": (
        "{symptom}还{symptom}是什么病",
        "{symptom}是不是{disease}",
        "{part}不舒服又{symptom}是怎么了",
        "{symptom}会不会是{disease}",
    ),
    "非上述类型": ("{drug}哪个厂家的好", "{department}几点上班", "{device}在哪里买", "{department}的医生电话"),
}

ACTS: Final[Labelled] = {
    "关于症状的询问": ("有{symptom}吗", "{symptom}多久了", "晚上{symptom}厉害吗", "还有没有{symptom}"),
    "关于症状的回答": ("{symptom}{n}{unit}了", "没有{symptom}，就是{symptom}", "晚上{symptom}更厉害", "一直{symptom}"),
    "关于个人基本信息的询问": ("{kin}今年几岁了", "{kin}多大年纪", "体重是不是{year}公斤", "{kin}是男的女的"),
    "关于个人基本信息的回答": ("今年{age}岁", "体重{year}公斤", "我{kin}{year}岁", "男孩，{age}岁了"),
    "关于已有检查和治疗的提问": ("做过{check}吗", "之前吃过{drug}没有", "{check}结果怎么样", "用过{drug_class}吗"),
    "关于已有检查和治疗的回答": (
        "做过{check}了",
        "吃过{drug}，没有用",
        "{check}的结果正常",
        "已经用了{n}天{drug_class}",
    ),
    "关于用药建议的提问": ("能吃{drug}吗", "要不要用{drug_class}", "{drug}一次吃几片", "吃什么药治{symptom}"),
    "关于用药建议的解答": ("可以吃{drug}", "建议用{drug_class}", "{drug}一次吃{n}片", "{symptom}就吃{drug}"),
    "关于就医建议的解答": ("建议去{department}看看", "先到医院查{check}", "最好去做{check}", "{symptom}加重就去医院"),
    "给出诊断": ("考虑是{disease}", "这是{disease}", "应该是{disease}引起的{symptom}", "可能得了{disease}"),
    "非上述类型": (
        "谢谢{department}的医生",
        "您好，我是{department}医生",
        "好的，{n}{unit}后再联系",
        "不客气，祝{kin}早日康复",
    ),
}
