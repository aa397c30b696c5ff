"""Folders and names of strangers: nothing in them runs, nothing goes out unasked, and what is read is right."""

import csv
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import gradient_picture, load_with_text_features, tiny_clip
from tiny_pretrained import CLIP_PIXELS, FAMILIES, TEXTS, save_pretrained, write_clip_bpe
from torch.nn import functional as F

from clip_gradcam_visualization import explain, main
from models.errors import CheckpointError, InputError, InputWarning
from models.loading.fingerprint import fingerprint
from models.loading.load import embed_texts, load_clip_checkpoint
from models.towers.grey import GREY
from models.towers.text import TextEncoder
from models.towers.tokenizers import find_clip_tokenizer
from models.weights.hub import ASSETS, SHIPPED_TEXT_ENCODERS, read_json

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")

ROOT = Path(__file__).parents[2]
PIXEL_FILE = "preprocessor_config.json"


@pytest.fixture
def attempts(monkeypatch, tmp_path):
    """What tried to reach a network, refused; the model hub's client may, and its cache is empty."""
    tried = []

    def refused(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in the tests")

    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tried


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    """Nobody is asked anything."""

    def asked(*args):
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def clip_folder(tmp_path):
    return save_pretrained(tmp_path / "clip", "clip")[0]


def change_json(file, **changes):
    """Change fields of a JSON file; a name with a dot is one of an inner object."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, value in changes.items():
        *outer, last = name.split("__")
        part = content
        for key in outer:
            part = part.setdefault(key, {})
        part[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def embeddings(path, **options):
    """(of the gradient picture, of TEXTS) by the model at a path."""
    model = load_clip_checkpoint(path, **options)
    with torch.no_grad():
        return model.image_encoder(model.preprocessing(gradient_picture())), embed_texts(model, TEXTS)


def assert_one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 700, str(error.value)


# -- names, and what goes out -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["patients/zhangsan_hip", "openai/clip-vit-base-patch32"])
def test_a_name_is_answered_at_once_and_says_how_to_download(attempts, name):
    with pytest.raises(InputError, match=f"{name}：没有这个文件或文件夹.*--download.*hub:{name}") as error:
        load_clip_checkpoint(name)
    assert attempts == []
    assert_one_line(error)


def test_the_command_does_not_go_out_either(attempts, picture, capsys):
    arguments = ["--model-path", "patients/zhangsan_hip", "--image-path", str(picture), "--class-texts", "正常", "松动"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("错误: ") and len(err.splitlines()) == 1 and "patients/zhangsan_hip" in err
    assert attempts == []
    assert main([*arguments, "--download"]) == 2
    assert "模型库无法连接" in capsys.readouterr().err and attempts


@pytest.mark.parametrize("options", [{"path": "hub:org/clip"}, {"path": "org/clip", "download": True}])
def test_who_asks_for_it_goes_out(attempts, options):
    with pytest.raises(InputError, match="org/clip：不在模型库的本地缓存中，模型库无法连接"):
        load_clip_checkpoint(**options)
    assert attempts


@pytest.mark.parametrize("name", ["hub:", "hub:a/b/c", "hub:../x", "hub:/etc/x", "hub:a b"])
def test_what_is_no_name_of_the_hub(attempts, name):
    with pytest.raises(InputError, match="不是模型库中的名称"):
        load_clip_checkpoint(name)
    assert attempts == []


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    "name", ["evil/encoder", "hub:evil/encoder", "encoder", "/data/models/encoder", "a\nb", 5, "x" * 5000]
)
def test_a_name_in_a_file_never_goes_out(attempts, clip, write_checkpoint, name, download):
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {"text_encoder": name}})
    with pytest.raises(InputError, match="--text-encoder") as error:
        load_clip_checkpoint(path, download=download)
    assert attempts == []
    assert_one_line(error)


def test_a_text_encoder_is_downloaded_where_the_user_names_it(monkeypatch, clip, write_checkpoint, tmp_path):
    """The hub's client stands in for the network; the checkpoint names the same encoder."""
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {"text_encoder": "org/bert"}})
    cached, asked = [], []

    def download(name, allow_patterns=None, local_files_only=False, cache_dir=None):
        if not local_files_only:
            asked.append((name, allow_patterns))
            cached.append(shutil.copytree(ASSETS / "bert-base-chinese", tmp_path / "snapshot"))
        if not cached:
            raise FileNotFoundError
        return str(cached[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda self, name: ["config.json", "model.safetensors"]
    )
    monkeypatch.setattr("models.weights.hub._hub_is_reachable", lambda: True)
    with pytest.raises(InputError, match="'org/bert'.*--text-encoder hub:org/bert"):
        load_clip_checkpoint(path, download=True)
    model = load_clip_checkpoint(path, text_encoder="hub:org/bert")
    assert [name for name, _ in asked] == ["org/bert"] and "model.safetensors" not in asked[0][1]
    torch.testing.assert_close(embed_texts(model, TEXTS), embed_texts(clip, TEXTS), rtol=0, atol=1e-6)


def test_clips_vocabulary_is_downloaded_only_on_request(attempts, monkeypatch):
    monkeypatch.setattr("models.towers.tokenizers.BPE_PACKAGES", ())
    with pytest.raises(InputError, match="找不到 CLIP 的分词器.*--download"):
        find_clip_tokenizer()
    assert attempts == []
    with pytest.raises(InputError, match="找不到 CLIP 的分词器"):
        find_clip_tokenizer(download=True)
    assert attempts


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_goes_out(attempts, tmp_path, family):
    folder, _ = save_pretrained(tmp_path, family)
    assert all(torch.isfinite(part).all() for part in embeddings(folder))
    assert attempts == []


def test_our_own_checkpoints_do_not_go_out(attempts, checkpoint, clip):
    assert torch.equal(embed_texts(load_clip_checkpoint(checkpoint), TEXTS), embed_texts(clip, TEXTS))
    vocabulary = str(SHIPPED_TEXT_ENCODERS["bert-base-chinese"])
    model = load_clip_checkpoint(checkpoint, text_encoder=vocabulary)
    assert torch.equal(embed_texts(model, TEXTS), embed_texts(clip, TEXTS))
    assert attempts == []


# -- code -------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path):
    """A function that puts code into a folder, and the file that it would write."""
    executed = tmp_path / "EXECUTED"

    def put(folder):
        names = ("Config", "Model", "Tokenizer", "Processor", "ImageProcessor")
        classes = "".join(f"class Own{name}: pass\n" for name in names)
        for file in ("own.py", "__init__.py", "modeling_clip.py", "tokenization_own.py", "conftest.py"):
            (folder / file).write_text(f"open({str(executed)!r}, 'w').write('x')\n{classes}")
        return {f"Auto{name}": f"own.Own{name}" for name in names}

    yield put
    assert not executed.exists()


def test_code_beside_a_model_that_needs_none_has_no_effect(attempts, clip_folder, code):
    expected = embeddings(clip_folder)
    maps = code(clip_folder)
    change_json(clip_folder / "config.json", auto_map=maps, architectures=["OwnModel"], trust_remote_code=True)
    change_json(clip_folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    change_json(clip_folder / PIXEL_FILE, auto_map=maps, processor_class="OwnProcessor")
    for own, same in zip(embeddings(clip_folder), expected):
        assert torch.equal(own, same)
    assert attempts == []


PASSED_OVER = {
    "a kernel for attention": {"_attn_implementation": "kernels-community/flash-attn"},
    "another name of it": {"attn_implementation": "kernels-community/flash-attn", "use_kernels": True},
    "in a part": {"vision_config___attn_implementation": "kernels-community/flash-attn"},
    "other weights": {"transformers_weights": "https://example.org/weights.bin"},
    "an expression as dtype": {"torch_dtype": "__import__('os').system", "dtype": "evil"},
    "another model": {"base_model_name_or_path": "evil/model", "_name_or_path": "evil/model"},
    "another part": {"vision_config__model_type": "detr", "text_config__model_type": "evil"},
    "backbones": {"vision_config__backbone": "evil/model", "vision_config__use_pretrained_backbone": True},
    "no dicts": {"return_dict": False, "text_config__return_dict": False, "vision_config__torchscript": True},
    "heads taken out": {"vision_config__pruned_heads": {"0": [1]}},
    "fusion": {"fusion_config": {"patch_embeddings": True}},
}


@pytest.mark.parametrize("fields", PASSED_OVER)
def test_what_is_no_size_has_no_effect(attempts, clip_folder, fields):
    expected = embeddings(clip_folder)
    change_json(clip_folder / "config.json", **PASSED_OVER[fields])
    for own, same in zip(embeddings(clip_folder), expected):
        assert torch.equal(own, same)
    assert attempts == []


NEEDS_CODE = {
    "a model": ("config.json", {"model_type": "own"}, "文件夹自带的代码，已拒绝"),
    "a model without a type": ("config.json", {"model_type": None}, "文件夹自带的代码，已拒绝"),
    "a type that is no name": ("config.json", {"model_type": ["clip"]}, "文件夹自带的代码，已拒绝"),
    "a tokenizer": ("tokenizer_config.json", {"tokenizer_class": "OwnTokenizer"}, "OwnTokenizer 不受支持"),
    "a tokenizer's path": ("tokenizer_config.json", {"tokenizer_class": "own.OwnTokenizer"}, "不受支持"),
    "a tokenizer of config.json": ("config.json", {"tokenizer_class": "OwnTokenizer"}, "OwnTokenizer 不受支持"),
}


@pytest.mark.parametrize("part", NEEDS_CODE)
def test_what_needs_code_is_refused(attempts, clip_folder, code, part):
    file, fields, message = NEEDS_CODE[part]
    change_json(clip_folder / file, **fields, auto_map=code(clip_folder))
    with pytest.raises(InputError, match=message) as error:
        embeddings(clip_folder)
    assert_one_line(error)
    assert attempts == []


def own_text_encoder(folder, code, **config):
    """A text encoder in a folder, with code beside it."""
    shutil.copytree(ASSETS / "bert-base-chinese", folder)
    maps = code(folder)
    change_json(folder / "config.json", auto_map=maps, **config)
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    return folder


def test_a_text_encoder_with_code(attempts, clip, write_checkpoint, tmp_path, code):
    folder = own_text_encoder(tmp_path / "encoder", code)
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {"text_encoder": str(folder)}})
    assert torch.equal(embed_texts(load_clip_checkpoint(path), TEXTS), embed_texts(clip, TEXTS))
    change_json(folder / "config.json", model_type="own")
    with pytest.raises(InputError, match="own 模型.*只支持 BERT"):
        load_clip_checkpoint(path)
    with pytest.raises(InputError, match="own 模型.*只支持 BERT"):
        TextEncoder(str(folder))
    assert attempts == []


def test_nobody_is_asked_on_a_terminal(clip, write_checkpoint, picture, tmp_path, code):
    """The whole command on a terminal on which "y" is waiting."""
    folder = own_text_encoder(tmp_path / "encoder", code, model_type="own")
    path = write_checkpoint({"state_dict": clip.state_dict(), "config": {"text_encoder": str(folder)}})
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    command = [sys.executable, ROOT / "clip_gradcam_visualization.py", "--model-path", path]
    command += ["--image-path", picture, "--class-texts", "正常", "松动", "--output-dir", tmp_path / "out"]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("错误: ") and len(done.stderr.splitlines()) == 1


# -- config.json ------------------------------------------------------------------------------

VISION_LAYERS, TEXT_LAYERS = "vision_config__num_hidden_layers", "text_config__num_hidden_layers"
# what config.json says -> what the error says
SIZES = {
    "a billion layers": ({VISION_LAYERS: 10**9}, "num_hidden_layers 是 1000000000.*1 到 1000"),
    "more layers than weights": ({TEXT_LAYERS: 900}, "900 层.*权重只有"),
    "a layer more": ({VISION_LAYERS: 4}, "权重与 config.json 不符.*缺少 16 个"),
    "a layer less": ({VISION_LAYERS: 2}, "权重与 config.json 不符.*没有位置"),
    "a trillion words": ({"text_config__vocab_size": 10**12}, "vocab_size 是 1000000000000"),
    "ten million words": ({"text_config__vocab_size": 10**7}, "权重与 config.json 不符.*形状"),
    "wide": ({"vision_config__hidden_size": 65536}, "权重与 config.json 不符.*形状"),
    "wider": ({"vision_config__hidden_size": 10**18}, "hidden_size 是 1000000000000000000"),
    "a large image": ({"vision_config__image_size": 10**6}, "image_size 是 1000000"),
    "another image": ({"vision_config__image_size": 4000}, "权重与 config.json 不符.*形状"),
    "no patch": ({"vision_config__patch_size": 0}, "patch_size 是 0"),
    "a negative patch": ({"vision_config__patch_size": -8}, "patch_size 是 -8"),
    "a patch in words": ({"vision_config__patch_size": "8"}, "patch_size 是 '8'"),
    "a patch that is none": ({"vision_config__patch_size": None}, "权重与 config.json 不符.*形状"),
    "a nested patch": ({"vision_config__patch_size": [[8]]}, r"patch_size 是 \[\[8\]\]"),
    "a patch of another size": ({"vision_config__patch_size": 4}, "权重与 config.json 不符.*形状"),
    "a true patch": ({"vision_config__patch_size": True}, "patch_size 是 True"),
    "half a head": ({"vision_config__num_attention_heads": 0.5}, "num_attention_heads 是 0.5"),
    "too many heads": ({"vision_config__num_attention_heads": 5}, "无法按.*config.json 建立模型"),
    "an activation": ({"vision_config__hidden_act": "evil"}, "无法按.*config.json 建立模型"),
    "an activation of dots": ({"vision_config__hidden_act": "os.system('x')"}, "hidden_act 是"),
    "an epsilon": ({"vision_config__layer_norm_eps": "1e-5"}, "layer_norm_eps 是 '1e-5'"),
    "many positions": ({"text_config__max_position_embeddings": 10**10}, "max_position_embeddings 是 10000000000"),
    "a list of a config": ({"text_config": [1]}, "text_config 应是一个对象"),
    "a config in words": ({"vision_config": "ViT-B/32"}, "vision_config 应是一个对象"),
    "a wide projection": ({"projection_dim": 10**9}, "projection_dim 是 1000000000"),
    "another projection": ({"projection_dim": 29}, "权重与 config.json 不符.*形状"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config.*不受支持"),
    "the older name of a part": ({"vision_config_dict": {"num_hidden_layers": 10**9}}, "vision_config_dict.num_hidden"),
}


@pytest.mark.parametrize("sizes", SIZES)
def test_sizes_are_checked_against_the_weights(clip_folder, sizes):
    fields, message = SIZES[sizes]
    change_json(clip_folder / "config.json", **fields)
    with pytest.raises(InputError, match=message) as error:
        load_clip_checkpoint(clip_folder)
    assert_one_line(error)


DEEP = "[" * 100_000
# what stands in a JSON file of a folder
NO_JSON = {
    "nested": ('{"a": ' + DEEP, "JSON"),
    "not a number": ('{"text_config": {}, "vision_config": {"layer_norm_eps": NaN}}', "NaN"),
    "infinite": ('{"a": -Infinity}', "Infinity"),
    "one name twice": ('{"a": 1, "a": 2}', "'a' 出现了两次"),
    "a huge number": ('{"a": 1' + "0" * 10_000 + "}", "JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "JSON"),
    "a string": ('"config"', "对象"),
    "null": ("null", "对象"),
    "empty": ("", "JSON"),
    "large": ('{"a": "' + "x" * 10_000_001 + '"}', "不超过 10 MB"),
}


@pytest.mark.parametrize("file", ["config.json", PIXEL_FILE, "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", NO_JSON)
def test_json_of_a_stranger(clip_folder, file, content):
    content, message = NO_JSON[content]
    (clip_folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"{file}.*{message}") as error:
        embeddings(clip_folder)
    assert_one_line(error)


def test_a_byte_order_mark_is_none_of_the_content(clip_folder):
    expected = embeddings(clip_folder)
    for name in ("config.json", PIXEL_FILE, "tokenizer_config.json"):
        (clip_folder / name).write_text("\ufeff" + (clip_folder / name).read_text(), encoding="utf-8")
    assert torch.equal(embeddings(clip_folder)[0], expected[0])


PIXELS = {
    "size 0": ({"size": {"shortest_edge": 0}}, "图像大小是 0"),
    "negative": ({"size": {"height": -32, "width": 32}, "do_center_crop": False}, "图像大小是 -32"),
    "a billion": ({"size": 10**9}, "图像大小是 1000000000"),
    "in words": ({"size": {"shortest_edge": "36"}}, "图像大小是 '36'"),
    "a crop of nothing": ({"crop_size": {"height": 0, "width": 32}}, "图像大小是 0"),
    "a crop of a fraction": ({"crop_size": 32.5}, "图像大小是 32.5"),
    "a true crop": ({"crop_size": True}, "图像大小是 True"),
    "no deviation": ({"image_std": [0.2, 0.0, 0.2]}, "image_std"),
    "a negative deviation": ({"image_std": -1}, "image_std"),
    "a mean in words": ({"image_mean": ["0.5", "0.5", "0.5"]}, "image_mean"),
    "two means": ({"image_mean": [0.5, 0.5]}, "image_mean 有 2 个值"),
    "no mean": ({"image_mean": []}, "image_mean 有 0 个值"),
    "an infinite mean": ({"image_mean": 1e999}, "Infinity"),
    "resample 99": ({"resample": 99}, "resample 是 99"),
    "resample in words": ({"resample": "bicubic"}, "resample 是 'bicubic'"),
    "a factor of 0": ({"rescale_factor": 0}, "rescale_factor 是 0"),
    "a switch in words": ({"do_normalize": "no"}, "do_normalize 是 'no'"),
    "a processor that is no name": ({"image_processor_type": ["CLIP"]}, "image_processor_type"),
    "a million patches": (
        {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 10**6},
        "max_num_patches",
    ),
    "an edge of less than a patch": (
        {"size": {"height": 2, "width": 32}, "do_center_crop": False},
        "小于模型的图块 8×8",
    ),
    "a large input": ({"size": 4000, "crop_size": 4000}, "500×500 个图块.*17 个位置.*--img-size"),
    "patches of nothing": ({"max_num_patches": 16, "patch_size": 0}, "patch_size 是 0"),
    "patches of another model": ({"max_num_patches": 16, "patch_size": 16}, "patch_size 是 16，模型的是 8"),
}


@pytest.mark.parametrize("pixels", PIXELS)
def test_a_preprocessing_that_cannot_be(clip_folder, pixels):
    fields, message = PIXELS[pixels]
    change_json(clip_folder / PIXEL_FILE, **fields)
    with pytest.raises(InputError, match=message) as error:
        load_clip_checkpoint(clip_folder)
    assert_one_line(error)


def test_a_text_model_without_an_end(tmp_path):
    folder, _ = save_pretrained(tmp_path, "clip")
    change_json(folder / "config.json", text_config__eos_token_id=None)
    with pytest.raises(InputError, match="文本模型不能处理") as error:
        embeddings(folder)
    assert_one_line(error)


TOKENIZERS = {
    "a length in words": ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
    "a negative length": ("tokenizer_config.json", {"model_max_length": -5}, "model_max_length"),
    "no length": ("tokenizer_config.json", {"model_max_length": 0}, "model_max_length"),
    "tokens that are lists": ("tokenizer_config.json", {"bos_token": [1, 2]}, "分词器"),
    "ids that are words": ("vocab.json", {"ca": "many"}, "分词器"),
}


@pytest.mark.parametrize("harm", TOKENIZERS)
def test_a_tokenizer_that_cannot_be(clip_folder, harm):
    file, fields, message = TOKENIZERS[harm]
    change_json(clip_folder / file, **fields)
    with pytest.raises(InputError, match=message) as error:
        embeddings(clip_folder)
    assert_one_line(error)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE"}}', "[" * 100_000]
)
def test_a_damaged_tokenizer_json(tmp_path, content):
    folder, _ = save_pretrained(tmp_path, "siglip")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="无法读取.*分词器") as error:
        embeddings(folder)
    assert_one_line(error)


def test_a_vocabulary_of_more_than_100_mb(clip_folder):
    with open(clip_folder / "vocab.json", "ab") as file:
        file.truncate(100_000_001)
    with pytest.raises(InputError, match="vocab.json 大于 100 MB"):
        embeddings(clip_folder)


def test_files_that_are_no_files(clip_folder):
    """A FIFO would make whoever opens it wait."""
    expected = embeddings(clip_folder)
    for name in ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja"):
        os.mkfifo(clip_folder / name)
    os.mkfifo(clip_folder / "processor_config.json")
    assert torch.equal(embeddings(clip_folder)[1], expected[1])
    assert len(fingerprint(clip_folder)) == 32
    (clip_folder / "config.json").unlink()
    os.mkfifo(clip_folder / "config.json")
    with pytest.raises(InputError):
        load_clip_checkpoint(clip_folder)
    with pytest.raises(InputError, match="普通文件"):
        read_json(clip_folder / "config.json")


# -- weights ----------------------------------------------------------------------------------

BIAS = "vision_model.post_layernorm.bias"
WEIGHTS = {
    "whole numbers": (lambda w: w.update({BIAS: torch.zeros(32, dtype=torch.int8)}), "不是普通的浮点张量"),
    "complex numbers": (lambda w: w.update({BIAS: torch.zeros(32, dtype=torch.complex64)}), f"{BIAS} 是复数张量"),
    "LoRA": (
        lambda w: w.update({"vision_model.q_proj.lora_A.default.weight": torch.zeros(2, 2)}),
        "适配器.*lora_A.*合并",
    ),
    "LoRA's base": (
        lambda w: w.update({"vision_model.q.base_layer.weight": torch.zeros(2)}),
        "适配器.*base_layer.*合并",
    ),
    "a scale that is not finite": (lambda w: w.update(logit_scale=torch.tensor(float("nan"))), "logit_scale"),
    "an infinite scale": (lambda w: w.update(logit_scale=torch.tensor(float("inf"))), "logit_scale"),
    "a scale without end": (lambda w: w.update(logit_scale=torch.tensor(100.0)), "logit_scale 是 100"),
    "a scale of nothing": (lambda w: w.update(logit_scale=torch.tensor(-200.0)), "logit_scale 是 -200"),
    "several scales": (lambda w: w.update(logit_scale=torch.ones(3)), "形状与模型不符：logit_scale"),
    "a weight twice": (lambda w: w.update({f"module.{BIAS}": torch.ones(32)}), f"{BIAS} 有两份不同的值"),
}


@pytest.mark.parametrize("harm", WEIGHTS)
def test_weights_that_cannot_be(clip_folder, harm):
    change, message = WEIGHTS[harm]
    change_weights(clip_folder, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_clip_checkpoint(clip_folder)
    assert_one_line(error)


def test_a_bias_that_is_not_finite(tmp_path):
    folder, _ = save_pretrained(tmp_path, "siglip")
    change_weights(folder, lambda weights: weights.update(logit_bias=torch.tensor([float("inf")])))
    with pytest.raises(CheckpointError, match="logit_bias"):
        load_clip_checkpoint(folder)


def test_what_lies_outside_of_the_towers_is_left_out_and_said(clip_folder):
    expected = embeddings(clip_folder)
    change_weights(clip_folder, lambda weights: weights.update({"classifier.weight": torch.zeros(2, 28)}))
    with pytest.warns(InputWarning, match="两个编码器之外的 1 个权重：classifier.weight"):
        found = embeddings(clip_folder)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "siglip"])
def test_a_model_of_one_channel_sees_the_grey_picture(tmp_path, family):
    pixels = {"image_mean": [0.4], "image_std": [0.3]}
    folder, network = save_pretrained(tmp_path, family, pixels=pixels, num_channels=1)
    model = load_clip_checkpoint(folder)
    grey = np.repeat(gradient_picture()[..., :1], 3, axis=2)
    images = model.preprocessing(grey)
    assert images.shape[1] == 3
    with torch.no_grad():
        own = model.image_encoder(images)
        if family == "siglip2":
            assert torch.isfinite(own).all() and own.shape == (1, 32)
        else:
            expected = network.get_image_features(pixel_values=images[:, :1])
            expected = getattr(expected, "pooler_output", expected)
            torch.testing.assert_close(own, F.normalize(expected, dim=-1), rtol=0, atol=1e-5)
            colours = model.image_encoder(model.preprocessing(gradient_picture()))
            weighted = (model.preprocessing(gradient_picture()) * torch.tensor(GREY)[:, None, None]).sum(
                1, keepdim=True
            )
            expected = network.get_image_features(pixel_values=weighted)
            expected = getattr(expected, "pooler_output", expected)
            torch.testing.assert_close(colours, F.normalize(expected, dim=-1), rtol=0, atol=1e-5)
    result = explain(model, grey, TEXTS)
    assert np.isfinite(result.maps).all() and result.maps.std() > 0


@pytest.mark.parametrize("channels, pixels, message", [(1, {}, "image_mean.*三个不同的值"), (4, {}, "4 个通道")])
def test_channels_that_cannot_be(tmp_path, channels, pixels, message):
    folder, _ = save_pretrained(tmp_path, "clip", pixels=pixels, num_channels=channels)
    with pytest.raises(InputError, match=message):
        load_clip_checkpoint(folder)


# -- adapters ---------------------------------------------------------------------------------


def test_adapters_among_openais_weights(tmp_path):
    from test_openai_clip import make_original

    weights = make_original("vit", write_clip_bpe(tmp_path)).state_dict()
    weights["visual.transformer.resblocks.0.mlp.c_fc.lora_A.default.weight"] = torch.zeros(2, 64)
    torch.save(weights, tmp_path / "ViT.pt")
    with pytest.raises(CheckpointError, match="ViT.pt.*适配器.*lora_A.*merge_and_unload"):
        load_clip_checkpoint(tmp_path / "ViT.pt")


def test_adapters_beside_a_checkpoint_of_our_own(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="适配器.*不完整.*adapter_model.safetensors.*merge_and_unload"):
        load_clip_checkpoint(tmp_path)


# -- folders of our own checkpoints -----------------------------------------------------------


def write_rest(folder):
    """What accelerate and the Trainer put beside the weights."""
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt", "training_args.bin", "rng_state_0.pth", "sampler.bin"):
        torch.save({"step": 3}, folder / name)
    (folder / "random_states_0.pkl").write_bytes(b"no pickle")
    (folder / "trainer_state.json").write_text('{"global_step": 500}')


def own_state(clip):
    return {key: tensor.contiguous() for key, tensor in clip.state_dict().items()}


def save_one(clip, folder):
    save_file(own_state(clip), folder / "model.safetensors")


def save_bin(clip, folder):
    torch.save(own_state(clip), folder / "pytorch_model.bin")


def save_pth(clip, folder):
    torch.save({"model_state_dict": own_state(clip), "config": {"img_size": 64}}, folder / "best.pth")


def shards(clip, ending, save):
    def write(clip, folder):
        state = own_state(clip)
        names = [f"{ending[0]}-0000{n}-of-00003.{ending[1]}" for n in (1, 2, 3)]
        where = {key: names[number % 3] for number, key in enumerate(state)}
        for name in names:
            save({key: state[key] for key in state if where[key] == name}, folder / name)
        (folder / f"{ending[0]}.{ending[1]}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))

    return write


OWN = {
    "accelerate": save_one,
    "accelerate without safetensors": save_bin,
    "one checkpoint": save_pth,
    "shards": shards(None, ("model", "safetensors"), save_file),
    "shards without safetensors": shards(None, ("pytorch_model", "bin"), torch.save),
}


@pytest.fixture(params=OWN)
def own_folder(request, clip, tmp_path):
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    OWN[request.param](clip, folder)
    write_rest(folder)
    return folder


def test_a_folder_of_our_own(own_folder, clip):
    model = load_clip_checkpoint(own_folder)
    assert set(model.state_dict()) == set(clip.state_dict())
    for key, tensor in clip.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert torch.equal(embed_texts(model, TEXTS), embed_texts(clip, TEXTS))


def test_the_json_beside_it_counts(own_folder, clip):
    (own_folder / "args.json").write_text('{"img_size": 64, "lr": 0.1}')
    assert load_clip_checkpoint(own_folder).img_size == 64
    (own_folder / "config.json").write_text('{"img_size": 64, "model_type": "my_clip", "architectures": ["CLIPModel"]}')
    assert load_clip_checkpoint(own_folder).img_size == 64


def test_the_checkpoint_counts_before_the_json_beside_it(clip, tmp_path):
    save_pth(clip, tmp_path)
    (tmp_path / "config.json").write_text('{"img_size": 384}')
    with pytest.warns(InputWarning, match="img_size 384.*64"):
        assert load_clip_checkpoint(tmp_path).img_size == 64


def files_of(folder):
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth")]


def test_fingerprint_and_cache_of_a_folder_are_of_all_its_content(own_folder, clip, user_cache, monkeypatch):
    first = fingerprint(own_folder)
    other = shutil.copytree(own_folder, own_folder.parent / "elsewhere")
    assert fingerprint(other) == first
    expected = embed_texts(clip, TEXTS)
    for built in (1, 0):
        model, features = load_with_text_features(own_folder, TEXTS)
        assert torch.equal(features, expected) and model.text_encoder is None
        assert len(list(user_cache.glob("*.text"))) == 1, built
        monkeypatch.setattr("models.loading.load.embed_texts", None)  # the second time it comes from the cache
    monkeypatch.undo()
    for file in files_of(other):
        if file.name.startswith(("model", "pytorch_model", "best")):
            content = file.read_bytes()
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            assert fingerprint(other) != first, file
            file.write_bytes(content)
    assert fingerprint(other) == first


def test_a_changed_shard_is_another_checkpoint_to_the_cache(clip, tmp_path, user_cache):
    OWN["shards"](clip, tmp_path)
    load_with_text_features(tmp_path, TEXTS)
    other = tiny_clip(seed=5)
    OWN["shards"](other, tmp_path)
    assert torch.equal(load_with_text_features(tmp_path, TEXTS)[1], embed_texts(other, TEXTS))


@pytest.mark.parametrize("names", [("best.pth", "last.pth"), ("model.safetensors", "model_1.safetensors")])
def test_several_checkpoints_in_a_folder_are_named(clip, tmp_path, names):
    for name in names:
        save = save_file if name.endswith("safetensors") else torch.save
        save(own_state(clip), tmp_path / name)
    with pytest.raises(InputError, match=f"2 个检查点：{names[0]}、{names[1]}；请写明") as error:
        load_clip_checkpoint(tmp_path)
    assert_one_line(error)


@pytest.fixture
def index(clip, tmp_path):
    """The index of shards of our own in a folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    OWN["shards"](clip, folder)
    return folder / "model.safetensors.index.json"


def rename_shard(index, name):
    where = json.loads(index.read_text())["weight_map"]
    first = min(where.values())
    weight_map = {key: name if file == first else file for key, file in where.items()}
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index.parent / first


@pytest.mark.parametrize("name", ["../{}", "/etc/{}", "..", "sub/{}", "", "sub\\{}", "C:{}", "a\0b"])
def test_an_index_names_files_of_its_own_folder_only(index, name):
    name = name.format("outside.safetensors")
    first = rename_shard(index, name)
    shutil.copy(first, index.parent.parent / "outside.safetensors")
    for path in (index.parent, fingerprint):
        with pytest.raises(InputError, match="不在同一文件夹中，已拒绝"):
            load_clip_checkpoint(index.parent) if path is not fingerprint else fingerprint(index.parent)


def test_a_shard_that_links_elsewhere_is_refused(index, tmp_path):
    first = next(index.parent.glob("model-00001*"))
    shutil.move(first, tmp_path / "outside.safetensors")
    first.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(InputError, match="model-00001.*不在同一文件夹中，已拒绝"):
        load_clip_checkpoint(index.parent)


def test_the_links_of_the_hubs_cache_are_its_own(clip, tmp_path, monkeypatch):
    """A snapshot holds links into the repository's `blobs`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--org--own", "0" * 40
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    OWN["shards"](clip, snapshot)
    for number, file in enumerate(list(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), snapshot))
    assert torch.equal(embed_texts(load_clip_checkpoint("org/own"), TEXTS), embed_texts(clip, TEXTS))


def test_a_shard_that_links_to_itself(index):
    first = next(index.parent.glob("model-00001*"))
    first.unlink()
    first.symlink_to(first.name)
    with pytest.raises(InputError, match="不完整.*model-00001"):
        load_clip_checkpoint(index.parent)


def test_shards_that_do_not_belong_together(index):
    next(index.parent.glob("model-00002*")).unlink()
    with pytest.raises(InputError, match="不完整.*model-00002"):
        load_clip_checkpoint(index.parent)
    shutil.copy(next(index.parent.glob("model-00001*")), index.parent / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="model-00002.*文件不是一套的"):
        load_clip_checkpoint(index.parent)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_lists_nothing(index, content):
    index.write_text(content)
    with pytest.raises(InputError, match="weight_map"):
        load_clip_checkpoint(index.parent)


REST = {
    "no checkpoint": ((), "config.json 或检查点文件"),
    "DeepSpeed": (("zero_to_fp32.py", "latest"), "zero_to_fp32 合并"),
    "FSDP": ((".metadata", "__0_0.distcp"), "accelerate merge-weights"),
    "shards without their index": (("model-00001-of-00002.safetensors",), "缺少索引 model.safetensors.index.json"),
}


@pytest.mark.parametrize("rest", REST)
def test_folders_without_a_checkpoint_say_what_they_are(tmp_path, rest):
    names, message = REST[rest]
    write_rest(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=message) as error:
        load_clip_checkpoint(tmp_path)
    assert_one_line(error)


def test_openais_weights_in_a_folder(clip_folder, tmp_path):
    """The folder's one file, with its open_clip_config.json and vocabulary beside it, is what the file alone is."""
    from test_openai_clip import make_original

    folder = tmp_path / "openai"
    size = write_clip_bpe(folder)
    torch.save(make_original("vit", size).state_dict(), folder / "ViT-B-32.pt")
    models = [load_clip_checkpoint(path) for path in (folder / "ViT-B-32.pt", folder)]
    features = [embed_texts(model, TEXTS) for model in models]
    assert torch.equal(*features) and all(len(model.cautions) == 1 for model in models)


OPEN_CLIP = {
    "a number for a model": ({"model_cfg": 5}, "model_cfg 应是一个对象"),
    "a list for a tower": ({"model_cfg": {"vision_cfg": [1]}}, "vision_cfg 应是一个对象"),
    "a width in words": ({"model_cfg": {"vision_cfg": {"head_width": "64"}}}, "head_width 是 '64'"),
    "no heads": ({"model_cfg": {"text_cfg": {"heads": 0}}}, "heads 是 0"),
    "heads that do not fit": ({"model_cfg": {"text_cfg": {"heads": 7}}}, "不能组成模型"),
    "an activation in words": ({"model_cfg": {"quick_gelu": "no"}}, "quick_gelu 是 'no'"),
    "a mean in words": ({"preprocess_cfg": {"mean": "dark"}}, "mean 是 'dark'"),
    "no deviation": ({"preprocess_cfg": {"std": [0, 0, 0]}}, "std 是"),
    "two means": ({"preprocess_cfg": {"mean": [0.5, 0.5]}}, "mean 有 2 个值"),
    "an interpolation": ({"preprocess_cfg": {"interpolation": "nearest"}}, "interpolation 是 'nearest'"),
    "preprocessing in words": ({"preprocess_cfg": "usual"}, "preprocess_cfg 应是一个对象"),
}


@pytest.mark.parametrize("harm", OPEN_CLIP)
def test_an_open_clip_config_that_cannot_be(tmp_path, harm):
    from test_openai_clip import make_original

    content, message = OPEN_CLIP[harm]
    torch.save(make_original("vit", write_clip_bpe(tmp_path)).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        load_clip_checkpoint(tmp_path)
    assert_one_line(error)


# -- what is assumed --------------------------------------------------------------------------


def test_what_is_assumed_is_said_once_and_stands_in_the_tables(clip_folder, picture, tmp_path, capsys):
    (clip_folder / PIXEL_FILE).unlink()
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(picture, images / name)
    arguments = ["--model-path", str(clip_folder), "--class-texts", *TEXTS[:2], "--output-dir", str(tmp_path / "out")]
    assert main([*arguments, "--image-path", str(images), "--no-figure"]) == 0
    (table,) = (tmp_path / "out").glob("*.csv")
    rows = list(csv.DictReader(table.open(encoding="utf-8-sig")))
    assert len(rows) == 2 and all(PIXEL_FILE in row["warning"] for row in rows)
    capsys.readouterr()
    assert main([*arguments, "--image-path", str(picture)]) == 0
    assert capsys.readouterr().err.count(PIXEL_FILE) == 1


def test_an_image_processor_that_is_none_of_the_librarys_is_said(clip_folder):
    assert load_clip_checkpoint(clip_folder).cautions == []
    change_json(clip_folder / PIXEL_FILE, **{**CLIP_PIXELS, "image_processor_type": "OwnImageProcessor"})
    (caution,) = load_clip_checkpoint(clip_folder).cautions
    assert PIXEL_FILE in str(caution) and "Own" in str(caution)


def test_a_family_under_the_name_of_another(tmp_path):
    """The sizes are ChineseCLIP's: with CLIP's text model the weights do not fit."""
    folder, _ = save_pretrained(tmp_path, "chinese_clip")
    change_json(folder / "config.json", model_type="clip")
    with pytest.raises(CheckpointError, match="权重与 config.json 不符"):
        load_clip_checkpoint(folder)
