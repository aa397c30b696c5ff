"""Dual encoders of transformers: a vision model and a text model by themselves. The library's own network, and its
gradients by autograd, are the oracle throughout."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from test_pretrained import assert_like_the_library, change_json
from tiny import gradient_picture
from tiny_pretrained import (
    BERT_TEXT,
    CLIP_PIXELS,
    CLIP_TEXT,
    IMAGE,
    SAVE_TOKENIZER,
    TEXT,
    TEXTS,
    VISION,
    library_outputs,
    library_pixels,
    randomise,
)
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM, explain
from models.errors import InputError
from models.explain.defaults import get_target_layer_for_clip
from models.explain.layers import find_layer, fuse_layers, list_spatial_layers
from models.explain.methods import gradcam, local_gradcam
from models.loading.load import embed_texts, load_clip_checkpoint
from models.loading.processors import read_preprocessing
from models.towers.grey import GREY

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")

PIXEL_FILE = "preprocessor_config.json"
RATIO = {**{name: size for name, size in VISION.items() if name != "intermediate_size"}, **IMAGE, "mlp_ratio": 2}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
# kind -> (name of the library's classes, sizes, our name, prefix tokens)
VISIONS = {
    "clip": ("CLIPVision", VISION | IMAGE, "clip-vit", 1),
    "chinese-clip": ("ChineseCLIPVision", VISION | IMAGE, "clip-vit", 1),
    "siglip": ("SiglipVision", VISION | IMAGE, "siglip-vit", 0),
    "vit": ("ViT", VISION | IMAGE, "plain-vit", 1),
    "deit": ("DeiT", VISION | IMAGE, "plain-vit", 2),
    "dinov2": ("Dinov2", RATIO, "dinov2", 1),
    "dinov2, gated": ("Dinov2", {**RATIO, "use_swiglu_ffn": True}, "dinov2", 1),
    "dinov2, registers": ("Dinov2WithRegisters", RATIO, "dinov2", 5),
    "swin": ("Swin", SWIN, "swin", 0),
}
TRANSFORMERS = [kind for kind in VISIONS if kind not in ("siglip", "swin")]  # of a class token
WORDS = {
    "bert": ("Bert", BERT_TEXT, "chinese_clip"),
    "roberta": ("Roberta", {**TEXT, "max_position_embeddings": 18, "pad_token_id": 0}, "altclip"),
    "clip": ("CLIPText", CLIP_TEXT, "clip"),
}


def save_dual(folder, kind="vit", words="bert", seed=0, **sizes):
    """A folder with a random dual encoder, its tokenizer and preprocessor; (folder, network)."""
    name, vision, *_ = VISIONS[kind]
    text, text_sizes, tokenizer = WORDS[words]
    tokens = SAVE_TOKENIZER[tokenizer](folder)
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1} if words == "clip" else {}
    configs = (
        getattr(transformers, f"{name}Config")(**{**vision, **sizes}),
        getattr(transformers, f"{text}Config")(**{**text_sizes, **ends}, vocab_size=tokens),
    )
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=20)
    network = randomise(transformers.VisionTextDualEncoderModel(config), seed)
    network.save_pretrained(folder)
    (folder / PIXEL_FILE).write_text(json.dumps(CLIP_PIXELS))
    return folder, network


@pytest.fixture(scope="module", params=VISIONS)
def dual(request, tmp_path_factory):
    """(kind, folder, network, our model) of one vision model after the other."""
    kind = request.param
    folder, network = save_dual(tmp_path_factory.mktemp("dual") / "folder", kind)
    return kind, folder, network, load_clip_checkpoint(folder)


# -- as the library computes it ---------------------------------------------------------------


def test_embeddings_and_probabilities_are_the_librarys(dual):
    kind, folder, network, model = dual
    assert_like_the_library(model, folder, network)
    *_, name, prefix = VISIONS[kind]
    assert model.image_encoder_name == name and not model.cautions
    assert model.image_encoder.token_grid(32, 32) == (prefix, 4, 4)


@pytest.mark.parametrize("words", WORDS)
def test_the_text_models_that_pool(tmp_path, words):
    folder, network = save_dual(tmp_path / "folder", "dinov2", words)
    assert_like_the_library(load_clip_checkpoint(folder), folder, network)


def test_the_names_of_this_librarys_modules_are_read_too(tmp_path):
    """The library writes weights under older names than those its modules have."""
    for kind in ("vit", "dinov2, gated", "swin"):
        folder, network = save_dual(tmp_path / kind, kind)
        save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
        assert_like_the_library(load_clip_checkpoint(folder), folder, network)


@pytest.mark.parametrize("kind", ["vit", "dinov2, registers", "swin"])
def test_another_size_is_interpolated_as_the_library_does(tmp_path, kind):
    folder, network = save_dual(tmp_path / "folder", kind)
    model = load_clip_checkpoint(folder, img_size=64)
    images = model.preprocessing(gradient_picture())
    options = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = network.visual_projection(network.vision_model(images, **options).pooler_output)
        torch.testing.assert_close(model.image_encoder.embed(images), expected, rtol=0, atol=1e-5)
    assert images.shape[-2:] == (64, 64)


def test_a_small_image_leaves_swins_windows_as_they_were(tmp_path):
    """The library's own network is another one from its first small image on."""
    folder, network = save_dual(tmp_path / "folder", "swin")
    tower = load_clip_checkpoint(folder).image_encoder
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.vision_model(large).pooler_output
        network.vision_model(small)
        assert (network.vision_model(large).pooler_output - expected).abs().max() > 1e-3
        tower.embed(small)
        torch.testing.assert_close(tower.embed(large), network.visual_projection(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin"])
def test_a_model_of_one_channel_sees_the_grey_picture(tmp_path, kind):
    folder, network = save_dual(tmp_path / "folder", kind, num_channels=1)
    change_json(folder, PIXEL_FILE, image_mean=[0.4], image_std=[0.3])
    model = load_clip_checkpoint(folder)
    images = model.preprocessing(gradient_picture())
    grey = (images * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    with torch.no_grad():
        expected = network.visual_projection(network.vision_model(grey).pooler_output)
        torch.testing.assert_close(model.image_encoder.embed(images), expected, rtol=0, atol=1e-5)
    result = explain(model, gradient_picture(), TEXTS)
    assert np.isfinite(result.maps).all() and result.maps.std() > 0


# -- heatmaps ---------------------------------------------------------------------------------


def kept_of(folder, network, paths):
    """(the library's outputs, what the modules at the paths below its vision model gave), all on one graph."""
    kept, handles = {}, []

    def keep(path):
        return lambda module, inputs, output: kept.update({path: output})

    for path in paths:
        module = network.vision_model.get_submodule(path)
        handles.append(module.register_forward_hook(keep(path)))
    outputs = library_outputs(folder, network)
    for handle in handles:
        handle.remove()
    return outputs, [kept[path] for path in paths]


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert expected.std() > 1e-4 * expected.abs().max()


def layer_maps(folder, network, model, paths, formula, similarity, target=1):
    """Maps of a formula at layers, fused, with A and dy/dA by autograd through the library's network."""
    outputs, kept = kept_of(folder, network, paths)
    tensors = [output[0] if isinstance(output, tuple) else output for output in kept]
    image, text = outputs.vision_model_output.pooler_output[0], outputs.text_embeds[target].detach()
    embedding = network.visual_projection(image)
    score = embedding @ F.normalize(text, dim=0)
    score = score / embedding.norm() if similarity == "cosine" else score
    maps, prefix = [], getattr(model.image_encoder, "prefix_tokens", 0)
    for A, g in zip(tensors, torch.autograd.grad(score, tensors)):
        side = round((A.shape[1] - prefix) ** 0.5)
        A, g = (x.detach()[:, prefix:].transpose(1, 2).reshape(1, -1, side, side) for x in (A, g))
        maps.append(formula(A, g))
    return fuse_layers(maps)[0]


def our_map(model, layers, method, similarity, target=1):
    cam = CLIPGradCAM(model, layers, use_cuda=False, method=method, similarity=similarity)
    return cam.text_maps(model.preprocessing(gradient_picture()), embed_texts(model, TEXTS), target).maps[0, 0]


def path_of(model, layer):
    return next(path for path, module in model.image_encoder.backbone.named_modules() if module is layer)


def test_gradcam_is_that_of_a_plain_backward(dual):
    _, folder, network, model = dual
    layer = get_target_layer_for_clip(model)
    expected = layer_maps(folder, network, model, [path_of(model, layer)], gradcam, "cosine")
    assert expected.shape == (4, 4)
    close(our_map(model, layer, "gradcam", "cosine"), expected)


def project(network, token):
    """The embedding that the library makes of a class token [D] after the last block."""
    vision = network.vision_model
    normed = getattr(vision, "post_layernorm", getattr(vision, "layernorm", None))(token)
    pooler = getattr(vision, "pooler", None)
    return network.visual_projection(normed if pooler is None else pooler(normed[None, None])[0])


def attention_maps(folder, network, model, target=1):
    """{method: map of patches} of the dot product, from the attention that the library's eager kernel computes."""
    network.vision_model.set_attn_implementation("eager")
    blocks = [path_of(model, block) for block in list(model.image_encoder.transformer().blocks)[-2:]]
    name = "self_attn" if "clip" in model.image_encoder_name else "attention"
    outputs, kept = kept_of(folder, network, [*blocks, *(f"{block}.{name}" for block in blocks)])
    text, prefix = outputs.text_embeds[target].detach(), model.image_encoder.prefix_tokens
    tokens = [output[0] if isinstance(output, tuple) else output for output in kept[:2]]
    attention = [output[1] for output in kept[2:]]
    plain, weighted = [], []
    for block, A in zip(tokens, attention):
        (g,) = torch.autograd.grad(project(network, block[0].mean(0)) @ text, A, retain_graph=True)
        plain.append(g.relu().mean((0, 1, 2)))
        weighted.append((A.detach() * g).relu().mean((0, 1, 2)))
    plain = torch.stack(plain).mean(0)[prefix:]
    plain, weighted = plain - plain.min(), torch.stack(weighted).mean(0)[prefix:]
    (g,) = torch.autograd.grad(project(network, tokens[-1][0, 0]) @ text, attention[-1])
    return {
        "legrad": plain,
        "legrad-attention": (plain / plain.max() + weighted / weighted.max()) / 2 * (plain.max() + weighted.max()) / 2,
        "attention-gradient": (attention[-1].detach() * g)[0, :, 0].sum(0)[prefix:],
    }


@pytest.mark.skipif(not hasattr(transformers.PreTrainedModel, "set_attn_implementation"), reason="an older library")
def test_attention_is_that_of_a_plain_backward(dual):
    """DINOv2's scale of each channel after its MLP, and ViT's tanh, are part of it."""
    kind, folder, network, model = dual
    if kind not in TRANSFORMERS:
        return
    for method, expected in attention_maps(folder, network, model).items():
        close(our_map(model, None, method, "dot").flatten(), expected)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    folder, network = save_dual(tmp_path_factory.mktemp("swin") / "folder", "swin")
    return folder, network, load_clip_checkpoint(folder)


def test_swin_is_explained_by_its_last_two_stages(swin):
    folder, network, model = swin
    paths = ("encoder.layers.0.blocks.0", "layernorm")
    result = explain(model, gradient_picture(), TEXTS, target_text_idx="all", subtract_others=False)
    expected = torch.stack(
        [layer_maps(folder, network, model, paths, local_gradcam, "dot", target) for target in range(len(TEXTS))]
    )
    assert result.maps.shape == expected.shape == (4, 8, 8)
    close(torch.from_numpy(result.maps), expected)


def test_swin_lists_the_layers_of_all_stages_and_no_windows(swin):
    """Its first stage has as many tokens in a window as the last has in its grid."""
    *_, model = swin
    shapes = dict(list_spatial_layers(model, 32))
    assert shapes["encoder.layers.0.blocks.0"] == (16, 8, 8) and shapes["encoder.layers.0"] == (32, 4, 4)
    assert shapes["encoder.layers.1.blocks.1"] == shapes["layernorm"] == (32, 4, 4)
    assert not any(path.startswith("encoder.layers.0.blocks.0.attention") for path in shapes)
    window = find_layer(model, "encoder.layers.0.blocks.0.attention.q_proj")
    with pytest.raises(InputError, match=r"\[4, 16, 16\]，不是空间特征图"):
        our_map(model, window, "gradcam", "cosine")
    codes = find_layer(model, "encoder.layers.0.blocks.0.attention.relative_position_bias")
    with pytest.raises(InputError, match="RelativePositionBias 不读取图像"):
        our_map(model, codes, "gradcam", "cosine")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_position_codes_are_no_layer_of_the_image(tmp_path, kind):
    """They are one for each patch, as a map is, whatever the image."""
    model = load_clip_checkpoint(save_dual(tmp_path, kind)[0])
    shapes = dict(list_spatial_layers(model, 32))
    assert "embeddings.patch_embedding" in shapes and "embeddings.position_embedding" not in shapes
    with pytest.raises(InputError, match="Embedding 不读取图像"):
        our_map(model, find_layer(model, "embeddings.position_embedding"), "gradcam", "cosine")


@pytest.mark.parametrize("method", ["legrad", "attention-gradient", "legrad-attention", "grad-eclip", "rollout"])
def test_swin_has_no_attention_over_the_whole_image(swin, method):
    with pytest.raises(InputError, match=f"{method}.*Swin 的注意力只在窗口之内.*--method"):
        our_map(swin[2], None, method, "dot")


# -- preprocessing ----------------------------------------------------------------------------


def test_deits_own_pixels(tmp_path):
    (tmp_path / PIXEL_FILE).write_text(json.dumps({"image_processor_type": "DeiTImageProcessor"}))
    preprocessing, pixels = read_preprocessing(tmp_path, {}), gradient_picture(90, 60)
    expected = library_pixels(tmp_path, pixels)["pixel_values"]
    torch.testing.assert_close(preprocessing(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind, usual", [("siglip", "Siglip"), ("vit", "ViT"), ("dinov2", "DINOv2"), ("clip", "CLIP")])
def test_pixels_that_no_file_speaks_of_are_the_vision_models(tmp_path, kind, usual):
    folder, _ = save_dual(tmp_path / "folder", kind)
    (folder / PIXEL_FILE).unlink()
    model = load_clip_checkpoint(folder)
    assert f"按 {usual} 模型通常的方式" in str(model.cautions[0])
    assert model.preprocessing.input_size(60, 90) == (32, 32)


# -- what cannot be used ----------------------------------------------------------------------


def part(folder, name, **changes):
    config = json.loads((folder / "config.json").read_text())
    change_json(folder, **{name: {**config[name], **changes}})


HARMS = {
    "grids of several sizes": (lambda f: part(f, "vision_config", model_type="swinv2"), "vision_config 是 swinv2"),
    "an unknown kind": (lambda f: part(f, "vision_config", model_type=["vit"]), "model_type 是 .*名称"),
    "no kind": (lambda f: part(f, "vision_config", model_type=None), "vision_config 是 None 模型.*clip_vision_model"),
    "texts that are not pooled": (lambda f: part(f, "text_config", model_type="distilbert"), "distilbert.*bert、rob"),
    "code of its own": (
        lambda f: part(f, "text_config", model_type="own", auto_map={"AutoModel": "own.Own"}),
        "own 模",
    ),
    "quantised": (lambda f: change_json(f, quantization_config={"bits": 4}), "量化"),
    "other sizes": (lambda f: part(f, "vision_config", window_size=3), "权重与 config.json 不符.*position_bias_table"),
    "a window of all memory": (lambda f: part(f, "vision_config", window_size=4000), "window_size 是 4000.*1 到 32"),
    "no list": (lambda f: part(f, "vision_config", depths=2), "depths 是 2.*列表"),
    "too many stages": (lambda f: part(f, "vision_config", depths=[1] * 9), "depths.*1 到 8 个"),
    "more layers than weights": (lambda f: part(f, "vision_config", depths=[1, 900]), "901 层"),
    "fewer heads": (lambda f: part(f, "vision_config", num_heads=[2]), "无法按 .*config.json 建立"),
    "half a cell": (lambda f: change_json(f, PIXEL_FILE, crop_size=36), "36×36.*8 的倍数.*--img-size"),
    "less than a window": (lambda f: change_json(f, PIXEL_FILE, crop_size=24), "24×24.*不小于 32.*--img-size"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_that_cannot_be_used(tmp_path, harm):
    folder, _ = save_dual(tmp_path / "folder", "swin")
    change, message = HARMS[harm]
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_clip_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_nothing_is_said_that_is_not_for_the_user(swin, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip_checkpoint(swin[0]).text_encoder(texts=["a cat"])
    assert capfd.readouterr() == ("", "")
