"""Checkpoint files of our own format, and the file of class texts."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from project import PROJECT
from safetensors.torch import save_file
from test_models import BACKBONE, in_the_names_of
from tiny import EMBED_DIM, TINY_BERT, text_tower_state, tiny_clip
from tiny_pretrained import Payload

from models.class_texts import read_class_texts
from models.errors import InputError, InputWarning
from models.loading.load import load_clip_checkpoint
from models.weights.files import read_checkpoint_file

CONFIG = {"image_encoder": "starnet_s1", "text_encoder": "bert-base-chinese", "embed_dim": EMBED_DIM}
CONFIG |= {"img_size": 96, "temperature": 0.07}


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    """As torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def assert_same_model(model, clip, rtol=0.0, atol=0.0):
    own, expected = model.state_dict(), clip.state_dict()
    assert own.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(own[key], tensor, rtol=rtol, atol=atol, msg=key)
    assert not model.training and not any(module.training for module in model.modules())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


# -- every form of a checkpoint ---------------------------------------------------------------

FORMS = {
    "bare": lambda w: w,
    "ordered": lambda w: OrderedDict(w),
    "model_state_dict": lambda w: {"epoch": 1, "model_state_dict": w},
    "state_dict": lambda w: {"state_dict": w, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
    "model": lambda w: {"model": w, "class_texts": ["正常"], "class_to_idx": {"正常": 0}},
    "config": lambda w: {"model_state_dict": w, "config": CONFIG},
    "args": lambda w: {"state_dict": w, "args": argparse.Namespace(**CONFIG)},
    "hparams": lambda w: {"state_dict": w, "hparams": CONFIG},
    "namespace as config": lambda w: {"state_dict": w, "config": argparse.Namespace(**CONFIG)},
    "top level": lambda w: {"state_dict": w, **CONFIG},
    "top level, other names": lambda w: {"state_dict": w, "image_encoder_name": "starnet_s1", "image_size": 96},
    "module.": lambda w: {f"module.{k}": v for k, v in w.items()},
    "model.": lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}},
    "_orig_mod.": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "_orig_mod.module.": lambda w: {f"_orig_mod.module.{k}": v for k, v in w.items()},
    "compiled tower": lambda w: {k.replace("image_encoder.", "image_encoder._orig_mod."): v for k, v in w.items()},
    "parallel tower": lambda w: {k.replace("image_encoder.", "image_encoder.module."): v for k, v in w.items()},
    "each key twice": lambda w: {**w, **{k.replace("image_encoder.backbone.", f"{BACKBONE}model."): w[k] for k in w}},
    "bert.": lambda w: {k.replace("text_encoder.backbone.", "text_encoder.backbone.bert."): v for k, v in w.items()},
    "temperature [1]": lambda w: {**w, "temperature": w["temperature"].reshape(1)},
    "parameters": lambda w: {k: torch.nn.Parameter(v, False) if v.is_floating_point() else v for k, v in w.items()},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_without_a_flag(clip, write_checkpoint, form):
    path = write_checkpoint(FORMS[form](clip.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clip_checkpoint(path)
    assert model.image_encoder_name == "starnet_s1" and model.embed_dim == EMBED_DIM
    assert_same_model(model, clip)
    told = form in ("config", "args", "hparams", "namespace as config", "top level", "top level, other names")
    assert model.img_size == (96 if told else None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(clip, write_checkpoint, dtype):
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in clip.state_dict().items()}
    model = load_clip_checkpoint(write_checkpoint(state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_model(model, clip, rtol=0 if dtype == torch.float64 else 1e-2, atol=1e-4)


@pytest.mark.parametrize("metadata", [None, {key: str(value) for key, value in CONFIG.items()}])
def test_safetensors(clip, tmp_path, metadata):
    path = tmp_path / "模型 1.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in clip.state_dict().items()}, path, metadata)
    model = load_clip_checkpoint(path)
    assert_same_model(model, clip)
    assert model.img_size == (96 if metadata else None)


def test_the_name_of_the_file_does_not_matter(clip, write_checkpoint):
    for name in ("权重 最终.pt", "weights", "a.b.ckpt"):
        assert_same_model(load_clip_checkpoint(str(write_checkpoint(clip.state_dict(), name))), clip)


PLAIN_DATA = {
    "numpy scalars": {"val_mAP": np.float64(0.9), "best": np.float32(1), "epoch": np.int64(3), "done": np.bool_(True)},
    "numpy arrays": {"curve": np.arange(5), "names": np.array(["正常", "松动"]), "empty": np.zeros((0, 3), np.float16)},
    "paths": {"a": pathlib.Path("r") / "1", "b": pathlib.PurePosixPath("/d"), "c": pathlib.PureWindowsPath("c:/x")},
    "containers": {
        "counts": collections.Counter("aab"), "default": collections.defaultdict(list, {"a": [1]}),
        "queue": collections.deque([1, 2]), "set": {1}, "frozen": frozenset({2}), "slice": slice(1, 2),
        "range": range(3), "complex": 1j, "bytes": b"x", "ordered": OrderedDict(a=1), "tuple": (1, None, True),
    },
    "namespaces": {
        "args": argparse.Namespace(lr=0.1, data=pathlib.Path("d"), inner=argparse.Namespace(a=np.float64(1))),
    },
    "torch": {
        "dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1, 2]), "rng": torch.get_rng_state(),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN_DATA)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_plain_data_beside_the_weights_loads(clip, tmp_path, kind, save):
    save({"model_state_dict": clip.state_dict(), **PLAIN_DATA[kind]}, tmp_path / "a.pth")
    assert zipfile.is_zipfile(tmp_path / "a.pth") == (save is save_zip)
    assert_same_model(load_clip_checkpoint(tmp_path / "a.pth"), clip)
    model = tiny_clip(seed=1)
    model.load_state_dict(tmp_path / "a.pth")  # torch.load itself refuses most of these
    assert_same_model(model.eval(), clip)


SIDES = ([96, 96], (96, 96), 96.0, "96", {"height": 96, "width": 96}, np.int32(96))


@pytest.mark.parametrize("size", [*SIDES, None, 0, -3, [96, 48], "big"], ids=repr)
def test_an_image_size_in_any_form_is_a_number_or_nothing(clip, write_checkpoint, size):
    config = {"img_size": size, "embed_dim": np.int64(EMBED_DIM), "temperature": np.float64(0.07)}
    model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "config": config}))
    side = 96 if any(size is known for known in SIDES) else None
    assert model.img_size == side and type(model.img_size) is type(side)


@pytest.mark.parametrize("encoder, library", [("resnet18", "sequential"), ("starnet_dual_pyramid_rcf", "wrapped")])
def test_a_file_in_a_librarys_names(write_checkpoint, encoder, library):
    model = tiny_clip(encoder)
    path = write_checkpoint({"state_dict": in_the_names_of(model.state_dict(), encoder, library)})
    assert_same_model(load_clip_checkpoint(path), model)


def test_weights_are_mapped_not_copied(clip, write_checkpoint, monkeypatch):
    """The tensors that torch.load maps are the model's own: no random start, no second copy."""
    path = write_checkpoint({"model_state_dict": clip.state_dict()})
    loaded = read_checkpoint_file(path)["model_state_dict"]
    monkeypatch.setattr("models.loading.content.read_checkpoint_file", lambda *_: {"model_state_dict": loaded})
    model = load_clip_checkpoint(path)
    for key, parameter in model.named_parameters():
        assert parameter.data_ptr() == loaded[key].data_ptr(), key


# -- flags against the checkpoint -------------------------------------------------------------


CONTRADICTIONS = {
    "image_encoder": ("resnet50", "--image-encoder resnet50.*starnet_s1"),
    "embed_dim": (512, "--embed-dim 512.*32"),
    "img_size": (224, "--img-size 224.*96"),
    "text_encoder": ("other/bert", "--text-encoder other/bert.*bert-base-chinese"),
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_a_flag_that_contradicts_is_warned_about_and_loses(clip, write_checkpoint, flag):
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": CONFIG})
    value, shown = CONTRADICTIONS[flag]
    with pytest.warns(UserWarning, match=shown) as caught:
        model = load_clip_checkpoint(path, **{flag: value})
    assert len(caught) == 1
    assert_same_model(model, clip)
    assert model.img_size == 96


def test_flags_that_agree_and_flags_that_fill_in_are_silent(clip, write_checkpoint):
    path = write_checkpoint(clip.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clip_checkpoint(path, "starnet_s1", "bert-base-chinese", EMBED_DIM, 160)
    assert model.img_size == 160
    assert_same_model(model, clip)


def test_the_weights_are_surer_than_the_config(clip, write_checkpoint):
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {**CONFIG, "image_encoder": "resnet50"}})
    with pytest.warns(UserWarning, match="resnet50.*starnet_s1"):
        assert_same_model(load_clip_checkpoint(path), clip)


@pytest.mark.filterwarnings("ignore:检查点没有 temperature")
def test_an_unknown_network_asks_for_the_flag(resnet_clip, write_checkpoint):
    """Of other layers, or of another depth; that the flag is given makes the weights no other."""
    weird = {BACKBONE + "weird.weight": torch.zeros(3), "image_encoder.projection.weight": torch.zeros(4, 3)}
    shallow = {key: tensor for key, tensor in resnet_clip.state_dict().items() if "layer3.1" not in key}
    for state, lost in (({**weird, **text_tower_state(4)}, "缺少.*权重"), (shallow, "缺少.*layer3.1")):
        path = write_checkpoint(state)
        with pytest.raises(InputError, match="--image-encoder"):
            load_clip_checkpoint(path)
        with pytest.raises(InputError, match=lost):
            load_clip_checkpoint(path, image_encoder="resnet18")


def test_heads_of_the_text_tower_from_the_config(clip, write_checkpoint):
    config = {**CONFIG, "text_config": {"num_attention_heads": 4}}
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": config})
    config = load_clip_checkpoint(path).text_encoder.backbone.config
    assert config.num_attention_heads == 4 and config.hidden_size == TINY_BERT["hidden_size"]


# -- nothing is executed ----------------------------------------------------------------------


class Custom:
    """A class of the training code."""


# what stands beside the weights -> what the refusal names
DANGERS = {
    "os.system": (lambda path: Payload(os.system, f"echo > {path}"), "system"),
    "exec": (lambda path: Payload(exec, f"open({str(path)!r}, 'w')"), "exec"),
    "eval": (lambda path: Payload(eval, f"open({str(path)!r}, 'w')"), "eval"),
    "open": (lambda path: Payload(open, str(path), "w"), "open"),
    "object array": (lambda path: np.array([Payload(os.system, f"echo > {path}")], dtype=object), "system"),
    "in a Namespace": (lambda path: argparse.Namespace(a=Payload(os.system, f"echo > {path}")), "system"),
}
SAVES = [(danger, (save_zip, save_legacy)[number % 2]) for number, danger in enumerate(DANGERS)]


@pytest.mark.parametrize("danger, save", [*SAVES, ("os.system", save_legacy)])
def test_a_malicious_checkpoint_is_refused_and_not_executed(clip, tmp_path, danger, save):
    make, name = DANGERS[danger]
    save({"model_state_dict": clip.state_dict(), "extra": make(tmp_path / "executed")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=f"a.pth.*({name}).*拒绝"):
        load_clip_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


# what stands beside the weights and is passed over -> what the warning names; None where nothing is lost
PASSED_OVER = {
    "pathlib.Path.touch": (lambda path: Payload(pathlib.Path.touch, path), "getattr"),
    "getattr": (lambda path: Payload(getattr, "text", "join"), "getattr"),
    "custom class": (lambda path: Custom(), "test_loading.Custom"),
    "function": (lambda path: json.loads, None),
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("kind", PASSED_OVER)
def test_objects_beside_the_weights_are_passed_over_by_name_and_not_built(clip, tmp_path, kind, save):
    make, name = PASSED_OVER[kind]
    save({"model_state_dict": clip.state_dict(), "extra": make(tmp_path / "executed")}, tmp_path / "a.pth")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same_model(load_clip_checkpoint(tmp_path / "a.pth"), clip)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (name is not None) and all(name in m and "没有载入" in m for m in messages)
    assert not (tmp_path / "executed").exists()


def test_a_model_that_was_saved_whole_is_read_without_its_code(clip, write_checkpoint):
    for content in (clip, {"model": clip}):
        with pytest.warns(InputWarning, match="没有载入.*models.clip.CLIPModel"):
            model = load_clip_checkpoint(write_checkpoint(content))
        assert_same_model(model, clip)


# -- files that are no checkpoint -------------------------------------------------------------


CUT = [(save_zip, share) for share in (0, 0.001, 0.3, 0.9999)] + [(save_legacy, share) for share in (0.001, 0.3, 0.9)]
CUT += [(save_file, share) for share in (0, 0.0001, 0.5, 0.999)]


@pytest.mark.parametrize("save, share", CUT)
def test_a_file_cut_short(tmp_path, save, share):
    path = tmp_path / ("a.safetensors" if save is save_file else "a.pth")
    save({"image_encoder.backbone.norm.weight": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=f"{path.name}.*不完整") as caught:
        load_clip_checkpoint(path)
    assert "\n" not in str(caught.value)


def zip_of_a_text() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


NO_CHECKPOINT = [b"hello", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02}.", bytes(1000)]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_no_checkpoint(tmp_path, name):
    for content in (*NO_CHECKPOINT, pickle.dumps({"a": 1}), zip_of_a_text()):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"a\.(pth|safetensors)|没有 image_encoder"):
            load_clip_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 5, None, {}, {"epoch": 1}, {"state_dict": None}])
def test_a_torch_file_of_something_else(write_checkpoint, content):
    with pytest.raises(InputError, match="字典|image_encoder.backbone"):
        load_clip_checkpoint(write_checkpoint(content))


def test_a_missing_checkpoint_and_a_folder(tmp_path):
    for path in (tmp_path / "没有.pth", tmp_path):
        with pytest.raises(InputError, match="找不到检查点文件"):
            load_clip_checkpoint(path)


# -- class texts ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_class_texts_in_order(tmp_path, start):
    path = tmp_path / "类别.json"
    path.write_text(start + '{"乙": "第二。", "甲": "第一。"}', encoding="utf-8")
    assert list(read_class_texts(path).items()) == [("乙", "第二。"), ("甲", "第一。")]


UNUSABLE = {
    '{"甲": "一"\n  "乙": "二"}': "第 2 行第 3 列", '{\n "甲": "一",\n}': "第 [23] 行", "": "第 1 行第 1 列",
    "{'甲': '一'}": "第 1 行第 2 列", '{"甲": "一"} x': "第 1 行第 12 列", '["甲"]': "对象.*list", '"甲"': "对象.*str",
    "3": "对象.*int", "null": "对象.*NoneType", "{}": "没有类别", '{"甲": 3}': "'甲'.*3", '{"甲": null}': "'甲'.*None",
    '{"甲": []}': "'甲'", '{"甲": ["一", 3]}': "'甲' 的第 2 个描述.*3", '{"甲": ["一", " "]}': "'甲' 的第 2 个",
    '{"甲": [["一"]]}': "'甲'", '{"甲": {"乙": "一"}}': "'甲'", '{"甲": ""}': "'甲'", '{"甲": "  "}': "'甲'",
    '{"甲": "一", "乙": "二", "甲": "三"}': "'甲'.*两次", "[" * 100_000: "JSON", "1" * 5000: "JSON|对象",
    '{"甲": "关节"}'.encode("gb18030"): "UTF-8", '{"甲": "关节"}'.encode("utf-16"): "UTF-8",
}  # fmt: skip


@pytest.mark.parametrize("content", UNUSABLE, ids=lambda content: repr(content[:20]))
def test_class_texts_that_cannot_be_used(tmp_path, content):
    path = tmp_path / "类别.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=UNUSABLE[content]) as caught:
        read_class_texts(path)
    assert "类别.json" in str(caught.value) and len(str(caught.value)) < 500


def test_class_texts_that_are_not_there(tmp_path):
    for path in (tmp_path / "没有.json", tmp_path):
        with pytest.raises(InputError, match="无法读取类别文本文件"):
            read_class_texts(path)


def test_the_classes_that_ship_are_nine():
    shipped = read_class_texts(PROJECT / "class_texts_hip_prosthesis.json")
    assert len(shipped) == 9 and all(len(text) <= 126 for text in shipped.values())
