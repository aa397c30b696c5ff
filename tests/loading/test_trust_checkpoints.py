"""Checkpoints of strangers: nothing in one is executed, none is read as another, good ones are read however wrapped."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import struct
import tracemalloc
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_loading import assert_same_model, save_legacy, save_zip
from tiny import EMBED_DIM, tiny_clip
from tiny_pretrained import Payload

import clip_gradcam_visualization as script
from models.errors import CheckpointError, InputError, InputWarning
from models.images.preprocessing import IMAGENET_MEAN, preprocessing_of
from models.loading.load import load_clip_checkpoint
from models.weights.files import read_checkpoint_file
from models.weights.pickles import read_pickle
from models.weights.plain import BadPickle, Name, Opaque
from models.weights.search import search_checkpoint

# -- pickles, opcode by opcode ----------------------------------------------------------------


def text(value) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(path) -> bytes:
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(function, *arguments) -> bytes:
    return (named(function) if isinstance(function, str) else function) + b"(" + b"".join(arguments) + b"tR"


def mapping(**items) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def run(body, protocol=2):
    """What a pickle is read as."""
    return read_pickle(io.BytesIO(b"\x80" + bytes([protocol]) + body + b"."))[0]


def write_zip(path, body, compress=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        for name, content in {"version": "3\n", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


OBJECT_ARRAY = call("numpy.ndarray", b"(" + number(1) + b"t", call("numpy.dtype", text("O")), text("ABCDEFGH"))
# what would harm -> what it is read as
HARMLESS = {
    "numpy's constructor on forged objects": (OBJECT_ARRAY, "<numpy.ndarray>"),
    "a name alone": (named("numpy.ndarray"), "Name(module='numpy', name='ndarray')"),
    "a setstate of the file's own": (
        call("argparse.Namespace") + mapping(__setstate__=named("builtins.print")) + b"b" + mapping(a=b"K\x01") + b"b",
        "<argparse.Namespace>",
    ),
    "INST": (b"(" + text("x") + b"iown.module\nOwn\n", "<own.module.Own>"),
    "OBJ": (b"(" + named("own.Own") + text("x") + b"o", "<own.Own>"),
    "NEWOBJ": (named("own.Own") + b")\x81", "<own.Own>"),
    "NEWOBJ_EX": (named("own.Own") + b")}\x92", "<own.Own>"),
    "STACK_GLOBAL": (text("own") + text("Own") + b"\x93)R", "<own.Own>"),
    "a call of what a call gave": (call(call("functools.partial", named("own.run"))), "<<functools.partial>>"),
    "BUILD on a function of torch": (named("torch._utils._rebuild_tensor_v2") + mapping(x=b"N") + b"b", "Name("),
    "a range": (call("builtins.set", call("builtins.range", number(10**9))), "{1000000000}"),
    "a memo far away": (b"K\x05r\xff\xff\xff\xff", "5"),
    "copyreg": (call("copyreg._reconstructor", named("own.Own"), named("builtins.object"), b"N"), "<own.Own>"),
    "shared over and over": (b"]" + b"q\x00" + b"".join(b"](h\x00h\x00eq\x00" for _ in range(50)), "[["),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_would_harm_is_read_as_plain_data(kind):
    body, expected = HARMLESS[kind]
    if kind == "shared over and over":
        assert len(run(body)) == 2  # printing it would take for ever: so would any walk that goes everywhere
        search_checkpoint({"x": run(body)})
    else:
        assert repr(run(body)).startswith(expected)


BAD = {
    "a count as bytes": call("builtins.bytearray", number(10**10)),
    "a count as counted": call("collections.Counter", call("builtins.bytearray", number(10**10))),
    "a set of a name": call("builtins.set", named("builtins.list")),
    "a list of an object": call("builtins.list", OBJECT_ARRAY),
    "an extension": b"\x82\x01",
    "a number of a file's own": b"P1\n",
    "an empty stack": b"0",
    "a mark that is not there": b"t",
    "a list as a key": b"}]K\x01s",
    "a key that collides": b"}" + number(2**61 - 1) + b"Ns",
    "an array beyond its bytes": call("numpy._core.multiarray._reconstruct", b")")
    + b"(K\x01K\x05\x85" + call("numpy.dtype", text("f8")) + b"\x89C\x05shorttb",
    "a scalar beyond its bytes": call("numpy.core.multiarray.scalar", call("numpy.dtype", text("f8")), b"C\x01a"),
    "a tensor without a storage": call("torch._utils._rebuild_tensor_v2", b"N", b"K\x00", b")", b")"),
    "an outside storage": text("storage") + b"Q",
    "text that is cut": b"X\xff\xff\xff\xffabc",
    "text that is longer than memory": b"\x8d" + struct.pack("<Q", 1 << 60) + b"abc",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_pickle_that_is_none_of_plain_data(tmp_path, kind):
    with pytest.raises(BadPickle):
        run(BAD[kind], protocol=4)
    with pytest.raises(InputError, match=r"无法读取检查点 .*a\.pth：文件不完整、已损坏或不是检查点（.+）$"):
        read_checkpoint_file(write_zip(tmp_path / "a.pth", BAD[kind]))


def test_deep_nesting_is_no_matter():
    value = run(b"]" * 50_000 + b"a" * 49_999)
    assert isinstance(value, list)
    run(b"})" + b"\x85" * 50_000 + b"Ns")  # a tuple without end as a key
    with pytest.raises(CheckpointError, match="没有 image_encoder"):
        tiny_clip().load_state_dict({"state_dict": {"x": torch.zeros(1)}, "deep": value})


def test_a_pickle_larger_than_any_models_is_refused_before_it_is_inflated(tmp_path):
    path = write_zip(tmp_path / "a.pth", b"", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        for _ in range(65):
            file.write(b"N" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="64 MB"):
        read_checkpoint_file(path)


def stored(offset, size, stride, count=4, key="0") -> bytes:
    """A tensor over the four numbers of a storage."""
    identity = b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu") + number(count) + b"tQ"
    sides = (b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (size, stride))
    return call("torch._utils._rebuild_tensor_v2", identity, number(offset), *sides, b"\x89", b"}")


@pytest.mark.parametrize(
    "offset, size, stride, count",
    [(0, (5,), (1,), 4), (1, (4,), (1,), 4), (0, (2, 2), (3, 1), 4), (0, (10**12,), (0,), 4), (0, (4,), (1,), 10**12)],
)
def test_a_tensor_may_not_reach_beyond_its_data(tmp_path, offset, size, stride, count):
    body = mapping(w=stored(offset, size, stride, count))
    with pytest.raises(InputError, match="大于它的数据|与数据不符"):
        read_checkpoint_file(write_zip(tmp_path / "a.pth", body, **{"data/0": struct.pack("<4f", 1, 2, 3, 4)}))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_view_of_a_storage_is_right(tmp_path, compress, mapped):
    body = mapping(w=stored(1, (2, 2), (1, 1)), v=stored(0, (4,), (1,)))
    path = write_zip(tmp_path / "a.pth", body, compress, **{"data/0": struct.pack("<4f", 1, 2, 3, 4)})
    content = read_checkpoint_file(path, mapped)
    assert content["w"].tolist() == [[2, 3], [3, 4]] and content["v"].tolist() == [1, 2, 3, 4]


def test_numbers_of_a_machine_that_writes_them_the_other_way_round(tmp_path):
    entries = {"data/0": struct.pack(">4f", 1, 2, 3, 4), "byteorder": "big"}
    content = read_checkpoint_file(
        write_zip(tmp_path / "a.pth", mapping(w=stored(0, (4,), (1,))), **entries), mapped=True
    )
    assert content["w"].tolist() == [1, 2, 3, 4]


NUMBERS = {
    "scalars": [np.float64(0.5), np.float32(1.5), np.int64(-3), np.bool_(True), np.uint8(255), np.complex64(1j)],
    "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4")],
    "small arrays": [np.array(5), np.zeros((0, 3), np.float16), np.array([True, False]), np.array(["正常", "松动"])],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_numbers_come_back_as_they_were(tmp_path, save, protocol):
    path = tmp_path / "a.pth"
    use_zip = save is save_zip
    torch.save(NUMBERS, path, pickle_protocol=protocol, _use_new_zipfile_serialization=use_zip)
    loaded = read_checkpoint_file(path)
    assert loaded["scalars"] == [value.item() for value in NUMBERS["scalars"]]
    for kind in ("arrays", "small arrays"):
        for value, expected in zip(loaded[kind], NUMBERS[kind], strict=True):
            np.testing.assert_array_equal(value, expected)
            assert value.shape == expected.shape and value.dtype.kind == expected.dtype.kind


def test_plain_containers_come_back_as_plain_containers(tmp_path):
    content = {
        "ordered": collections.OrderedDict(a=1), "counted": collections.Counter("aab"), "set": {1, 2},
        "queue": collections.deque([1, 2], 5), "default": collections.defaultdict(list, {"a": [1]}),
        "tuple": (1, None, True, 2.5, "文"), "size": torch.Size([1, 2]), "complex": 1 + 2j, "path": pathlib.Path("a/b"),
        "bytes": b"\xff\x00",
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pth")
    loaded = read_checkpoint_file(tmp_path / "a.pth")
    expected = {**content, "counted": {"a": 2, "b": 1}, "queue": [1, 2], "size": (1, 2), "path": "a/b"}
    assert loaded == expected and {type(value) for value in loaded.values()} <= {
        dict,
        set,
        list,
        bytes,
        tuple,
        complex,
        str,
    }


def test_a_checkpoint_is_searched_once(clip, write_checkpoint, monkeypatch):
    """Whichever readers are asked for it; a training's file may hold a hundred thousand values."""
    searched = []

    def counted(checkpoint):
        searched.append(list(checkpoint))
        return search_checkpoint(checkpoint)

    for module in ("loading.content", "weights.layouts"):
        monkeypatch.setattr(f"models.{module}.search_checkpoint", counted)
    path = write_checkpoint({"model_state_dict": clip.state_dict(), "config": {"img_size": 96}})
    assert_same_model(load_clip_checkpoint(path), clip)
    assert searched.count(["model_state_dict", "config"]) == 1


def test_nothing_is_allowed_in_the_process_by_reading(clip, tmp_path):
    before = list(torch.serialization.get_safe_globals())
    save_zip({"state_dict": clip.state_dict(), "args": argparse.Namespace(x=np.float64(1))}, tmp_path / "a.pth")
    load_clip_checkpoint(tmp_path / "a.pth")
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth")
    plain = tmp_path / "plain.pth"
    save_zip({"state_dict": clip.state_dict(), "config": {"img_size": 96}}, plain)
    model = tiny_clip(seed=1)
    model.load_state_dict(torch.load(plain))  # the guide's line
    assert_same_model(model.eval(), clip)
    assert model.img_size == 96


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("use_zip", [True, False])
def test_protocols_of_pickle(clip, write_checkpoint, protocol, use_zip):
    content = {"model_state_dict": clip.state_dict(), "config": {"img_size": 96}}
    path = write_checkpoint(content, pickle_protocol=protocol, _use_new_zipfile_serialization=use_zip)
    model = load_clip_checkpoint(path)
    assert_same_model(model, clip)
    assert model.img_size == 96


def test_a_payload_runs_nowhere(clip, tmp_path):
    """In each format, through each way in which a pickle calls."""
    executed = tmp_path / "executed"
    for index, save in enumerate((save_zip, save_legacy)):
        path = tmp_path / f"{index}.pth"
        save({"model_state_dict": clip.state_dict(), "x": Payload(os.mkdir, str(executed))}, path)
        with pytest.raises(CheckpointError, match="mkdir.*拒绝"):
            load_clip_checkpoint(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert not executed.exists()


# -- damaged files ----------------------------------------------------------------------------


def test_the_reason_of_a_damaged_file_is_the_true_one(clip, write_checkpoint):
    path = write_checkpoint({"state_dict": clip.state_dict()})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    middle = data.index(entry.filename.encode()) + 2000
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    cases = {
        "目录已损坏": data[:-200] + bytes(100) + data[-100:], "校验不符": changed, "截断": data[: len(data) // 2],
        "空的": b"", "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "网页": b"<!DOCTYPE html><html>", "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100), "先解压": b"\x1f\x8b" + bytes(50),
        "图像": b"\x89PNG\r\n\x1a\n" + bytes(50), "不是 torch.save 保存的": pickle.dumps({"a": 1}),
    }  # fmt: skip
    for reason, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason) as caught:
            load_clip_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_a_file_is_known_by_its_content_not_its_suffix(clip, tmp_path):
    save_file({key: tensor.contiguous() for key, tensor in clip.state_dict().items()}, tmp_path / "a.pth")
    assert_same_model(load_clip_checkpoint(tmp_path / "a.pth"), clip)


# -- weights that are no plain tensors --------------------------------------------------------

KEY = "image_encoder.projection.weight"
CHANGES = {
    "稀疏张量": lambda t: t.to_sparse(),
    "量化张量": lambda t: torch.quantize_per_tensor(t, 0.001, 0, torch.qint32),
    "复数张量": lambda t: t.to(torch.complex64),
    "meta 张量": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_weight_that_is_no_plain_tensor_is_named(clip, write_checkpoint, kind):
    state = clip.state_dict()
    state[KEY] = CHANGES[kind](state[KEY])
    with pytest.raises(CheckpointError, match=f"{KEY} 是.*{kind}"):
        load_clip_checkpoint(write_checkpoint({"model_state_dict": state}))
    with pytest.raises(CheckpointError, match=KEY if kind == "meta 张量" else f"{KEY} 是.*{kind}"):
        tiny_clip().load_state_dict({"model_state_dict": state})


@pytest.mark.parametrize("kind", list(CHANGES)[:3])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_recipe_for_such_a_weight_works(clip, write_checkpoint, tmp_path, monkeypatch, kind):
    state = clip.state_dict()
    state[KEY] = CHANGES[kind](state[KEY])
    with pytest.raises(CheckpointError) as caught:
        load_clip_checkpoint(write_checkpoint(state))
    monkeypatch.chdir(tmp_path)
    recipe = str(caught.value).split("重新保存：")[1]
    exec(recipe, {"torch": torch, "model": types.SimpleNamespace(state_dict=lambda: state)})
    assert_same_model(load_clip_checkpoint(tmp_path / "weights.pth"), clip, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(clip, write_checkpoint, dtype):
    state = clip.state_dict()
    state[KEY] = (state[KEY] * 100).to(dtype)
    with pytest.raises(CheckpointError, match=f"不是浮点数.*{KEY}"):
        load_clip_checkpoint(write_checkpoint({"model_state_dict": state}))


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_temperature_that_turns_the_classes_round_is_refused(clip, write_checkpoint, value):
    state = clip.state_dict()
    named_so = {**state, "temperature": torch.tensor(value)}
    in_config = {
        "state_dict": {key: tensor for key, tensor in state.items() if key != "temperature"},
        "config": {"temperature": value},
    }
    for content in (named_so, in_config):
        with pytest.raises(CheckpointError, match="temperature.*有限的正数"):
            load_clip_checkpoint(write_checkpoint(content))


@pytest.mark.parametrize(
    "key", ["base_model.model.{}.lora_A.default.weight", "{}.base_layer.weight", "{}.modules_to_save.default.weight"]
)
def test_adapters_that_nobody_has_merged_are_refused(clip, write_checkpoint, key):
    adapter = key.format("text_encoder.backbone.encoder.layer.0.attention.self.query")
    state = {("base_model.model." if key.startswith("base_model") else "") + k: v for k, v in clip.state_dict().items()}
    with pytest.raises(CheckpointError, match="适配器.*merge_and_unload"):
        load_clip_checkpoint(write_checkpoint({**state, adapter: torch.zeros(2, 2)}))


# -- wrappings --------------------------------------------------------------------------------


def prefixed(prefix):
    return lambda w: {f"{prefix}{key}": tensor for key, tensor in w.items()}


def inside(wrapper):
    return lambda w: {
        key.replace("encoder.layer.0.", f"encoder.layer.0.{wrapper}"): tensor for key, tensor in w.items()
    }


def nested(w):
    """As plain dicts of dicts, down to each weight."""
    tree = {}
    for key, tensor in w.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return tree


def by_towers(w):
    towers = {"temperature": w["temperature"]}
    for tower in ("image_encoder", "text_encoder"):
        towers[tower] = {k.removeprefix(f"{tower}."): v for k, v in w.items() if k.startswith(f"{tower}.")}
    return towers


KEYS = ["module", "net", "network", "params", "weights", "model_state", "ema", "model_ema", "student", "模型"]
WRAPPINGS = {
    **{key: lambda w, key=key: {key: w, "epoch": 3, "config": {"img_size": 96}} for key in KEYS},
    "two levels": lambda w: {"checkpoint": {"model": w, "config": {"img_size": 96}}},
    "in a list": lambda w: {"models": [w], "img_size": 96},
    **{prefix: prefixed(prefix) for prefix in ("clip_model.", "clip.", "net.", "base_model.model.", "my.own_name.")},
    **{prefix: prefixed(prefix) for prefix in ("_fsdp_wrapped_module.", "module._orig_mod.", "model.module.")},
    "checkpointed blocks": inside("_checkpoint_wrapped_module."),
    "sharded blocks": inside("_fsdp_wrapped_module."),
    "dicts of dicts": nested,
    "a dict per tower": by_towers,
    "averaged weights alone": lambda w: {**prefixed("module.")(w), "n_averaged": torch.tensor(3)},
    "a namespace": lambda w: types.SimpleNamespace(model=w, img_size=96),
}


@pytest.mark.parametrize("kind", WRAPPINGS)
@pytest.mark.filterwarnings("ignore:忽略了检查点中与热力图无关的 1 个参数：n_averaged")
def test_weights_are_read_however_they_are_wrapped(clip, write_checkpoint, kind):
    content = WRAPPINGS[kind](clip.state_dict())
    model = load_clip_checkpoint(write_checkpoint(content))
    assert_same_model(model, clip)
    assert model.img_size == (96 if "img_size" in str(content)[-200:] else None)
    if isinstance(content, dict):
        living = tiny_clip(seed=1)
        living.load_state_dict(content)
        assert_same_model(living.eval(), clip)


def test_of_several_weights_the_models_own_are_used_and_said(clip, write_checkpoint):
    other = {key: t + 1 if t.is_floating_point() else t for key, t in clip.state_dict().items()}
    for averaged in ("model_ema", "state_dict_ema", "ema", "teacher", "swa_model"):
        content = {averaged: other, "net": clip.state_dict()}
        with pytest.warns(InputWarning, match=f"2 份模型权重，采用 net 的，没有采用 {averaged} 的"):
            assert_same_model(load_clip_checkpoint(write_checkpoint(content)), clip)
    lightning = {"state_dict": {**prefixed("model.")(clip.state_dict()), **prefixed("ema.")(other)}}
    with pytest.warns(InputWarning, match="采用 state_dict.model 的，没有采用 state_dict.ema 的"):
        assert_same_model(load_clip_checkpoint(write_checkpoint(lightning)), clip)


def test_the_same_weights_twice_are_not_worth_a_word(clip, write_checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip_checkpoint(write_checkpoint({"model": clip.state_dict(), "ema": clip.state_dict()}))


def test_what_stands_beside_the_weights_is_not_taken_for_weights(clip, write_checkpoint):
    optimizer = torch.optim.AdamW(clip.parameters())
    content = {
        "model": clip.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": clip.state_dict()["temperature"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_model(load_clip_checkpoint(write_checkpoint(content)), clip)


# -- metadata ---------------------------------------------------------------------------------


class Node:
    """What the objects of config libraries look like in a pickle."""

    def __init__(self, **state):
        self.__dict__.update(state)


class Items(dict):
    """A dict of a class of its own, as CfgNode and EasyDict are."""


SIZES = {
    "hyper_parameters": {"hyper_parameters": {"img_size": 96}},
    "nested": {"config": {"data": {"img_size": 96}}},
    "deeply nested": {"experiment": {"stages": [{"data": {"transforms": [{"size": 1}, {"img_size": 96}]}}]}},
    **{
        name: {where: {name: 96}}
        for where, name in zip(
            ("cfg", "opt", "model_config", "args", "hparams", "settings", "meta", "data"),
            (
                "input_size",
                "resolution",
                "image_resolution",
                "crop_size",
                "IMG_SIZE",
                "imgSize",
                "image-size",
                "ImageSize",
            ),
        )
    },
    "timm's": {"cfg": {"input_size": (3, 96, 96)}},
    "a JSON string": {"config": json.dumps({"data": {"img_size": 96}})},
    "a namespace in a namespace": {"args": argparse.Namespace(data=argparse.Namespace(img_size=96))},
    "an object's state": {"cfg": Node(data=Node(img_size=96))},
    "OmegaConf's nodes": {"cfg": Node(_content={"data": Node(_content={"img_size": Node(_val=96)})})},
    "a dict's subclass": {"cfg": Items(DATA=Items(IMG_SIZE=96))},
    "an array": {"cfg": {"img_size": np.array([96, 96])}},
    "a text": {"cfg": {"img_size": "[96, 96]"}},
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.filterwarnings("ignore:.*没有载入")
def test_the_input_size_is_read_wherever_it_stands(clip, tmp_path, kind, save):
    save({"state_dict": clip.state_dict(), **SIZES[kind]}, tmp_path / "a.ckpt")
    assert load_clip_checkpoint(tmp_path / "a.ckpt").img_size == 96


def test_safetensors_metadata_in_any_form(clip, tmp_path):
    weights = {key: tensor.contiguous() for key, tensor in clip.state_dict().items()}
    levels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    for metadata in (
        {"config": json.dumps({"data": {"img_size": 96, **levels}})},
        {"image_size": "96", "mean": "[0.5,0.5,0.5]", "std": "[0.25,0.25,0.25]"},
    ):
        save_file(weights, tmp_path / "a.safetensors", metadata)
        model = load_clip_checkpoint(tmp_path / "a.safetensors")
        assert model.img_size == 96 and model.mean == (0.5,) * 3 and model.std == (0.25,) * 3


def test_the_nearest_to_the_weights_wins_and_a_contradiction_is_told(clip, write_checkpoint):
    near = {"state_dict": clip.state_dict(), "config": {"img_size": 96}, "run": {"data": {"img_size": 128}}}
    with pytest.warns(InputWarning, match=r"img_size.*config.img_size 是 96、run.data.img_size 是 128.*最近的 96"):
        assert load_clip_checkpoint(write_checkpoint(near)).img_size == 96
    inner = {"best": {"model": clip.state_dict(), "args": {"img_size": 96}}, "args": {"img_size": 128}}
    with pytest.warns(InputWarning, match="最近的 96"):
        assert load_clip_checkpoint(write_checkpoint(inner)).img_size == 96
    agreeing = {"state_dict": clip.state_dict(), "config": {"img_size": 96}, "args": {"image_size": (96, 96)}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_clip_checkpoint(write_checkpoint(agreeing)).img_size == 96


def test_a_word_far_from_the_weights_is_told(clip, write_checkpoint):
    content = {"state_dict": clip.state_dict(), "data": {"sources": {"scanner": {"resolution": 512}}}}
    with pytest.warns(InputWarning, match=r"img_size 取自.*data.sources.scanner.resolution（512）"):
        assert load_clip_checkpoint(write_checkpoint(content)).img_size == 512
    bare = {key: tensor for key, tensor in clip.state_dict().items() if key != "temperature"}
    content = {"state_dict": bare, "img_size": 96, "teacher": {"distillation": {"temperature": 2.0}}}
    with pytest.warns(InputWarning, match=r"temperature 取自.*teacher.distillation.temperature（2.0）"):
        assert float(load_clip_checkpoint(write_checkpoint(content)).temperature) == 2.0


def test_numbers_that_are_no_input_size_are_none(clip, write_checkpoint):
    metrics = {"mean": 0.8, "std": 0.01, "resolution": "high", "img_size": 10**9, "crop_size": -3, "input_size": True}
    model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "metrics": metrics}))
    assert (model.img_size, model.mean, model.std) == (None, None, None)


@pytest.mark.parametrize("factor", [1, 255])
def test_mean_and_deviation_of_the_checkpoint_prepare_images(clip, write_checkpoint, picture, factor):
    levels = {"mean": [0.5 * factor] * 3, "std": [0.25 * factor] * 3}
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {"img_size": 64, "transform": levels}})
    model = load_clip_checkpoint(path)
    prepare = preprocessing_of(model)
    assert prepare.mean == (0.5,) * 3 and prepare.std == (0.25,) * 3
    pixels = np.full((64, 64, 3), 255, np.uint8)
    np.testing.assert_allclose(prepare(pixels), 2.0, atol=1e-6)  # (1 - 0.5) / 0.25
    ordinary = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "img_size": 64}))
    assert preprocessing_of(ordinary).mean == IMAGENET_MEAN
    assert not np.allclose(
        *(script.explain(m, picture, ["正常", "松动"]).similarities for m in (model, ordinary)), atol=1e-4
    )


def test_mean_and_deviation_of_the_user(clip, write_checkpoint):
    silent = write_checkpoint({"state_dict": clip.state_dict()}, "silent.pth")
    model = load_clip_checkpoint(silent, mean=[127.5], std=[127.5])
    assert model.mean == model.std == (0.5,) * 3
    assert load_clip_checkpoint(silent, mean=[0], std=[1 / 255]).std == (1 / 255,) * 3  # levels of 0 to 255 go in
    config = {"image_mean": 0.1, "image_std": 0.2}
    told = write_checkpoint({"state_dict": clip.state_dict(), "config": config}, "told.pth")
    with pytest.warns(InputWarning, match="--mean.*与检查点不符") as caught:
        assert load_clip_checkpoint(told, mean=(0.5,), std=(0.2,)).mean == (0.1,) * 3
    assert len(caught) == 1
    for mean, std in (
        ([0.5], None),
        (None, [0.5]),
        ([0.5, 0.5], [1]),
        ([0.5], [0]),
        ([float("nan")], [1]),
        ([9e9], [1]),
    ):
        with pytest.raises(InputError, match="--mean 和 --std 要一起给出"):
            load_clip_checkpoint(silent, mean=mean, std=std)


@pytest.mark.filterwarnings("ignore:检查点没有 temperature")
def test_a_vit_says_its_input_size_by_its_positions():
    from models.loading.own import side_of_positions
    from models.weights.layouts import translate_checkpoint

    state = tiny_clip("vit").state_dict()
    assert side_of_positions(translate_checkpoint(state)) == 224
    state["image_encoder.backbone.embeddings.position_embeddings"] = torch.zeros(1, 1 + 16 * 16, 768)
    assert side_of_positions(translate_checkpoint(state)) == 256


HOSTILE = {
    "layers without end": {"num_hidden_layers": 10**9},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 7},
    "code": {
        "auto_map": {"AutoModel": "own.Own"},
        "_attn_implementation": "kernels-community/own",
        "trust_remote_code": True,
    },
    "a strange function": {"hidden_act": "own"},
    "sizes of another kind": {"max_position_embeddings": "10", "layer_norm_eps": "x", "vocab_size": -5},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_text_config_says_sizes_and_nothing_else(clip, write_checkpoint, kind):
    config = {"text_config": HOSTILE[kind], "embed_dim": EMBED_DIM}
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": config})
    if kind in ("no heads", "heads that do not divide"):
        with pytest.raises(CheckpointError, match="text_config"):
            load_clip_checkpoint(path)
    else:
        assert_same_model(load_clip_checkpoint(path), clip)
    without = {key: t for key, t in clip.state_dict().items() if not key.startswith("text_encoder.backbone.embeddings")}
    with pytest.raises(InputError):
        load_clip_checkpoint(write_checkpoint({"state_dict": without, "config": config}))


def test_an_opaque_object_does_nothing():
    opaque = Opaque(Name("own", "Own"))
    with pytest.raises(AttributeError):
        opaque.anything = 1
    with pytest.raises(TypeError):
        opaque()


class Subclass(torch.Tensor):
    """A tensor of a class of the training's own."""


def test_a_tensor_of_another_class_is_the_tensor_that_it_was_made_of(clip, write_checkpoint):
    state = {key: tensor.as_subclass(Subclass) for key, tensor in clip.state_dict().items()}
    model = load_clip_checkpoint(write_checkpoint(state))
    assert_same_model(model, clip)
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}


def test_an_object_in_a_weights_place_is_named(clip, write_checkpoint):
    with pytest.warns(InputWarning, match="没有载入"), pytest.raises(CheckpointError, match=f"{KEY} 是.*Items 对象"):
        load_clip_checkpoint(write_checkpoint({**clip.state_dict(), KEY: Items()}))


def test_a_text_that_stands_a_million_times_is_read_once(clip):
    config = json.dumps({"deep": [{"x": list(range(10_000))}], "img_size": 96})
    contents = search_checkpoint({"state_dict": clip.state_dict(), "config": config, "x": [{"a": config}] * 200_000})
    assert contents.metadata["img_size"] == 96


def test_a_header_of_safetensors_that_is_larger_than_any_models(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{" + bytes(100))
    with pytest.raises(InputError, match="文件头"):
        read_checkpoint_file(tmp_path / "a.safetensors")


def test_tensors_that_lie_over_each_other_are_no_bomb(tmp_path):
    """A thousand entries of a directory that all lead to one piece of a file."""
    body = mapping(**{f"w{n}": stored(0, (1000,), (1,), 1000, key=str(n)) for n in range(1000)})
    write_zip(tmp_path / "a.pth", body, **{"data/0": bytes(4000)})
    with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive:
        first = archive.getinfo("archive/data/0")
        for n in range(1, 1000):
            entry = zipfile.ZipInfo(f"archive/data/{n}")
            for name in ("CRC", "compress_size", "file_size", "header_offset"):
                setattr(entry, name, getattr(first, name))
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    with pytest.raises(InputError, match="大得可疑|已损坏"):
        read_checkpoint_file(tmp_path / "a.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_a_pipe_is_answered_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(InputError, match="检查点 .*a.pth：这是管道"):
        load_clip_checkpoint(tmp_path / "a.pth")


def test_metadata_of_any_size_and_kind_end(clip):
    """A size beyond any float, thousands of spellings of one name, tables of the wrong dimensions."""
    spellings = {"m" + "_" * n + "ean": 1 for n in range(6000)}
    contents = search_checkpoint({"state_dict": clip.state_dict(), "img_size": 10**400, "config": spellings})
    assert not {"img_size", "mean"} & set(contents.metadata)
    for key in ("text_encoder.backbone.embeddings.word_embeddings.weight", KEY):
        with pytest.raises(CheckpointError):
            tiny_clip().load_state_dict({**clip.state_dict(), key: torch.tensor(1.0)})


def test_two_values_of_a_weight_in_a_copy_that_is_not_used_are_no_matter(clip, write_checkpoint):
    twice = {**clip.state_dict(), f"module.{KEY}": torch.zeros(2)}
    assert_same_model(load_clip_checkpoint(write_checkpoint({"ema": twice, "net": clip.state_dict()})), clip)
    with pytest.raises(CheckpointError, match=f"{KEY} 有两份不同的值"):
        load_clip_checkpoint(write_checkpoint(twice))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_array_that_stands_twice_and_one_that_is_transposed(tmp_path, protocol):
    array, turned = np.arange(3.0), np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)
    torch.save({"a": [array, array], "b": turned}, tmp_path / "a.pth", pickle_protocol=protocol)
    content = read_checkpoint_file(tmp_path / "a.pth")
    for value, expected in zip((*content["a"], content["b"]), (array, array, turned), strict=True):
        np.testing.assert_array_equal(value, expected)


# -- mean and deviation: of images, and of nothing else ---------------------------------------

OTHER_STATISTICS = {
    "scores of folds": {"cv": {"mean": [0.91, 0.88, 0.93], "std": [0.02, 0.03, 0.01]}},
    "labels": {"label_stats": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}},
    "metrics": {"metrics": {"mean": 0.8, "std": 0.1}},
    "spacing": {"config": {"spacing": {"mean": [0.5, 0.5, 0.7], "std": [0.1, 0.1, 0.1]}}},
}


@pytest.mark.parametrize("kind", OTHER_STATISTICS)
def test_statistics_of_other_things_are_not_those_of_images(clip, write_checkpoint, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), **OTHER_STATISTICS[kind]}))
    assert model.mean is None and model.std is None


HALF = (0.5, 0.5, 0.5)
FORMS_OF_LEVELS = {
    "tensors": (torch.full((3,), 0.5), torch.full((3, 1, 1), 0.5)),
    "arrays": (np.full((3, 1, 1), 0.5), np.float32(0.5)),
    "texts": ("(0.5, 0.5, 0.5)", "0.5 0.5 0.5"),
    "texts in a list": (["0.5"] * 3, ["0.5"]),
    "of 255 levels": ([127.5] * 3, 127.5),
}


@pytest.mark.parametrize("form", FORMS_OF_LEVELS)
@pytest.mark.parametrize("names", [("image_mean", "image_std"), ("mean", "std"), ("dataset_mean", "dataset_std")])
def test_mean_and_deviation_in_any_form(clip, write_checkpoint, form, names):
    levels = dict(zip(names, FORMS_OF_LEVELS[form]))
    model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "config": {"transform": levels}}))
    assert (model.mean, model.std) == (HALF, HALF)


def test_mean_and_deviation_that_a_transform_or_a_module_holds(clip, write_checkpoint):
    written = "Compose(\n  Resize(96)\n  Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])\n)"
    buffers = {"normalize.mean": torch.full((1, 3, 1, 1), 0.5), "normalize.std": torch.full((1, 3, 1, 1), 0.5)}
    for content in (
        {"state_dict": clip.state_dict(), "transform": written},
        {"state_dict": clip.state_dict(), "config": {"normalize": [[0.5] * 3, [0.5] * 3]}},
        {"state_dict": {**clip.state_dict(), **buffers}},
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = load_clip_checkpoint(write_checkpoint(content))
        assert (model.mean, model.std) == (HALF, HALF)


@pytest.mark.parametrize("levels", [{"image_mean": HALF}, {"image_mean": HALF, "image_std": [0, 0, 0]}])
def test_mean_and_deviation_that_cannot_be_used_are_told(clip, write_checkpoint, levels):
    with pytest.warns(InputWarning, match="config 中的均值和标准差无法使用，按 ImageNet"):
        model = load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), "config": levels}))
    assert model.mean is None


# -- what would be another model --------------------------------------------------------------


@pytest.mark.parametrize("name", ["resolution", "input_size", "crop_size"])
def test_a_size_that_may_be_another_things_is_told(clip, write_checkpoint, name):
    content = {"state_dict": clip.state_dict(), "detector": {name: 640}}
    with pytest.warns(InputWarning, match=f"img_size 取自.*detector.{name}（640），请核对"):
        assert load_clip_checkpoint(write_checkpoint(content)).img_size == 640


SIZES_WRITTEN = ["96x96", "(3, 96, 96)", "96,96", (96, 96, 3), (1, 3, 96, 96), torch.tensor(96), torch.tensor([96, 96])]


@pytest.mark.parametrize("size", [*SIZES_WRITTEN, {"value": 96}], ids=str)
def test_an_input_size_however_it_is_written(clip, write_checkpoint, size):
    assert (
        load_clip_checkpoint(write_checkpoint({"net": clip.state_dict(), "config": {"img_size": size}})).img_size == 96
    )


@pytest.mark.parametrize(
    "beside", [{"adapter": {"lora_A": torch.zeros(2, 2)}}, {"lora_state_dict": {"x.lora_B.weight": torch.zeros(2, 2)}}]
)
def test_adapters_beside_the_weights_are_refused(clip, write_checkpoint, beside):
    with pytest.raises(CheckpointError, match="适配器"):
        load_clip_checkpoint(write_checkpoint({"state_dict": clip.state_dict(), **beside}))


def test_half_an_adapter_beside_a_checkpoint_is_refused(clip, write_checkpoint, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="适配器.*不完整.*adapter_config.json.*merge_and_unload"):
        load_clip_checkpoint(write_checkpoint(clip.state_dict()))


@pytest.mark.parametrize(
    "key", ["image_encoder.adapter.weight", "image_encoder.prompt_tokens", "text_encoder.norm.bias"]
)
def test_what_lies_in_a_tower_is_not_left_aside(clip, write_checkpoint, key):
    with pytest.raises(CheckpointError, match=f"塔中有 1 个权重不属于已知的结构：{key}"):
        load_clip_checkpoint(write_checkpoint({**clip.state_dict(), key: torch.zeros(3)}))
    with pytest.warns(InputWarning, match="image_encoder.head.weight"):
        load_clip_checkpoint(write_checkpoint({**clip.state_dict(), "image_encoder.head.weight": torch.zeros(3)}))


@pytest.mark.parametrize("copy", ["ema_model.", "ema.", "momentum.", "aux.", "module.ema."])
def test_a_copy_among_the_weights_is_none_of_them(clip, write_checkpoint, copy):
    other = {f"{copy}{key}": t + 1 if t.is_floating_point() else t for key, t in clip.state_dict().items()}
    with pytest.warns(InputWarning, match="没有采用 state_dict") as caught:
        assert_same_model(load_clip_checkpoint(write_checkpoint({"state_dict": {**clip.state_dict(), **other}})), clip)
    assert len(caught) == 1


@pytest.mark.parametrize("copy", ["polyak", "avg_model", "slow_weights", "mean_net", "grads", "initial_weights"])
def test_copies_are_known_by_words(clip, write_checkpoint, copy):
    other = {key: t + 1 if t.is_floating_point() else t for key, t in clip.state_dict().items()}
    for content in ({copy: other, "net": clip.state_dict()}, {"cinema": clip.state_dict(), copy: other}):
        with pytest.warns(InputWarning, match=f"没有采用 {copy} 的"):
            assert_same_model(load_clip_checkpoint(write_checkpoint(content)), clip)


def test_a_temperature_of_another_name_is_told(clip, write_checkpoint):
    bare = {key: tensor for key, tensor in clip.state_dict().items() if key != "temperature"}
    with pytest.warns(InputWarning, match="没有 temperature（其中的 criterion.logit_scale 没有采用）"):
        load_clip_checkpoint(write_checkpoint({**bare, "criterion.logit_scale": torch.tensor(2.0)}))
    for value in (0.5, [0.5], torch.tensor(0.5)):
        model = load_clip_checkpoint(write_checkpoint({"state_dict": bare, "config": {"tau": value}}))
        assert float(model.temperature) == 0.5
    with pytest.warns(InputWarning, match="temperature 有不同的说法"):
        content = {"state_dict": bare, "config": {"temperature": 0.5}, "args": {"temperature": 0.2}}
        assert float(load_clip_checkpoint(write_checkpoint(content)).temperature) == 0.5


def test_what_a_text_config_says_in_vain_is_told(clip, write_checkpoint):
    config = {"num_attention_heads": "4", "hidden_act": "swish", "position_embedding_type": "relative_key"}
    with pytest.warns(InputWarning, match="text_config 中 position_embedding_type=relative_key 不受支持"):
        model = load_clip_checkpoint(write_checkpoint({"net": clip.state_dict(), "text_config": config}))
    bert = model.text_encoder.backbone.config
    assert bert.num_attention_heads == 4 and bert.hidden_act == "silu"


def test_a_pickle_of_more_steps_than_any_models(tmp_path):
    """Deflated to nothing: each step would make an object of a few hundred bytes."""
    with pytest.raises(InputError, match="过长"):
        read_checkpoint_file(write_zip(tmp_path / "a.pth", b"\x8f" * 3_100_000))


def test_an_entry_that_inflates_to_more_than_it_declares(tmp_path):
    """The directory says 100 bytes, the stream holds 200 MB: no more is inflated than is said."""
    path = write_zip(tmp_path / "a.pth", mapping(x=b"K\x01"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/byteorder", bytes(200 << 20))
        entry = archive.getinfo("archive/byteorder")
        entry.file_size = 100
    tracemalloc.start()
    with pytest.raises(InputError, match="byteorder 已损坏|大得可疑"):
        read_checkpoint_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
