"""Text features kept between runs: what keys them, what an entry survives, and what a warm run leaves alone."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_command_line import flags, home, raises, run_process  # noqa: F401 (fixtures)
from test_loading import save_legacy, save_zip
from tiny import TINY_BERT, load_with_text_features, tiny_clip
from tiny_pretrained import Payload

import clip_gradcam_visualization as script
import models.clip
import models.loading.own
from clip_gradcam_visualization import main
from models import writing
from models.errors import CheckpointError, InputError, InputWarning
from models.loading import load as loading
from models.loading import text_cache
from models.loading.fingerprint import checkpoint_fingerprint
from models.loading.load import load_clip_checkpoint
from models.loading.text_cache import load_entry, sizes_of, store_entry, text_encoder_files, text_features_key
from models.towers.unread import Unread
from models.weights.files import read_torch_file

SCRIPT = Path(script.__file__)
TEXTS = ["正常", "松动", "感染"]
CONFIG = {"embed_dim": 32, "text_config": {**TINY_BERT, "vocab_size": 21128}}


def changed(state, key=None, by=1e-6):
    """A copy of a state dict in which one number is another."""
    key = key or next(iter(state))
    copy = {name: tensor.clone() for name, tensor in state.items()}
    flat = copy[key].view(-1)
    flat[-1] = flat[-1] + by if flat.is_floating_point() else flat[-1] + 1
    assert not torch.equal(copy[key], state[key])
    return copy


def entries(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def damage_entry(path, position):
    """Overwrite a tensor's bytes inside a zip; its directory goes on saying what it said."""
    with zipfile.ZipFile(path) as archive, open(path, "r+b") as file:
        for entry in archive.infolist():
            if position(entry):
                file.seek(entry.header_offset + 26)
                name, extra = np.frombuffer(file.read(4), "<u2").tolist()
                file.seek(entry.header_offset + 30 + name + extra)
                file.write(b"\xff" * entry.file_size)


# -- the fingerprint --------------------------------------------------------------------------


def save_zip_without_crc(content, path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_zip(content, path)
    finally:
        torch.serialization.set_crc32_options(before)


@pytest.mark.parametrize("save", [save_zip, save_zip_without_crc, save_legacy, save_file])
def test_any_weight_changes_the_fingerprint_and_nothing_else_does(tmp_path, save):
    state = {"one": torch.zeros(8), "other": torch.ones(8), "norm.bias": torch.zeros(5), "steps": torch.tensor(3)}
    swapped = {"one": torch.ones(8), "other": torch.zeros(8)}
    renamed = {"other": torch.zeros(8), "one": torch.ones(8)}  # in a zip the tensors are as before, their names not
    path, copy = tmp_path / "a.pth", tmp_path / "其他 名字.bin"
    save(state, path)
    fingerprint = checkpoint_fingerprint(path)
    assert len(fingerprint) == 32 and int(fingerprint, 16) >= 0
    if save is save_zip_without_crc:
        shutil.copy(path, copy)  # hashed whole: torch names the folder in a zip after the file
    else:
        save(state, copy)
    os.utime(copy, (1, 1))
    assert checkpoint_fingerprint(copy) == fingerprint
    status = path.stat()
    rest = {key: state[key] for key in ("norm.bias", "steps")}
    for other in (*(changed(state, key) for key in state), {**swapped, **rest}, {**renamed, **rest}):
        save(other, path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns
        if save is not save_legacy:  # which names storages by their addresses, of any length
            assert path.stat().st_size == status.st_size
        assert checkpoint_fingerprint(path) != fingerprint, other
    save(state, path)
    assert checkpoint_fingerprint(path) == fingerprint


def test_a_zip_whose_crcs_are_of_the_pickle_alone_is_hashed(tmp_path):
    """As of a writer that fills in a constant for what is large."""
    fingerprints = set()
    for number in (1.0, 2.0):
        path = tmp_path / "a.pth"
        save_zip({"weight": torch.full((6,), number)}, path)
        with zipfile.ZipFile(path) as archive:
            (crc,) = (entry.CRC for entry in archive.infolist() if entry.filename.endswith("/data/0"))
            (serial,) = (name for name in archive.namelist() if name.endswith("serialization_id"))
            serial = archive.read(serial)  # torch sums up the true CRCs there
        data = path.read_bytes().replace(crc.to_bytes(4, "little"), b"\x01\x02\x03\x04")
        path.write_bytes(data.replace(serial, b"0" * len(serial)))
        fingerprints.add(checkpoint_fingerprint(path))
    assert len(fingerprints) == 2


def test_tensors_of_a_zip_are_not_read(tmp_path):
    path = tmp_path / "a.pth"
    save_zip({f"small.{i}": torch.ones(i + 1) for i in range(20)} | {"large": torch.randn(1000)}, path)
    fingerprint = checkpoint_fingerprint(path)
    damage_entry(path, lambda entry: entry.file_size == 4000)
    assert checkpoint_fingerprint(path) == fingerprint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"hello"])
def test_what_is_no_checkpoint_has_a_fingerprint_too(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert checkpoint_fingerprint(tmp_path / "a") == hashlib.sha256(b"file\0" + content).hexdigest()[:32]


# -- the key ----------------------------------------------------------------------------------


@pytest.fixture
def vocabulary(tmp_path):
    """A local folder of a text encoder, as the shipped one."""
    folder = tmp_path / "bert"
    shutil.copytree(models.weights.hub.ASSETS / "bert-base-chinese", folder)
    return folder


def key_of(text_encoder, config, **others):
    return text_features_key(tokenizer_files=text_encoder_files(text_encoder), sizes=sizes_of(config), **others)


KEY = {"fingerprint": "0" * 32, "text_encoder": "bert-base-chinese", "config": CONFIG, "texts": TEXTS, "device": "cpu"}
OTHER_INGREDIENTS = (
    {"fingerprint": "1" * 32},
    {"texts": ["正常", "松动", "感染。"]},
    {"texts": ["松动", "正常", "感染"]},
    {"texts": TEXTS[:2]},
    {"texts": ["正常松动", "感染"]},
    {"config": {**CONFIG, "text_config": {**CONFIG["text_config"], "num_attention_heads": 2}}},
    {"config": {**CONFIG, "embed_dim": 64}},
    {"device": "mps"},
)


def test_each_ingredient_changes_the_key_and_nothing_else_does():
    keys = [key_of(**{**KEY, **other}) for other in ({}, *OTHER_INGREDIENTS)]
    assert all(len(key) == 64 for key in keys) and len(set(keys)) == len(keys)
    for name in ("bert-base-chinese", "google-bert/bert-base-chinese", "/training/machine/bert-base-chinese"):
        assert key_of(**{**KEY, "text_encoder": name}) == keys[0]


def test_threads_versions_and_format_change_the_key(monkeypatch):
    genuine = text_cache.metadata.version
    changes = [(torch, "get_num_threads", lambda: 7), (text_cache, "FORMAT", "another")]
    for library in text_cache.LIBRARIES:
        changed_version = lambda name, library=library: genuine(name) + "x" * (name == library)  # noqa: E731
        changes.append((text_cache.metadata, "version", changed_version))
    keys = {key_of(**KEY)}
    for change in changes:
        with monkeypatch.context() as context:
            context.setattr(*change)
            keys.add(key_of(**KEY))
    assert len(keys) == 1 + len(changes) and len(changes) == 2 + len(text_cache.LIBRARIES)
    monkeypatch.setattr(text_cache, "LIBRARIES", ("torch", "no-such-library"))
    assert key_of(**KEY) is None


@pytest.mark.parametrize("file", ["vocab.txt", "config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_the_files_of_a_local_text_encoder_are_part_of_the_key(vocabulary, tmp_path, file):
    def key(folder=vocabulary):
        return key_of(**{**KEY, "text_encoder": str(folder)})

    before = key()
    assert before == key(shutil.copytree(vocabulary, tmp_path / "moved"))
    path = vocabulary / file
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "{}") + "\n", encoding="utf-8")
    assert key() not in (before, None)


def test_a_text_encoder_that_is_not_at_hand_has_no_key(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), "no/such", "no such name at all!"):
        assert key_of(**{**KEY, "text_encoder": name}) is None


def test_a_hub_name_counts_by_its_files_in_the_local_cache(vocabulary, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / "abc"
    shutil.copytree(vocabulary, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    key = key_of(**{**KEY, "text_encoder": "some/bert"})
    assert key is not None and key_of(**{**KEY, "text_encoder": "other/bert"}) is None
    (snapshot / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    assert key_of(**{**KEY, "text_encoder": "some/bert"}) not in (key, None)


# -- entries ----------------------------------------------------------------------------------

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_is_stored_is_loaded(user_cache):
    assert load_entry("a" * 64) is None
    store_entry("a" * 64, FEATURES.T, [Unread("甲", 600, 512, "𠮷")])
    features, unread = load_entry("a" * 64)
    np.testing.assert_array_equal(features, FEATURES.T)
    assert features.dtype == np.float32 and unread == [Unread("甲", 600, 512, "𠮷")]
    assert len(entries(user_cache)) == 1 and load_entry("b" * 64) is None


def test_an_entry_under_another_name_is_foreign(user_cache):
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    path.rename(path.with_name(path.name.replace("a" * 64, "b" * 64)))
    assert load_entry("b" * 64) is None


def with_checksum(array_bytes, key="a" * 64):
    header = json.dumps({"format": text_cache.FORMAT, "key": key, "unread": []}).encode()
    rest = header + b"\n" + array_bytes
    return hashlib.sha256(rest).digest() + rest


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


EXECUTES = Payload(os.system, "echo > executed")
DAMAGED = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "cut in the header": lambda data: data[:50],
    "a flipped bit in the features": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "a flipped bit in the checksum": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "something behind": lambda data: data + b"x",
    "text": lambda data: b"hello" * 100,
    "no header": lambda data: hashlib.sha256(b"[]\n").digest() + b"[]\n",
    "NaN": lambda data: with_checksum(npy(np.full((3, 32), np.nan, np.float32))),
    "float64": lambda data: with_checksum(npy(np.zeros((3, 32)))),
    "one dimension": lambda data: with_checksum(npy(np.zeros(32, np.float32))),
    "pickled objects": lambda data: with_checksum(npy(np.array([[EXECUTES]], dtype=object))),
    "a pickle alone": lambda data: with_checksum(b"\x80\x04N."),
    "larger than memory": lambda data: with_checksum(npy(np.zeros((0, 1), np.float32)).replace(b"(0,", b"(999999999,")),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_entry_is_absent_and_executes_nothing(user_cache, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    path.write_bytes(DAMAGED[case](path.read_bytes()))
    assert load_entry("a" * 64) is None
    assert not (tmp_path / "executed").exists()
    store_entry("a" * 64, FEATURES)
    np.testing.assert_array_equal(load_entry("a" * 64)[0], FEATURES)


def test_an_entry_of_another_shape_is_absent(user_cache):
    store_entry("a" * 64, FEATURES)
    for shape in ((2, 3), (2, None), (None, 3), (None, None)):
        np.testing.assert_array_equal(load_entry("a" * 64, shape)[0], FEATURES)
    assert all(load_entry("a" * 64, shape) is None for shape in ((3, 2), (2, 4), (1, None), (None, 2)))


@pytest.mark.parametrize(
    "unread",
    [
        *([["甲", 9, 8, ""]] * 3, "甲", {"甲": 1}, 3, None, [["甲"]], [None]),
        *([[1, 9, 8, ""]], [["甲", 9, "8", ""]], [["甲", 9, True, ""]], [["甲", 9, 8, 0]], [["甲", 9, 8]]),
    ],
)
def test_what_is_not_read_is_said_of_as_many_texts_at_most_and_in_our_words(user_cache, unread):
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    header = {"format": text_cache.FORMAT, "key": "a" * 64, "unread": unread}
    rest = json.dumps(header).encode() + b"\n" + npy(FEATURES)
    path.write_bytes(hashlib.sha256(rest).digest() + rest)
    assert load_entry("a" * 64) is None


NPY_HEADER = b"{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }"
HEADERS = [
    NPY_HEADER % parts
    for parts in (
        (b"<f4", b"False", b"2, 3"),
        (b"<f4", b"True", b"2, 3"),
        (b">f4", b"False", b"2, 3"),
        (b"<f4", b"False", b"-2, -3"),
        (b"<f4", b"False", b"999999999, 999999999"),
        (b"<f4", b"False", b"9" * 5000 + b", 0"),
    )
] + [b"(" * 60_000]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_is_held_against_the_bytes(user_cache, header):
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    array = b"\x93NUMPY\x01\0" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + FEATURES.tobytes()
    path.write_bytes(with_checksum(array))
    loaded = load_entry("a" * 64)
    assert (loaded is not None) == (header == HEADERS[0])


def make_link(path):
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_huge(path):
    os.truncate(path, 1 << 40)


FOREIGN = {
    "a link": make_link,
    "a pipe": make_pipe,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a terabyte": make_huge,
    "open to all": lambda path: path.chmod(0o666),
    "a folder that is a link": lambda path: make_link(path.parent),
}


@pytest.mark.skipif(os.name != "posix", reason="links, pipes and permissions")
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_entry_that_another_may_have_made_is_absent(user_cache, kind):
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    FOREIGN[kind](path)
    assert load_entry("a" * 64) is None


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
@pytest.mark.parametrize("of", ["the entry", "the folder"])
def test_an_entry_of_another_user_is_absent_and_one_of_root_is_not(user_cache, monkeypatch, of):
    store_entry("a" * 64, FEATURES)
    (path,) = entries(user_cache)
    place, genuine = (path if of == "the entry" else path.parent), text_cache._check_ours

    def owned_by(user):
        def check(path, status, kind):
            other = os.stat_result([*status[:4], user if path == place else os.getuid(), *status[5:]])
            genuine(path, other, kind)

        monkeypatch.setattr(text_cache, "_check_ours", check)

    owned_by(os.getuid() + 1)
    assert load_entry("a" * 64) is None
    before = entries(user_cache)
    if of == "the folder":
        store_entry("b" * 64, FEATURES)
        assert entries(user_cache) == before
    owned_by(0)
    assert load_entry("a" * 64) is not None


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_among_the_tokenizers_files_is_no_key(vocabulary):
    (vocabulary / "vocab.txt").unlink()
    os.mkfifo(vocabulary / "vocab.txt")
    assert key_of(**{**KEY, "text_encoder": str(vocabulary)}) is None


def test_the_folder_of_the_cache(monkeypatch, tmp_path):
    assert text_cache.cache_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "clip_gradcam"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for value in ("", "relative/does/not/count"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert text_cache.cache_folder() == tmp_path / ".cache" / "clip_gradcam"


def test_no_home_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(text_cache.Path, "home", raises(RuntimeError("Could not determine home directory.")))
    store_entry("a" * 64, FEATURES)
    assert load_entry("a" * 64) is None


@pytest.mark.parametrize("place", [(writing.os, "replace"), (writing.tempfile, "mkstemp")])
def test_a_full_or_forbidden_disk_leaves_nothing(user_cache, monkeypatch, place):
    monkeypatch.setattr(*place, raises(OSError(28, "No space left on device")))
    store_entry("a" * 64, FEATURES)
    assert entries(user_cache) == []


def test_many_writers_at_once(user_cache):
    """Threads and two processes store and load one key: whoever reads, reads a whole entry or none."""
    code = (
        "import sys, numpy as np\n"
        "from models.loading.text_cache import load_entry, store_entry\n"
        "features = np.full((200, 300), 7, np.float32)\n"
        "for _ in range(100):\n"
        "    store_entry('a' * 64, features, [('m', 2, 1, '')])\n"
        "    loaded, unread = load_entry('a' * 64)\n"
        "    assert (loaded == features).all() and unread == [('m', 2, 1, '')]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    seen = []
    while any(process.poll() is None for process in processes):
        seen.append(load_entry("a" * 64))
    assert [process.returncode for process in processes] == [0, 0]
    found = [entry for entry in seen if entry is not None]
    assert found and all((features == 7).all() for features, _ in found)
    first = next(i for i, entry in enumerate(seen) if entry is not None)
    assert all(entry is not None for entry in seen[first:])
    assert len(entries(user_cache)) == 1


# -- a model without its text tower -----------------------------------------------------------


def test_a_model_without_text_tower(clip):
    model = models.clip.CLIPModel("starnet_s1", embed_dim=32, text_tower=False)
    model.load_state_dict(clip.state_dict())
    own = model.eval().state_dict()
    assert own and not any(key.startswith("text_encoder.") for key in own)
    assert all(torch.equal(tensor, clip.state_dict()[key]) for key, tensor in own.items())
    images, features = torch.rand(2, 3, 64, 64), clip.embed_texts(TEXTS).detach()
    own, expected = (m.predict(images, text_features=features)[1] for m in (model, clip))
    torch.testing.assert_close(own, expected)
    calls = (model.forward, images), (model.predict, images), (model.precompute_class_text_features,)
    for call, *arguments in (*calls, (script.embed_texts, model)):
        with pytest.raises(InputError, match="没有文本编码器"):
            call(*arguments, TEXTS)


def test_a_model_without_text_tower_complains_of_the_rest_as_ever(clip):
    def loads(state):
        return models.clip.CLIPModel("starnet_s1", embed_dim=32, text_tower=False).load_state_dict(state)

    state = clip.state_dict()
    with pytest.raises(CheckpointError, match="缺少 1 个权重.*projection.bias"):
        loads({key: tensor for key, tensor in state.items() if key != "image_encoder.projection.bias"})
    with pytest.raises(CheckpointError, match="没有位置.*backbone.extra"):
        loads({**state, "image_encoder.backbone.extra": torch.zeros(1)})
    with pytest.warns(InputWarning, match="loss.scale"):
        loads({**state, "loss.scale": torch.zeros(1)})
    with pytest.warns(InputWarning, match="没有 temperature"):
        loads({key: tensor for key, tensor in state.items() if key != "temperature"})


def test_a_small_file_is_mapped_where_that_is_asked_for(checkpoint, monkeypatch):
    seen = []
    genuine = torch.UntypedStorage.from_file
    monkeypatch.setattr(
        torch.UntypedStorage, "from_file", staticmethod(lambda *args: seen.append(args[2]) or genuine(*args))
    )
    for mapped in (None, True, False):
        read_torch_file(checkpoint, mapped)
    assert seen == [checkpoint.stat().st_size]


# -- loading with the cache -------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """A list that grows by True or False with each model built, with or without its text tower."""
    seen = []
    genuine = models.loading.own.build_on_meta

    def watched(config, text_tower=True):
        seen.append(text_tower)
        return genuine(config, text_tower)

    monkeypatch.setattr(models.loading.own, "build_on_meta", watched)
    return seen


def assert_features_of(features, path, texts=TEXTS, **options):
    expected = script.embed_texts(load_clip_checkpoint(path, **options), texts)
    assert features.dtype == torch.float32 and torch.equal(features, expected)


def save_half(content, path):
    state = {key: tensor.half() for key, tensor in content["state_dict"].items()}
    save_zip({**content, "state_dict": state}, path)


def save_safetensors(content, path):
    save_file(content["state_dict"], path, {"img_size": str(content["img_size"])})


@pytest.mark.parametrize("save", [save_zip, save_zip_without_crc, save_legacy, save_half, save_safetensors])
def test_a_hit_is_bit_equal_and_builds_no_text_tower(tmp_path, clip, save, built):
    path = tmp_path / ("a.safetensors" if save is save_safetensors else "a.pth")
    save({"state_dict": clip.state_dict(), "img_size": 64}, path)
    results = [load_with_text_features(path, TEXTS, use_cache=use_cache) for use_cache in (True, True, False)]
    assert built == [True, False, True]
    expected = load_clip_checkpoint(path).state_dict()
    for model, features in results:
        assert model.text_encoder is None and not model.training and model.img_size == 64
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
        assert_features_of(features, path)


@pytest.mark.parametrize("encoder", ["resnet18", "vit"])
def test_heatmaps_of_a_hit_are_bit_equal(write_checkpoint, picture, encoder, built):
    path = write_checkpoint({"state_dict": tiny_clip(encoder).state_dict()})
    contents = []
    for _ in range(2):
        model, features = load_with_text_features(path, TEXTS)
        pixels = script.read_image(picture)
        contents.append(script.explain(model, pixels, TEXTS, img_size=64, text_features=features))
    assert built == [True, False]
    for name in ("heatmap", "overlay", "probabilities", "similarities"):
        np.testing.assert_array_equal(getattr(contents[0], name), getattr(contents[1], name))


def test_other_weights_under_the_same_path_and_time_stamp(clip, write_checkpoint, built):
    path = write_checkpoint({"state_dict": dict(clip.state_dict())})
    status = path.stat()
    old = load_with_text_features(path, TEXTS)[1]
    write_checkpoint({"state_dict": changed(clip.state_dict(), "text_encoder.projection.bias", by=1.0)})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    new = load_with_text_features(path, TEXTS)[1]
    assert built == [True, True] and not torch.equal(old, new)
    assert_features_of(new, path)


def test_a_changed_tokenizer_recomputes(checkpoint, vocabulary, built):
    old = load_with_text_features(checkpoint, TEXTS, text_encoder=str(vocabulary))[1]
    words = (vocabulary / "vocab.txt").read_text(encoding="utf-8").split("\n")
    i, j = words.index("正"), words.index("松")
    words[i], words[j] = words[j], words[i]
    (vocabulary / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    new = load_with_text_features(checkpoint, TEXTS, text_encoder=str(vocabulary))[1]
    assert built == [True, True] and not torch.equal(old, new)
    assert_features_of(new, checkpoint, text_encoder=str(vocabulary))


@pytest.mark.parametrize("moment", ["before the key", "after the key"])
def test_a_checkpoint_replaced_while_it_is_read_is_not_cached(clip, write_checkpoint, user_cache, monkeypatch, moment):
    """A training saves the next epoch between the reading of the weights and their fingerprint, or after it."""
    path = write_checkpoint({"state_dict": clip.state_dict()})
    other = write_checkpoint({"state_dict": changed(clip.state_dict(), by=1.0)}, "other.pth")
    place = (text_cache, "fingerprint") if moment == "before the key" else (loading, "embed_texts")
    genuine = getattr(*place)

    def replaced_meanwhile(*arguments):
        if other.exists():
            os.replace(other, path)
        return genuine(*arguments)

    monkeypatch.setattr(*place, replaced_meanwhile)
    model, _ = load_with_text_features(path, TEXTS)
    assert entries(user_cache) == []
    key = next(iter(clip.state_dict()))
    assert torch.equal(model.state_dict()[key], clip.state_dict()[key])


def test_a_small_checkpoint_may_be_overwritten_once_it_is_loaded(clip, write_checkpoint):
    """Nothing stays mapped: a mapped file that shrinks would end this process."""
    path = write_checkpoint({"state_dict": clip.state_dict()})
    for _ in range(2):
        content = path.read_bytes()
        model, features = load_with_text_features(path, TEXTS)
        path.write_bytes(b"")
        assert all(torch.equal(model.state_dict()[k], clip.state_dict()[k]) for k in model.state_dict())
        assert torch.isfinite(features).all()
        path.write_bytes(content)


def test_warnings_are_said_again_on_a_hit(checkpoint, built):
    texts = ["正常", "股骨柄周围可见透亮线。" * 30]
    said = []
    for use_cache in (True, True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_with_text_features(checkpoint, texts, embed_dim=512, use_cache=use_cache)
        said.append([str(w.message) for w in caught if issubclass(w.category, InputWarning)])
    assert built == [True, False, True]
    assert said[0] == said[1] == said[2] and len(said[0]) == 2
    assert "--embed-dim" in said[0][0] and "股骨柄周围" in said[0][1] and "128" in said[0][1]


# -- the command ------------------------------------------------------------------------------


def results(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_of_a_warm_command_are_those_of_a_cold_one(flags, home, user_cache, built, capsys):  # noqa: F811
    """And those of one without the cache, which neither reads nor writes it."""
    said, kept = [], []
    for folder, off in (("none", True), ("cold", None), ("warm", None), ("none again", True)):
        assert main(flags(output_dir=folder, no_text_cache=off)) == 0
        said.append(capsys.readouterr().out.replace(folder, ""))
        kept.append([(path, path.read_bytes(), path.stat().st_mtime_ns) for path in entries(user_cache)])
        assert len(results(home / folder)) == 2 and results(home / folder) == results(home / "none")
    assert built == [True, True, False, True] and len(set(said)) == 1
    assert kept[0] == [] and len(kept[1]) == 1 and kept[1] == kept[2] == kept[3]


def test_a_damaged_entry_is_recomputed_and_replaced(flags, user_cache, built, capsys):  # noqa: F811
    assert main(flags()) == 0
    (path,) = entries(user_cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main(flags()) == 0 and main(flags()) == 0
    assert built == [True, True, False] and path.read_bytes() == whole
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["clip_gradcam", "."], ids=["its own", "its parent's"])
def test_a_file_in_the_folders_place(flags, tmp_path, built, capsys, monkeypatch, place):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    obstacle = tmp_path / "cache" / place
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.write_text("mine")
    assert main(flags()) == 0 and main(flags()) == 0
    assert built == [True, True] and capsys.readouterr().err == "" and obstacle.read_text() == "mine"


def test_layers_are_listed_without_the_text_tower(flags, built, user_cache):  # noqa: F811
    assert main(flags(list_layers=True)) == 0
    assert built == [False] and entries(user_cache) == []


# -- as a process -----------------------------------------------------------------------------

SPY = (
    "import json, sys\n"
    "import torch\n"
    "known = set(sys.modules)\n"
    "from clip_gradcam_visualization import main\n"
    "code = main(sys.argv[1:])\n"
    "print(json.dumps(sorted({name for name in set(sys.modules) - known})))\n"
    "sys.exit(code)\n"
)


def heavy_imports(arguments, folder):
    """Which of the heavy libraries a command imports beyond what `import torch` has imported."""
    done = run_process(["-c", SPY, *arguments], folder, OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    modules = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    return modules & {"transformers", "torchvision", "huggingface_hub", "safetensors", "peft"}


@pytest.mark.parametrize("encoder, needed", [("starnet_s1", set()), ("resnet18", {"torchvision"})])
def test_what_a_warm_command_imports_and_reads(flags, home, write_checkpoint, encoder, needed):  # noqa: F811
    """No transformers, and no byte of the text tower: those in the file are destroyed."""
    state = tiny_clip(encoder).state_dict()
    path = write_checkpoint({"state_dict": state, "config": {"img_size": 64}})
    assert "transformers" in heavy_imports(flags(model_path=path, output_dir="cold"), home)
    text = {tensor.nbytes for key, tensor in state.items() if key.startswith("text_encoder.")}
    shared = {tensor.nbytes for key, tensor in state.items() if not key.startswith("text_encoder.")}
    large = {size for size in text - shared if size > 1000}
    damage_entry(path, lambda entry: "/data/" in entry.filename and entry.file_size in large)
    destroyed = torch.load(path)["state_dict"]["text_encoder.backbone.embeddings.word_embeddings.weight"]
    assert destroyed.isnan().all()
    assert heavy_imports(flags(model_path=path, output_dir="warm"), home) == needed
    assert results(home / "cold") == results(home / "warm")
