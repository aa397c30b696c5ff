"""What is said of a phantom: the nine class texts, and other sentences for the same nine kinds."""

import json
from pathlib import Path

import torch

from .findings import KINDS

CLASS_TEXTS = Path(__file__).resolve().parents[2] / "class_texts_hip_prosthesis.json"

# Sentences besides the nine descriptions. Short names first; users ask in either way.
PARAPHRASES = {
    "native": [
        "自然髋关节",
        "自体髋关节",
        "无假体的髋关节",
        "正常髋关节，未行关节置换",
        "未见人工关节",
        "髋关节骨质结构完整，未见金属植入物",
        "股骨头及股骨颈完整，无人工髋关节假体",
    ],
    "normal": [
        "正常假体",
        "假体正常",
        "假体位置良好",
        "假体在位，未见松动",
        "假体稳定",
        "人工髋关节未见异常",
        "髋关节置换术后，假体位置良好，未见松动、骨折或感染征象",
        "人工关节置换术后改变，假体与骨质贴合良好",
    ],
    "stem_loose": [
        "股骨柄松动",
        "股骨假体松动",
        "假体柄松动",
        "股骨侧假体松动",
        "股骨柄周围透亮线",
        "股骨柄与骨质之间可见透亮带",
        "股骨柄周围出现连续透亮线，提示松动",
        "股骨干内假体柄旁透亮影，考虑松动",
    ],
    "cup_loose": [
        "髋臼杯松动",
        "髋臼假体松动",
        "髋臼侧假体松动",
        "臼杯松动",
        "髋臼杯周围透亮线",
        "髋臼杯与髋臼骨质之间可见弧形透亮带",
        "髋臼杯周围出现连续透亮线，提示松动",
        "臼杯骨床间透亮影，考虑松动",
    ],
    "dislocation": [
        "假体脱位",
        "人工髋关节脱位",
        "髋关节假体脱位",
        "股骨头脱出髋臼杯",
        "全髋置换术后脱位",
        "人工股骨头不在髋臼杯内",
        "股骨头与髋臼杯失去对应关系，考虑脱位",
    ],
    "fracture": [
        "假体周围骨折",
        "股骨假体周围骨折",
        "股骨骨折",
        "假体旁骨折",
        "骨皮质中断，可见骨折线",
        "假体周围股骨可见骨折线",
        "股骨柄旁骨折，断端移位",
    ],
    "infection": [
        "假体周围感染",
        "假体感染",
        "人工关节感染",
        "感染",
        "假体周围骨质破坏伴骨膜反应",
        "虫蚀样骨质破坏及软组织积气，提示感染",
        "假体周围骨溶解边界不清，伴骨膜反应，考虑感染",
    ],
    "wear": [
        "聚乙烯磨损",
        "内衬磨损",
        "聚乙烯内衬磨损",
        "衬垫磨损",
        "股骨头在髋臼杯内偏心",
        "人工股骨头偏心上移，提示内衬磨损",
        "髋臼杯周围骨溶解，股骨头偏心，考虑聚乙烯磨损",
    ],
    "spacer": [
        "骨水泥间隔器",
        "间隔器",
        "抗生素骨水泥间隔器",
        "骨水泥占位器",
        "间隔器植入术后",
        "假体取出后骨水泥间隔器在位",
        "髋关节内见骨水泥间隔器影",
    ],
}
EITHER_LOOSENING = ["假体松动", "人工关节松动", "假体周围透亮线，提示松动", "髋关节假体松动", "松动"]
TEMPLATES = ["{}", "{}", "{}", "X光片显示{}", "髋关节正位片：{}", "这是一张{}的X光片", "影像提示{}", "{}的影像表现"]


def class_texts():
    """The nine short names and descriptions, in the order of KINDS: {name: description}."""
    return json.loads(CLASS_TEXTS.read_text(encoding="utf-8"))


def short_name(kind):
    return list(class_texts())[KINDS.index(kind)]


def sample_texts(rng):
    """A sentence for each kind, sometimes one for both loosenings. Returns texts [T] and column [9]: kind -> text."""
    described = dict(zip(KINDS, class_texts().values(), strict=True))
    texts, column = [], []
    either = rng.random() < 0.25
    for kind in KINDS:
        if either and kind == "cup_loose":  # shares the sentence before it, "loosening"
            column.append(len(texts) - 1)
            continue
        words = EITHER_LOOSENING if either and kind == "stem_loose" else PARAPHRASES[kind]
        text = described[kind]
        if words is EITHER_LOOSENING or rng.random() < 0.6:
            text = words[rng.integers(len(words))]
            text = TEMPLATES[rng.integers(len(TEMPLATES))].format(text)
        column.append(len(texts))
        texts.append(text)
    return texts, torch.tensor(column)
