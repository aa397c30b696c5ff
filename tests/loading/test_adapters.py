"""Adapters of PEFT beside a model and alone: merged as peft's own `merge_and_unload` does it, or refused.

The oracle is the library's network with peft's own merged adapter, or the model that it is saved as.
"""

import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import gradient_picture, tiny_clip
from tiny_pretrained import TEXTS, save_pretrained

from clip_gradcam_visualization import explain
from models.errors import InputError, InputWarning
from models.loading.fingerprint import fingerprint
from models.loading.load import load_clip_checkpoint
from models.loading.text_cache import file_state
from models.weights.hub import ADAPTER_WEIGHTS

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")
ADAPTER_FILES = ("adapter_config.json", ADAPTER_WEIGHTS[0])

# what an adapter changes -> peft's own settings of it
KINDS = {
    "LoRA": {"target_modules": ["q_proj", "v_proj"], "r": 2},
    "a convolution and an embedding": {"target_modules": ["patch_embedding", "token_embedding", "fc1"], "r": 3},
    "rsLoRA": {"target_modules": ["q_proj"], "r": 4, "use_rslora": True, "lora_alpha": 3},
    "DoRA": {"target_modules": ["q_proj", "fc2"], "r": 2, "use_dora": True},
    "ranks of their own": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"k_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    },
    "whole modules and biases": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["visual_projection", "text_projection"],
        "bias": "all",
    },
}


def adapted(network, seed=0, **settings):
    """A network with an adapter whose matrices, biases and whole modules are all another's."""
    model = peft.get_peft_model(network, peft.LoraConfig(init_lora_weights=False, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def base(tmp_path):
    return save_pretrained(tmp_path / "base", "clip")[0]


def adapt(folder, into=None, **settings):
    """Save an adapter of a folder's CLIP, beside it or elsewhere; returns the network with it merged in."""
    model = adapted(transformers.CLIPModel.from_pretrained(folder), **settings)
    model.save_pretrained(into or folder)
    return model.merge_and_unload().eval()


def assert_like(model, network) -> None:
    images, tokens = model.preprocessing(gradient_picture()), model.text_encoder.tokenize(TEXTS)
    with torch.no_grad():
        expected = network(pixel_values=images, **tokens)
        torch.testing.assert_close(model.image_encoder(images), expected.image_embeds, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.text_encoder(texts=TEXTS), expected.text_embeds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_beside_its_model(base, tmp_path, kind):
    plain = load_clip_checkpoint(base)
    merged = adapt(base, **KINDS[kind])
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always", InputWarning)
        warnings.filterwarnings("ignore", "文本")
        model = load_clip_checkpoint(base)
    (message,) = messages
    assert f"{base} 旁边有适配器（PEFT、LoRA），将并入模型" in str(message.message)
    assert_like(model, merged)
    images = model.preprocessing(gradient_picture())
    assert (model.image_encoder(images) - plain.image_encoder(images)).abs().max() > 1e-3
    copy = shutil.copytree(base, tmp_path / "merged")
    for name in ADAPTER_FILES:
        (copy / name).unlink()
    merged.save_pretrained(copy)
    maps, expected = (explain(load_clip_checkpoint(path), gradient_picture(), TEXTS).maps for path in (base, copy))
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_an_adapter_alone_names_its_base(base, tmp_path, monkeypatch):
    merged = adapt(base, tmp_path / "adapter", **KINDS["LoRA"])
    change_config(tmp_path / "adapter", base_model_name_or_path=str(base))
    assert_like(load_clip_checkpoint(tmp_path / "adapter"), merged)
    change_config(tmp_path / "adapter", base_model_name_or_path="../base")
    assert_like(load_clip_checkpoint(tmp_path / "adapter"), merged)
    monkeypatch.setattr("models.loading.adapters.hub_folder", {"org/tiny": base}.get)
    change_config(tmp_path / "adapter", base_model_name_or_path="org/tiny")
    pickled, file = (tmp_path / "adapter" / name for name in reversed(ADAPTER_WEIGHTS))
    torch.save(load_file(file), pickled)
    file.unlink()
    assert_like(load_clip_checkpoint(tmp_path / "adapter"), merged)
    with pytest.raises(InputError, match="adapter_model.bin 是适配器.*文件夹"):
        load_clip_checkpoint(pickled)


def change_config(folder, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("name", [None, "", "org/elsewhere", "/nowhere/base", "//server/share", 5, "a" * 500])
def test_a_base_that_is_nowhere(base, tmp_path, name):
    adapt(base, tmp_path / "adapter", **KINDS["LoRA"])
    change_config(tmp_path / "adapter", base_model_name_or_path=name)
    for read in (load_clip_checkpoint, fingerprint):
        with pytest.raises(InputError, match="只有适配器，它的基础模型.*不在本机.*base_model_name_or_path"):
            read(tmp_path / "adapter")


def test_an_adapter_of_an_adapter_is_refused(base, tmp_path):
    adapt(base, tmp_path / "adapter", **KINDS["LoRA"])
    adapt(base, **KINDS["LoRA"])
    change_config(tmp_path / "adapter", base_model_name_or_path=str(base))
    with pytest.raises(InputError, match="旁也有适配器.*merge_and_unload"):
        load_clip_checkpoint(tmp_path / "adapter")


# -- checkpoints of our own -------------------------------------------------------------------

OWN_TARGETS = {  # what was wrapped -> the part of the model, and its layers
    "the whole model": (lambda clip: clip, r".*(?:query|value|layer4\.1\.conv1|projection)"),
    "a tower": (lambda clip: clip.text_encoder.backbone, ["query", "intermediate.dense"]),
    "the images' tower": (lambda clip: clip.image_encoder, r".*layer4\.\d\.conv\d"),
}


@pytest.mark.parametrize("wrapped, form", [*zip(OWN_TARGETS, ("a folder", "a file", "Lightning's"))])
def test_an_adapter_beside_a_checkpoint_of_our_own(tmp_path, wrapped, form):
    clip, (part_of, targets) = tiny_clip("resnet18"), OWN_TARGETS[wrapped]
    weights = {key: tensor.clone() for key, tensor in clip.state_dict().items()}
    if form == "Lightning's":
        weights = {"state_dict": {f"model.{key}": tensor for key, tensor in weights.items()}}
    torch.save(weights, tmp_path / "clip.pth")
    model = adapted(part_of(clip), target_modules=targets, r=2)
    model.save_pretrained(tmp_path)
    model.merge_and_unload()
    with pytest.warns(InputWarning, match="clip.pth 旁边有适配器.*将并入模型"):
        own = load_clip_checkpoint(tmp_path / "clip.pth" if form == "a file" else tmp_path)
    for key, tensor in clip.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], tensor, rtol=0, atol=1e-6, msg=key)


def test_an_adapter_is_part_of_the_fingerprint_and_of_the_texts_key(tmp_path, user_cache):
    clip, path = tiny_clip(), tmp_path / "clip.pth"
    torch.save(clip.state_dict(), path)
    digests, states, features = set(), set(), []
    for seed in (None, 1, 2):
        if seed is not None:
            adapted(tiny_clip().text_encoder.backbone, seed, target_modules=["query"], r=2).save_pretrained(tmp_path)
        digests |= {fingerprint(path), fingerprint(tmp_path)}
        states.add(file_state(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            features += [load_clip_checkpoint(path, texts=TEXTS).class_text_features for _ in range(2)]
    assert len(digests) == 6 and len(states) == 3 and len([*user_cache.rglob("*.text")]) == 3
    assert all(torch.equal(*features[n : n + 2]) for n in (0, 2, 4))
    assert not torch.equal(features[0], features[2]) and not torch.equal(features[2], features[4])


def test_the_fingerprint_of_an_adapter_alone_is_its_bases_too(base, tmp_path):
    adapt(base, tmp_path / "adapter", **KINDS["LoRA"])
    change_config(tmp_path / "adapter", base_model_name_or_path=str(base))
    first = fingerprint(tmp_path / "adapter")
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, base / "model.safetensors", {"format": "pt"})
    assert fingerprint(tmp_path / "adapter") != first


def test_what_open_clip_says_beside_the_base_is_part_of_the_fingerprint_too(base, tmp_path):
    adapt(base, tmp_path / "adapter", **KINDS["LoRA"])
    change_config(tmp_path / "adapter", base_model_name_or_path=str(base / "model.safetensors"))
    digests, files = set(), []
    for quick in (None, False, True):
        if quick is not None:
            (base / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": quick}}))
        digests.add(fingerprint(tmp_path / "adapter"))
        files.append(file_state(tmp_path / "adapter"))
    assert len(digests) == 3 and len({*files}) == 3


# -- what cannot be merged --------------------------------------------------------------------


def change_weights(folder, change) -> None:
    file = folder / ADAPTER_FILES[1]
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


FIRST = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
HARMS = {
    "another kind": (lambda folder: change_config(folder, peft_type="LOHA"), "是 LOHA，本工具只合并 LORA"),
    "no kind": (lambda folder: change_config(folder, peft_type=None), "是 None"),
    "a field that is not known": (lambda folder: change_config(folder, eva_config={"rho": 2}), "eva_config 不受支持"),
    "a start that changes the base": (lambda folder: change_config(folder, init_lora_weights="pissa"), "init_lora"),
    "a rank in words": (lambda folder: change_config(folder, r="8"), "r 是"),
    "an endless rank": (lambda folder: change_config(folder, r=65_536), "秩 65536 不符"),
    "an endless pattern": (lambda folder: change_config(folder, rank_pattern={"(a+)+b": 2}), "rank_pattern"),
    "a scale that is none": (lambda folder: change_config(folder, lora_alpha=-1), "lora_alpha"),
    "no weights": (lambda folder: (folder / ADAPTER_FILES[1]).unlink(), "不完整"),
    "no config": (lambda folder: (folder / ADAPTER_FILES[0]).unlink(), "不完整"),
    "two files": (lambda folder: torch.save({}, folder / ADAPTER_WEIGHTS[1]), "不止一个"),
    "half of a pair": (
        lambda folder: change_weights(folder, lambda w: w.pop(FIRST.format("B"))),
        "lora_B.weight 应是 .*无",
    ),
    "no first half": (lambda folder: change_weights(folder, lambda w: w.pop(FIRST.format("A"))), "lora_A.weight 应是"),
    "another shape": (
        lambda folder: change_weights(folder, lambda w: w.update({FIRST.format("B"): torch.zeros(5, 2)})),
        r"无法并入基础模型.*lora_B.weight 应是 \[32, 2\]，读到的是 \[5, 2\].*merge_and_unload",
    ),
    "a rank that its matrices have no memory for": (
        lambda folder: (
            change_config(folder, rank_pattern={"vision_model.encoder.layers.0.self_attn.q_proj": 65_536}),
            change_weights(folder, lambda w: w.update({FIRST.format("A"): torch.zeros(65_536, 1)})),
        ),
        r"lora_A.weight 应是 \[65536, 32\]，读到的是 \[65536, 1\]",
    ),
    "eight bits that are none": (
        lambda folder: change_weights(
            folder, lambda w: w.update({FIRST.format("A"): torch.full((2, 32), torch.nan).to(torch.float8_e4m3fn)})
        ),
        "不是有限浮点数张量的内容：.*lora_A",
    ),
    "numbers that are none": (
        lambda folder: change_weights(folder, lambda w: w[FIRST.format("B")].fill_(float("nan"))),
        "不是有限浮点数张量的内容：.*lora_B",
    ),
    "another model's": (
        lambda folder: change_weights(folder, lambda w: w.update({"base_model.model.head.weight": torch.zeros(2)})),
        "没有唯一的位置",
    ),
    "nothing": (lambda folder: change_weights(folder, dict.clear), "没有 LoRA 的矩阵"),
    "a name that is a method's": (
        lambda folder: change_weights(folder, lambda w: w.update({"forward.lora_A.weight": torch.zeros(2, 2)})),
        "没有唯一的位置",
    ),
    "whole numbers": (
        lambda folder: change_weights(folder, lambda w: w.update({"a": torch.zeros(2, dtype=torch.long)})),
        "不是有限浮点数",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_adapters_that_cannot_be_merged(base, harm):
    adapt(base, **KINDS["LoRA"])
    HARMS[harm][0](base)
    with pytest.raises(InputError, match=HARMS[harm][1]) as caught:
        load_clip_checkpoint(base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"state_dict": 5}, {"state_dict": torch.zeros(2)}, [1]])
def test_a_pickled_adapter_of_another_kind(base, content):
    adapt(base, **KINDS["LoRA"])
    (base / ADAPTER_FILES[1]).unlink()
    torch.save(content, base / ADAPTER_WEIGHTS[1])
    with pytest.raises(InputError, match="没有 LoRA 的矩阵"):
        load_clip_checkpoint(base)


def test_without_peft_the_error_says_how_to_merge(base, monkeypatch):
    adapt(base, **KINDS["LoRA"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="无法载入 peft.*pip install peft.*merge_and_unload"):
        load_clip_checkpoint(base)
