"""Classes of several descriptions, and templates: what may be written, and that each class is one mean direction."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from test_command_line import flags, home  # noqa: F401 (fixtures)
from tiny import load_with_text_features, tiny_result
from torch.nn import functional as F

from clip_gradcam_visualization import explain, main
from models import class_texts
from models.cases.texts import TextLookup
from models.class_texts import names_and_texts, read_class_texts, same_texts
from models.errors import InputError, InputWarning
from models.explain.question import Question
from models.loading.load import embed_texts, load_clip_checkpoint
from models.results.brief import brief
from models.results.result import Results
from models.runs.settings import check_settings
from models.towers import similarity

ENSEMBLE = {
    "正常": "关节间隙正常。",
    "松动": ["周围可见透亮线。", "假体移位。", "骨水泥断裂。"],
    "感染": ["骨膜反应。"],
}
WRITTEN = {
    "a list": (["甲", "乙"], (), ["甲", "乙"], ["甲", "乙"]),
    "one text": ("甲", (), ["甲"], ["甲"]),
    "mixed": (ENSEMBLE, (), list(ENSEMBLE), ["关节间隙正常。", tuple(ENSEMBLE["松动"]), "骨膜反应。"]),
    "without names": ([("甲", "乙"), "丙"], (), ["甲", "丙"], [("甲", "乙"), "丙"]),
    "a template": ({"甲": "一"}, "一张{}的片", ["甲"], ["一张一的片"]),
    "names stay": (["一"], ["{}。", "有{}"], ["一"], [("一。", "有一")]),
    "each in each": ({"甲": ["一", "二"]}, ("{}。", "有{}"), ["甲"], [("一。", "有一", "二。", "有二")]),
    "other braces are letters": (["a{}b{0}"], "{{}}", ["a{}b{0}"], ["{a{}b{0}}"]),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_names_and_what_the_model_reads(case):
    written, templates, names, texts = WRITTEN[case]
    assert names_and_texts(written, templates) == (names, texts)


REFUSED = {
    "a description twice": ({"甲": ["一", "二", "一"]}, (), "'甲' 的第 3 个描述.*相同"),
    "twice in templates": ({"甲": ["一一", "一"]}, ("{}", "一{}"), "'甲' 的第 2 个描述.*相同"),
    "none": ({"甲": []}, (), "'甲' 没有描述"),
    "a blank": ({"甲": ["一", " "]}, (), "'甲' 的第 2 个描述应是非空"),
    "a number": ([["一", 3]], (), "'一' 的第 2 个描述.*3"),
    "a list in a list": ({"甲": ["一", ["二"]]}, (), "'甲' 的第 2 个描述"),
    "too long": ({"甲": ["一", "x" * 10_001]}, (), "'甲' 的第 2 个描述有 10001 个字符"),
    "too long in a template": ({"甲": "x" * 9_999}, "{}两个", "'甲' 的描述有 10001 个字符"),
    "a surrogate": ({"甲": ["\ud800", "一"]}, (), "'甲' 的第 1 个描述含有无效的字符"),
    "a surrogate in a template": ({"甲": "一"}, "{}\udcff", "'甲' 的描述含有无效的字符"),
    "too many": ({str(n): [str(i) for i in range(101)] for n in range(100)}, (), "10100 段，至多 10000 段"),
    "too many in templates": ({"甲": [str(n) for n in range(5001)]}, ("{}", "{}。"), "10002 段"),
    "too much": ({"甲": ["x" * 9_000 + str(n) for n in range(600)]}, (), "至多 5000000 个"),
    "no hole": (["一"], "一张片", "恰好有一个 {}.*'一张片'"),
    "two holes": (["一"], ["{}和{}"], "恰好有一个 {}"),
    "a numbered hole": (["一"], ["{0}"], "恰好有一个 {}"),
    "a template that is no text": (["一"], [3], "恰好有一个 {}.*3"),
    "templates that are no list": (["一"], 3, "文本的列表，收到 int"),
    "a template twice": (["一"], ["{}。", "{}。"], "模板 '{}。' 出现了两次"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_one_line_with_its_place(case):
    written, templates, expected = REFUSED[case]
    with pytest.raises(InputError) as caught:
        names_and_texts(written, templates)
    assert re.search(expected, str(caught.value)) and len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_file_of_lists_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ENSEMBLE, ensure_ascii=False), encoding="utf-8")
    assert read_class_texts(tmp_path / "a.json") == ENSEMBLE


# -- features ---------------------------------------------------------------------------------


def by_hand(model, descriptions):
    """As OpenAI's notebook makes its ensembles."""
    features = torch.cat([embed_texts(model, [description]) for description in descriptions])
    features = (features / features.norm(dim=-1, keepdim=True)).mean(0)
    return features / features.norm()


def test_a_class_is_the_mean_direction_of_its_descriptions(clip):
    features = embed_texts(clip, names_and_texts(ENSEMBLE)[1])
    expected = [by_hand(clip, [text] if isinstance(text, str) else text) for text in ENSEMBLE.values()]
    torch.testing.assert_close(features, torch.stack(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    turned = {"松动": ENSEMBLE["松动"][::-1]}
    torch.testing.assert_close(embed_texts(clip, [turned["松动"]])[0], features[1], rtol=0, atol=1e-6)
    apart = F.cosine_similarity(features[1], embed_texts(clip, ["假体移位。"])[0], dim=0)
    assert apart < 1 - 1e-4  # the mean is none of them


def test_a_list_of_one_is_the_text_bit_for_bit(clip):
    one, alone = {"甲": ["一"], "乙": ["二。"]}, {"甲": "一", "乙": "二。"}
    assert names_and_texts(one) == names_and_texts(alone)
    assert torch.equal(clip.precompute_class_text_features(one), clip.precompute_class_text_features(alone))


def test_python_takes_descriptions_and_templates_everywhere(clip, checkpoint, picture):
    templates = ["一张{}的X光片", "可见{}"]
    expected = embed_texts(clip, names_and_texts(ENSEMBLE, templates)[1])
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(clip.precompute_class_text_features(ENSEMBLE, templates), expected)
    probabilities = clip.predict(images, text_features=expected)[1]
    assert torch.equal(clip.predict(images, ENSEMBLE, text_templates=templates)[1], probabilities)
    torch.testing.assert_close(clip.forward(images, names_and_texts(ENSEMBLE, templates)[1]).softmax(1), probabilities)
    loaded = load_clip_checkpoint(checkpoint, texts=ENSEMBLE, text_templates=templates).class_text_features
    assert torch.equal(loaded, expected)
    arguments = {"img_size": 64, "target_text_idx": 1}
    result = explain(clip, picture, ENSEMBLE, text_templates=templates, **arguments)
    same = explain(clip, picture, ENSEMBLE, text_templates=templates, text_features=expected, **arguments)
    assert np.array_equal(result.maps, same.maps) and len(result.maps) == 1
    assert result.names == list(ENSEMBLE) and len(result.texts[1]) == 6 and len(result.similarities) == 3


def test_many_descriptions_go_through_the_tower_in_turn(clip, monkeypatch):
    texts = [tuple(f"描述{n}号{i}" for i in range(3)) for n in range(4)]
    expected, counts = embed_texts(clip, texts), []
    monkeypatch.setattr(similarity, "TEXTS_AT_ONCE", 5)
    genuine = clip.text_encoder.forward
    monkeypatch.setattr(clip.text_encoder, "forward", lambda texts: counts.append(len(texts)) or genuine(texts))
    torch.testing.assert_close(embed_texts(clip, texts), expected, rtol=0, atol=1e-6)
    assert counts == [5, 5, 2]


def test_each_description_that_is_cut_is_warned_of_on_a_hit_too(checkpoint):
    texts = {"松动": ["透亮线可见。" * 40, "移位。", "断裂可见。" * 40], "正常": "间隙正常。" * 40}
    heard = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_with_text_features(checkpoint, texts)
        heard.append([str(w.message)[:8] for w in caught if issubclass(w.category, InputWarning)])
    assert heard[0] == heard[1] == ["文本“透亮线可见", "文本“断裂可见。", "文本“间隙正常。"]


# -- where texts are read and shown -----------------------------------------------------------


def test_a_label_may_be_any_description():
    lookup = TextLookup(*names_and_texts(ENSEMBLE))
    indices = {label: lookup.find(label) for label in ("松动", "假体移位。", "骨水泥断裂。", "骨膜反应。", "2", "移位")}
    assert indices == {"松动": 1, "假体移位。": 1, "骨水泥断裂。": 1, "骨膜反应。": 2, "2": 2, "移位": None}


def test_a_class_of_several_is_shown_by_its_name_and_their_number():
    texts = ["关节间隙正常。", ("透亮线。", "移位。"), "骨膜反应。"]
    result = tiny_result(targets=(1,))
    result = result._replace(question=Question(result.names, texts))
    assert "[1] 松动（2 段描述的平均）" in brief(Results([result]), "ImageResult")
    words = [text.string for text in Results([result])._drawing().items if hasattr(text, "string")]
    assert any("松动（2 段描述的平均）" in word for word in words)
    assert not any("透亮线" in word for word in words)


def test_a_command_and_what_its_run_keeps(flags, home, tmp_path, picture, capsys):  # noqa: F811
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(ENSEMBLE, ensure_ascii=False), encoding="utf-8")
    templates = ["一张{}的片", "--text-template", "可见{}", "有{}"]
    arguments = {"class_texts_file": file, "image_path": [picture, picture], "report": True, "text_template": templates}
    assert main(flags(**arguments)) == 0
    settings = json.loads((home / "clip_gradcam_results/.clip_gradcam/settings.json").read_text())
    name, descriptions = settings["texts"][1]
    assert (
        name == "松动"
        and len(descriptions) == 9
        and descriptions[:2] == ["一张周围可见透亮线。的片", "可见周围可见透亮线。"]
    )
    page = (home / "clip_gradcam_results/report.html").read_text(encoding="utf-8")
    assert json.dumps("可见假体移位。") in page
    assert main(flags(**arguments, resume=True)) == 0
    assert main(["--join", "--output-dir", "clip_gradcam_results"]) == 0
    capsys.readouterr()
    assert main(flags(**{**arguments, "text_template": templates[:1]}, resume=True)) == 2
    assert "类别文本" in capsys.readouterr().err
    assert main(flags(**{**arguments, "text_template": "片"})) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "--text-template" in error and "'片'" in error


def test_runs_of_before_go_on_where_each_class_has_one_description():
    question = Question(*names_and_texts({"甲": ["一"], "乙": "二"}))
    check_settings({"texts": [["甲", "一"], ["乙", "二"]]}, {"texts": list(zip(question.names, question.texts))})


def test_limits_are_as_the_readme_says():
    assert (class_texts.MOST_TEXTS, class_texts.MOST_DESCRIPTIONS, class_texts.LONGEST_TEXT) == (1000, 10_000, 10_000)


@pytest.mark.parametrize(
    ("texts", "alike"),
    [
        (["好", "坏", "好"], (0, 2)),
        ([("好", "坏"), "好", ("坏", "好")], (0, 2)),
        (["好", ("好", "坏"), "坏"], None),
    ],
)
def test_classes_with_the_same_descriptions(texts, alike):
    assert same_texts(texts) == alike


def test_classes_that_no_model_can_tell_apart_are_named(clip, picture):
    with pytest.warns(InputWarning, match="类别 A 和 C 的描述相同"):
        result = explain(clip, picture, {"A": "好", "B": "坏", "C": "好"}, img_size=64)
    assert result.probabilities[0] == result.probabilities[2]
