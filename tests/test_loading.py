"""Room 1: checkpoint, class texts."""

import argparse
import builtins
import collections
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
from safetensors.torch import save_file
from test_models import BACKBONE, CASES, in_the_names_of
from tiny import EMBED_DIM, TINY_BERT, gradient_picture, text_tower_state, tiny_clip

from models.class_texts import read_class_texts
from models.errors import InputError
from models.images.preprocessing import preprocess
from models.loading.load import load_clip_checkpoint
from models.weights.files import read_checkpoint_file

CONFIG = {
    "image_encoder": "starnet_s1",
    "text_encoder": "bert-base-chinese",
    "embed_dim": EMBED_DIM,
    "img_size": 96,
    "temperature": 0.07,
}


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


def test_a_temperature_in_the_config_alone(clip, write_checkpoint):
    state = clip.state_dict()
    del state["temperature"]
    model = load_clip_checkpoint(write_checkpoint({"state_dict": state, "config": {**CONFIG, "temperature": 0.5}}))
    assert model.temperature.item() == 0.5


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


def test_the_format_before_torch_1_6(clip, write_checkpoint):
    path = write_checkpoint({"state_dict": clip.state_dict()}, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_same_model(load_clip_checkpoint(path), clip)


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
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_plain_data_beside_the_weights_loads(clip, write_checkpoint, kind, zipped):
    content = {"model_state_dict": clip.state_dict(), **PLAIN_DATA[kind]}
    path = write_checkpoint(content, _use_new_zipfile_serialization=zipped)
    assert_same_model(load_clip_checkpoint(path), clip)
    torch.load(path)  # as the guide's notebook example has it


def test_numpy_numbers_as_metadata(clip, write_checkpoint):
    config = {**CONFIG, "embed_dim": np.int64(EMBED_DIM), "img_size": np.int32(96), "temperature": np.float64(0.07)}
    model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "config": config}))
    assert model.img_size == 96 and preprocess(gradient_picture(), model.img_size).shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    "size", [[96, 96], (96, 96), 96.0, "96", {"height": 96, "width": 96}, None, 0, -3, [96, 48], "big"]
)
def test_an_image_size_in_any_form_is_a_number_or_nothing(clip, write_checkpoint, size):
    model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "config": {"img_size": size}}))
    understood = size not in (None, 0, -3, [96, 48], "big")
    assert model.img_size == (96 if understood else None)


@pytest.mark.parametrize(
    "encoder, library", [case for case in CASES if case[0] in ("resnet18", "starnet_s1", "starnet_dual_pyramid_rcf")]
)
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


@pytest.mark.parametrize(
    "flag, value, shown",
    [
        ("image_encoder", "resnet50", "--image-encoder resnet50.*starnet_s1"),
        ("embed_dim", 512, "--embed-dim 512.*32"),
        ("img_size", 224, "--img-size 224.*96"),
        ("text_encoder", "other/bert", "--text-encoder other/bert.*bert-base-chinese"),
    ],
)
def test_a_flag_that_contradicts_is_warned_about_and_loses(clip, write_checkpoint, flag, value, shown):
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": CONFIG})
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


def test_an_unknown_network_asks_for_the_flag(write_checkpoint):
    state = {
        "image_encoder.backbone.weird.weight": torch.zeros(3),
        "image_encoder.projection.weight": torch.zeros(4, 3),
    }
    with pytest.raises(InputError, match="--image-encoder"):
        load_clip_checkpoint(write_checkpoint({**state, **text_tower_state(4)}))
    with pytest.raises(InputError, match="缺少.*权重"):
        load_clip_checkpoint(write_checkpoint({**state, **text_tower_state(4)}), image_encoder="resnet18")


def test_a_network_of_another_depth_is_an_error(resnet_clip, write_checkpoint):
    state = {key: tensor for key, tensor in resnet_clip.state_dict().items() if "layer3.1" not in key}
    with pytest.raises(InputError, match="--image-encoder"):
        load_clip_checkpoint(write_checkpoint(state))
    with pytest.raises(InputError, match="缺少.*layer3.1"):
        load_clip_checkpoint(write_checkpoint(state), image_encoder="resnet18")


def test_heads_of_the_text_tower_from_the_config(write_checkpoint):
    torch.manual_seed(0)
    model = tiny_clip(seed=0)
    path = write_checkpoint(
        {"state_dict": model.state_dict(), "config": {**CONFIG, "text_config": {"num_attention_heads": 4}}}
    )
    config = load_clip_checkpoint(path).text_encoder.backbone.config
    assert config.num_attention_heads == 4 and config.hidden_size == TINY_BERT["hidden_size"]


# -- nothing is executed ----------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Custom:
    """A class of the training code."""


def marker(tmp_path):
    return tmp_path / "executed"


DANGERS = {
    "os.system": lambda path: Payload(os.system, f"echo > {path}"),
    "exec": lambda path: Payload(exec, f"open({str(path)!r}, 'w')"),
    "eval": lambda path: Payload(eval, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Payload(open, str(path), "w"),
    "pathlib.Path.touch": lambda path: Payload(pathlib.Path.touch, path),
    "getattr": lambda path: Payload(getattr, "text", "join"),
    "custom class": lambda path: Custom(),
    "function": lambda path: json.loads,
    "object array": lambda path: np.array([Payload(os.system, f"echo > {path}")], dtype=object),
    "in a Namespace": lambda path: argparse.Namespace(a=Payload(os.system, f"echo > {path}")),
}


@pytest.mark.parametrize("danger", DANGERS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(clip, write_checkpoint, tmp_path, danger, zipped):
    content = {"model_state_dict": clip.state_dict(), "extra": DANGERS[danger](marker(tmp_path))}
    path = write_checkpoint(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as caught:
        load_clip_checkpoint(path)
    message = str(caught.value)
    assert not marker(tmp_path).exists()
    names = {"os.system": "system", "custom class": "Custom", "in a Namespace": "system", "function": "loads"}
    assert names.get(danger, "") in message
    assert "拒绝" in message and "torch.load" in message and "torch.save" in message and path.name in message


def test_a_whole_pickled_model_is_refused_by_name(clip, write_checkpoint):
    with pytest.raises(InputError, match="models.clip.CLIPModel.*torch.save"):
        load_clip_checkpoint(write_checkpoint(clip))
    with pytest.raises(InputError, match="models.clip.CLIPModel.*torch.save"):
        load_clip_checkpoint(write_checkpoint({"model": clip}))


def test_the_recipe_in_the_refusal_works(clip, write_checkpoint, tmp_path, monkeypatch):
    path = write_checkpoint({"model_state_dict": clip.state_dict(), "extra": Custom()})
    with pytest.raises(InputError) as caught:
        load_clip_checkpoint(path)
    recipe = str(caught.value).split("重试：")[1].replace("；", "\n").replace("{...}", "{}")
    monkeypatch.chdir(tmp_path)
    exec(recipe, {"torch": torch})
    assert_same_model(load_clip_checkpoint(tmp_path / "weights.pth"), clip)


def test_torch_load_itself_stays_safe(write_checkpoint, tmp_path):
    path = write_checkpoint({"extra": DANGERS["exec"](marker(tmp_path))})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not marker(tmp_path).exists()
    assert not {builtins.eval, builtins.exec, builtins.getattr, os.system} & set(
        item for item in torch.serialization.get_safe_globals() if not isinstance(item, tuple)
    )


# -- files that are no checkpoint -------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short(checkpoint, clip, write_checkpoint, zipped, share):
    path = write_checkpoint({"state_dict": clip.state_dict()}, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="checkpoint.pth.*不完整") as caught:
        load_clip_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_safetensors_cut_short(clip, tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_file({"image_encoder.backbone.norm.weight": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="model.safetensors.*不完整"):
        load_clip_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", pickle.dumps({"a": 1}), b"\x80\x02}.", bytes(1000)]
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_no_checkpoint(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.(pth|safetensors)|没有 image_encoder"):
        load_clip_checkpoint(tmp_path / name)


def test_a_zip_that_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="a.pth"):
        load_clip_checkpoint(tmp_path / "a.pth")


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


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"甲": "一"\n  "乙": "二"}', "第 2 行第 3 列"),
        ('{\n "甲": "一",\n}', "第 [23] 行"),
        ("", "第 1 行第 1 列"),
        ("{'甲': '一'}", "第 1 行第 2 列"),
        ('{"甲": "一"} x', "第 1 行第 12 列"),
        ("[]", "对象.*list"),
        ('["甲"]', "对象.*list"),
        ('"甲"', "对象.*str"),
        ("3", "对象.*int"),
        ("null", "对象.*NoneType"),
        ("{}", "没有类别"),
        ('{"甲": 3}', "'甲'.*3"),
        ('{"甲": null}', "'甲'.*None"),
        ('{"甲": ["一"]}', "'甲'"),
        ('{"甲": {"乙": "一"}}', "'甲'"),
        ('{"甲": ""}', "'甲'"),
        ('{"甲": "  "}', "'甲'"),
        ('{"甲": "一", "乙": "二", "甲": "三"}', "'甲'.*两次"),
        ("[" * 100_000, "JSON"),
        ("1" * 5000, "JSON|对象"),
    ],
    ids=lambda value: value[:20],
)
def test_class_texts_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "类别.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_class_texts(path)
    assert "类别.json" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_class_texts_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "texts.json"
    path.write_bytes('{"甲": "关节"}'.encode(encoding))
    with pytest.raises(InputError, match="texts.json.*UTF-8"):
        read_class_texts(path)


def test_class_texts_that_are_not_there(tmp_path):
    for path in (tmp_path / "没有.json", tmp_path):
        with pytest.raises(InputError, match="无法读取类别文本文件"):
            read_class_texts(path)


def test_the_classes_that_ship_are_nine():
    shipped = read_class_texts(pathlib.Path(__file__).parents[1] / "class_texts_hip_prosthesis.json")
    assert len(shipped) == 9 and all(len(text) <= 126 for text in shipped.values())
