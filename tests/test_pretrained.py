"""Room 1: published models of transformers. The library's own `model(**processor(...))` is the oracle throughout."""

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import corner_square, gradient_picture, load_with_text_features
from tiny_pretrained import FAMILIES, TEXTS, library_outputs, library_pixels, make_network, save_pretrained
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM
from models.errors import InputError, InputWarning
from models.loading.fingerprint import fingerprint
from models.loading.load import embed_texts, load_clip_checkpoint
from models.loading.processors import read_preprocessing
from models.towers.published import VisionTransformerTower, into_patches
from models.weights.hub import is_pretrained
from models.weights.modules import release_text_tower

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")

LAYERS = {"clip-vit": "encoder.layers.{}.layer_norm1", "siglip-vit": "post_layernorm", "siglip2-vit": "post_layernorm"}
ENCODERS = {"siglip": "siglip-vit", "siglip2": "siglip2-vit"}  # the others: clip-vit


@pytest.fixture(scope="session", params=FAMILIES)
def published(request, tmp_path_factory):
    """(folder, the library's network) of one family after the other."""
    return save_pretrained(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture
def clip_folder(tmp_path):
    return save_pretrained(tmp_path / "clip", "clip")


def target_layer(model):
    path = LAYERS[model.image_encoder_name].format(len(model.image_encoder.transformer().blocks) - 1)
    return model.image_encoder.backbone.get_submodule(path)


def assert_like_the_library(model, folder, network, pixels=None, atol=1e-5):
    """Embeddings, probabilities: as the library computes them from the folder's own processor."""
    pixels = gradient_picture() if pixels is None else pixels
    expected = library_outputs(folder, network, pixels)
    with torch.no_grad():
        images = model.image_encoder.embed(model.preprocessing(pixels))
        texts = model.text_encoder(texts=TEXTS)
        cosines = F.normalize(images, dim=-1) @ texts.T
    logits = expected.logits_per_image
    probabilities = logits.sigmoid() if model.independent_probabilities else logits.softmax(dim=-1)
    for own, theirs in (
        (F.normalize(images, dim=-1), F.normalize(expected.image_embeds, dim=-1)),
        (texts, F.normalize(expected.text_embeds, dim=-1)),
        (model.probabilities(cosines), probabilities),
    ):
        torch.testing.assert_close(own, theirs, rtol=0, atol=atol)


# -- every family -----------------------------------------------------------------------------


def test_as_the_library_computes_it(published):
    folder, network = published
    model = load_clip_checkpoint(folder)
    assert_like_the_library(model, folder, network)
    family = network.config.model_type
    assert model.image_encoder_name == ENCODERS.get(family, "clip-vit")
    assert model.independent_probabilities == (family in ("siglip", "siglip2"))
    assert not any(module.training for module in model.modules())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_logits_and_predictions_are_the_librarys(published):
    folder, network = published
    model, pixels = load_clip_checkpoint(folder), gradient_picture()
    expected = library_outputs(folder, network, pixels).logits_per_image
    images = model.preprocessing(pixels)
    with torch.no_grad():
        torch.testing.assert_close(model(images, TEXTS), expected, rtol=0, atol=1e-5)
    best, probabilities = model.predict(images, dict(zip("abcd", TEXTS)))
    assert best.item() == expected.argmax()
    rule = torch.sigmoid if model.independent_probabilities else lambda logits: logits.softmax(-1)
    torch.testing.assert_close(probabilities, rule(expected), rtol=0, atol=1e-5)


def test_the_texts_and_the_image_matter(published):
    """A comparison of two constants would prove nothing."""
    model = load_clip_checkpoint(published[0])
    pictures = gradient_picture(), corner_square(60, 90, 30, True, False)[0]
    with torch.no_grad():
        texts = model.text_encoder(texts=TEXTS)
        one, other = (model.image_encoder(model.preprocessing(pixels)) for pixels in pictures)
    assert (texts @ texts.T - torch.eye(len(TEXTS))).fill_diagonal_(0).max() < 0.999
    assert (one @ other.T).item() < 0.999


def library_heatmap(folder, network, model, target):
    """sum_k <g_k> A_k on the patch grid, by retain_grad and backward through the library's model; text `target`."""
    layer = network.vision_model.get_submodule(
        LAYERS[model.image_encoder_name].format(network.config.vision_config.num_hidden_layers - 1)
    )
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
            padding = {"padding": "max_length", "max_length": 16} if "siglip" in network.config.model_type else {}
            tokens = tokenizer(TEXTS, **{"padding": True, "truncation": True, "return_tensors": "pt", **padding})
            outputs = network(**tokens, **library_pixels(folder, gradient_picture()))
            F.cosine_similarity(outputs.image_embeds[0], outputs.text_embeds[target], dim=0).backward()
    finally:
        handle.remove()
        network.zero_grad()
    prefix, rows, columns = model.image_encoder.token_grid(*model.preprocessing.input_size(60, 90))
    A, g = (x[0, prefix : prefix + rows * columns] for x in (kept[0].detach(), kept[0].grad))
    return (A @ g.mean(0)).reshape(rows, columns)


def test_the_heatmap_is_that_of_a_plain_backward(published):
    folder, network = published
    model = load_clip_checkpoint(folder)
    cam = CLIPGradCAM(model, target_layer(model), use_cuda=False)
    maps = cam.text_maps(model.preprocessing(gradient_picture()), embed_texts(model, TEXTS), 1).maps[0, 0]
    expected = library_heatmap(folder, network, model, 1)
    assert maps.shape == ((4, 5) if model.image_encoder_name == "siglip2-vit" else (4, 4))
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert expected.std() > 1e-4


def test_the_transformer_that_it_speaks_of(published):
    """The head turns the output of the last block into the embedding; blocks and heads are the library's."""
    folder, network = published
    tower = load_clip_checkpoint(folder).image_encoder
    transformer, images = tower.transformer(), torch.randn(2, 3, 32, 32)
    outputs = []
    handle = transformer.blocks[-1].register_forward_hook(lambda *hook: outputs.append(hook[2]))
    with torch.no_grad():
        expected = tower.embed(images)
        last = outputs[0] if isinstance(outputs[0], torch.Tensor) else outputs[0][0]
        pooled = transformer.pool is not None
        torch.testing.assert_close(transformer.head(last if pooled else last[:, 0]), expected, rtol=0, atol=1e-5)
    handle.remove()
    assert len(transformer.blocks) == 3 and transformer.num_heads == 4
    assert pooled == (network.config.model_type in ("siglip", "siglip2"))
    assert not pooled or isinstance(transformer.pool.attention, torch.nn.MultiheadAttention)


def test_the_text_tower_can_go(published):
    model = load_clip_checkpoint(published[0])
    features = embed_texts(model, TEXTS)
    tower = model.text_encoder
    images = model.preprocessing(gradient_picture())
    before = CLIPGradCAM(model, target_layer(model), use_cuda=False).text_maps(images, features, 0).maps
    release_text_tower(model)
    assert model.text_encoder is None and all(p.numel() == 0 for p in tower.parameters())
    after = CLIPGradCAM(model, target_layer(model), use_cuda=False).text_maps(images, features, 0).maps
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-7)  # the last bits differ with the alignment


def test_a_twin_has_modules_of_its_own_over_the_same_weights(published):
    model = load_clip_checkpoint(published[0], text_tower=False)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin, layer = copy.deepcopy([model, target_layer(model)], shared)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters()))
    assert layer is target_layer(twin) and layer is not target_layer(model)
    images = model.preprocessing(gradient_picture())
    with torch.no_grad():
        torch.testing.assert_close(twin.image_encoder(images), model.image_encoder(images), rtol=0, atol=0)


def test_features_beside_a_model_without_its_text_tower(published):
    folder = published[0]
    model, features = load_with_text_features(folder, TEXTS)
    assert model.text_encoder is None
    torch.testing.assert_close(features, embed_texts(load_clip_checkpoint(str(folder)), TEXTS), rtol=0, atol=0)


# -- preprocessing ----------------------------------------------------------------------------

SHAPES = ((60, 90), (90, 60), (32, 32), (17, 200), (301, 299))
PIXELS = {
    "shortest edge and crop": {},
    "no crop needed": {"size": {"shortest_edge": 32}},
    "square": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "squeezed, then cropped": {"size": {"height": 40, "width": 48}},
    "numbers": {"size": 36, "crop_size": 32},
    "bilinear": {"resample": 2},
    "lanczos": {"resample": 1},
    "nearest": {"resample": 0},
    "mean and deviation": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
    "not normalised": {"do_normalize": False},
    "levels 0 to 255": {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 70.0]},
    "another factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    "padded by the crop": {"size": {"shortest_edge": 24}, "crop_size": {"height": 40, "width": 33}},
}


@pytest.mark.parametrize("settings", PIXELS)
def test_pixels_are_those_of_the_librarys_own_processor(tmp_path, settings):
    kept = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**kept, **PIXELS[settings]}))
    preprocessing = read_preprocessing(tmp_path, {"model_type": "clip"})
    for height, width in SHAPES:
        pixels = gradient_picture(height, width)
        expected = library_pixels(tmp_path, pixels)["pixel_values"]
        torch.testing.assert_close(preprocessing(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "ViT"])
def test_what_a_file_leaves_open_is_the_processors_default(tmp_path, kind):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": f"{kind}ImageProcessor"}))
    pixels = gradient_picture(250, 300)
    expected = library_pixels(tmp_path, pixels)["pixel_values"]
    own = read_preprocessing(tmp_path, {"model_type": "clip"})(pixels)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif("siglip2" not in FAMILIES, reason="transformers is older than SigLIP 2")
@pytest.mark.parametrize("most", [1, 20, 256])
@pytest.mark.parametrize("shape", [*SHAPES, (7, 5), (1000, 40)])
def test_free_shapes(tmp_path, most, shape):
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": most}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocessing, pixels = read_preprocessing(tmp_path, {"model_type": "siglip2"}), gradient_picture(*shape)
    expected, images = library_pixels(tmp_path, pixels), preprocessing(pixels)
    assert [side // 8 for side in images.shape[-2:]] == expected["spatial_shapes"][0].tolist()
    patches = into_patches(images, 8)
    torch.testing.assert_close(patches[0], expected["pixel_values"][0, : patches.shape[1]], rtol=0, atol=1e-5)
    assert not preprocessing.fixed_size


def test_the_processor_that_transformers_5_nests(tmp_path):
    nested = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 40, "width": 40}}
    nested |= dict.fromkeys(("crop_size", "do_center_crop", "resample", "do_rescale", "image_mean", "max_num_patches"))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested, "processor_class": "X"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 99}))
    assert read_preprocessing(tmp_path, {"model_type": "siglip"}).resize == (40, 40)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert read_preprocessing(tmp_path, {"model_type": "siglip"}).resize == (99, 99)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_preprocessor_the_familys_usual_one_is_taken_and_said(tmp_path, family):
    folder, _ = save_pretrained(tmp_path, family)
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(InputWarning, match="preprocessor_config.json"):
        preprocessing = load_clip_checkpoint(folder).preprocessing
    if family == "siglip2":
        assert preprocessing.patches == (8, 16)
    else:
        assert preprocessing.input_size(60, 90) == (32, 32)
        assert (preprocessing.mean == (0.5,) * 3) == (family == "siglip")


@pytest.mark.parametrize(
    "settings", [{"size": {"longest_edge": 32}}, {"size": "big"}, {"size": {"shortest_edge": 3, "longest_edge": 5}}]
)
def test_a_size_that_is_not_understood(clip_folder, settings):
    folder, _ = clip_folder
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="图像大小"):
        load_clip_checkpoint(folder)


# -- other sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "siglip2"])
@pytest.mark.parametrize("side", [48, 36, 16])
def test_another_image_size_interpolates_as_the_library_does(tmp_path, family, side):
    folder, network = save_pretrained(tmp_path, family)
    model = load_clip_checkpoint(folder, img_size=side)
    assert model.img_size == side
    images = model.preprocessing(gradient_picture())
    assert images.shape == (1, 3, side, side)
    with torch.no_grad():
        output = network.vision_model(images, interpolate_pos_encoding=True).pooler_output
        expected = network.visual_projection(output) if hasattr(network, "visual_projection") else output
        torch.testing.assert_close(model.image_encoder.embed(images), expected, rtol=0, atol=1e-5)
    maps = CLIPGradCAM(model, target_layer(model), use_cuda=False).text_maps(images, embed_texts(model, TEXTS), 0).maps
    assert maps.shape[-2:] == (side // 8, side // 8)


def test_the_preprocessing_keeps_its_proportions_at_another_size(clip_folder):
    folder, _ = clip_folder
    assert load_clip_checkpoint(folder, img_size=64).preprocessing[:2] == (72, (64, 64))
    assert load_clip_checkpoint(folder, img_size=32).preprocessing == load_clip_checkpoint(folder).preprocessing


@pytest.mark.skipif("siglip2" not in FAMILIES, reason="transformers is older than SigLIP 2")
def test_free_shapes_take_an_image_size_as_an_area(tmp_path):
    folder, _ = save_pretrained(tmp_path, "siglip2")
    model = load_clip_checkpoint(folder, img_size=48)
    assert model.preprocessing.patches == (8, 36) and model.img_size == 48


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("patch, side", [(4, 32), (16, 32), (7, 30)])
def test_other_patches(tmp_path, family, patch, side):
    pixels = {"size": {"height": side, "width": side}, "do_center_crop": False}
    folder, network = save_pretrained(tmp_path, family, pixels=pixels, patch_size=patch, image_size=side)
    model = load_clip_checkpoint(folder)
    assert_like_the_library(model, folder, network)
    prefix = 0 if family == "siglip" else 1
    assert model.image_encoder.token_grid(side, side) == (prefix, side // patch, side // patch)
    assert model.image_encoder.patch_size == patch


def test_an_image_smaller_than_a_patch(clip_folder):
    with pytest.raises(InputError, match="图块 8×8.*--img-size"):
        load_clip_checkpoint(clip_folder[0], img_size=7)


def test_register_tokens_are_counted(clip_folder):
    """Embeddings that put two more tokens behind the class token: the grid begins behind all three."""
    backbone = make_network("clip", 600).vision_model
    registers = torch.randn(1, 2, 32)

    class Embeddings(type(backbone.embeddings)):
        def forward(self, *args, **kwargs):
            tokens = super().forward(*args, **kwargs)
            return torch.cat([tokens[:, :1], registers.expand(len(tokens), -1, -1), tokens[:, 1:]], 1)

    backbone.embeddings.__class__ = Embeddings
    tower = VisionTransformerTower(backbone, torch.nn.Identity())
    assert tower.token_grid(32, 40) == (3, 4, 5)
    model = load_clip_checkpoint(clip_folder[0])
    model.image_encoder = tower
    images, features = model.preprocessing(gradient_picture()), torch.randn(1, 32)
    assert CLIPGradCAM(model, target_layer(model), use_cuda=False).text_maps(images, features).maps.shape[-2:] == (4, 4)


# -- every way to save ------------------------------------------------------------------------


def save_half(network, folder):
    copy.deepcopy(network).half().save_pretrained(folder)


def save_shards(network, folder):
    network.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_bin(network, folder):
    network.save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def save_bin_shards(network, folder):
    save_bin(network, folder)
    weights = torch.load(folder / "pytorch_model.bin")
    keys, names = list(weights), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    where = {key: names[number % 2] for number, key in enumerate(keys)}
    for name in names:
        torch.save({key: weights[key] for key in keys if where[key] == name}, folder / name)
    (folder / "pytorch_model.bin").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("save", [save_half, save_shards, save_bin, save_bin_shards])
def test_every_way_to_save_weights(tmp_path, save):
    folder, network = save_pretrained(tmp_path, "clip", save=save)
    model = load_clip_checkpoint(folder)
    if save is save_half:
        network = network.half().float()
    assert_like_the_library(model, folder, network)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_position_ids_of_old_files_are_no_weights(clip_folder):
    folder, network = clip_folder
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert_like_the_library(load_clip_checkpoint(folder), folder, network)


def test_a_structure_under_another_name(tmp_path):
    """A model type that no table knows, whose towers are the known ones."""
    import transformers

    _, tokenizer, text_config, *_ = FAMILIES["chinese_clip"]
    folder = tmp_path / "dual"
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**FAMILIES["clip"][3]))
    bert = transformers.BertModel(transformers.BertConfig(**text_config(tokenizer(folder))))
    dual = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=bert).eval()
    dual.save_pretrained(folder)
    settings = json.dumps(FAMILIES["clip"][-1])
    (folder / "preprocessor_config.json").write_text(settings)
    model = load_clip_checkpoint(folder)
    assert model.image_encoder_name == "clip-vit"
    assert_like_the_library(model, folder, dual)


# -- texts ------------------------------------------------------------------------------------


def test_a_text_that_is_cut_is_said(published):
    model = load_clip_checkpoint(published[0])
    long = "two dogs on the loose hip"
    messages = model.text_encoder.describe_cuts(["a", long])
    most = 20 if published[1].config.model_type == "chinese_clip" else 16
    assert len(messages) == 1 and f"超过 {most} 的部分被截去" in messages[0]
    with pytest.warns(InputWarning, match="two dogs"):
        cut = embed_texts(model, [long])
    torch.testing.assert_close(cut, embed_texts(model, [long + " and more"]), rtol=0, atol=1e-6)


def test_the_position_codes_limit_a_text_where_the_tokenizer_does_not(tmp_path):
    """RoBERTa's first two codes are not for tokens: of 18 there are 16."""
    folder, _ = save_pretrained(tmp_path, "altclip")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 10**30}))
    model = load_clip_checkpoint(folder)
    assert model.text_encoder.max_tokens == 16
    with pytest.warns(InputWarning, match="超过 16 的部分被截去"):
        assert torch.isfinite(embed_texts(model, ["two dogs on the loose hip"])).all()


def test_one_text_alone_is_the_same_as_among_others(published):
    model = load_clip_checkpoint(published[0])
    for index, text in enumerate(TEXTS):
        torch.testing.assert_close(embed_texts(model, [text])[0], embed_texts(model, TEXTS)[index], rtol=0, atol=1e-5)


def test_no_tokenizer(clip_folder, tmp_path):
    folder, _ = clip_folder
    elsewhere = tmp_path / "tokenizer"
    elsewhere.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.move(folder / name, elsewhere / name)
    with pytest.raises(InputError, match="tokenizer.json.*vocab.json 和 merges.txt"):
        load_clip_checkpoint(folder)
    assert load_clip_checkpoint(folder, text_tower=False).text_encoder is None
    with pytest.raises(InputError, match="没有文本编码器"):
        embed_texts(load_clip_checkpoint(folder, text_tower=False), TEXTS)
    shutil.copy(folder / "config.json", elsewhere)
    model = load_clip_checkpoint(folder, text_encoder=str(elsewhere))
    assert model.text_encoder(texts=["a cat"]).shape == (1, 28)


def test_a_tokenizer_that_needs_a_library_says_which(tmp_path):
    folder, _ = save_pretrained(tmp_path, "siglip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "spiece.model").write_bytes(b"no model")
    missing = importlib.util.find_spec("sentencepiece") is None
    with pytest.raises(InputError, match="无法读取.*分词器" + ".*pip install sentencepiece" * missing) as caught:
        load_clip_checkpoint(folder).text_encoder(texts=["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family, kept", [("clip", {"vocab.json", "merges.txt"}), ("chinese_clip", {"vocab.txt"})])
def test_the_bare_vocabulary_is_enough(tmp_path, family, kept):
    """As older repositories have it: no tokenizer.json, no tokenizer_config.json."""
    folder, _ = save_pretrained(tmp_path, family)
    texts = ["a cat", "正常"]
    expected = embed_texts(load_clip_checkpoint(folder), texts)
    for name in {"vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json"} - kept:
        (folder / name).unlink(missing_ok=True)
    torch.testing.assert_close(embed_texts(load_clip_checkpoint(folder), texts), expected, rtol=0, atol=1e-5)


def test_a_tokenizer_of_another_model(clip_folder):
    folder, _ = clip_folder
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    words = {word: index + 900 for word, index in words.items()}
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(InputError, match="不是一套文件"):
        load_clip_checkpoint(folder).text_encoder(texts=["a cat"])


# -- what cannot be used ----------------------------------------------------------------------


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_model_of_another_kind(clip_folder):
    folder, _ = clip_folder
    edit_config(folder, model_type="bert", vision_config=None)
    with pytest.raises(InputError, match="bert.*CLIPModel.*SiglipModel"):
        load_clip_checkpoint(folder)


def test_a_model_of_an_unknown_structure(tmp_path):
    import transformers

    folder, network = save_pretrained(tmp_path / "clip", "clip")
    vision = transformers.ViTModel(transformers.ViTConfig(**FAMILIES["clip"][3]))
    bert = transformers.BertModel(transformers.BertConfig(**FAMILIES["chinese_clip"][2](60)))
    transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=bert).save_pretrained(folder)
    with pytest.raises(InputError, match="ViTModel.*不受支持.*支持：CLIPModel"):
        load_clip_checkpoint(folder)


def test_code_of_a_folder_is_not_executed(clip_folder, tmp_path):
    folder, _ = clip_folder
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Own: pass\n")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"})
    with pytest.raises(InputError):
        load_clip_checkpoint(folder)
    assert not (tmp_path / "executed").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo > {self.path}",)


def test_a_malicious_bin_is_refused(tmp_path):
    folder, _ = save_pretrained(tmp_path / "clip", "clip", save=save_bin)
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save({**weights, "extra": Payload(tmp_path / "executed")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="无法读取.*clip"):
        load_clip_checkpoint(folder)
    assert not (tmp_path / "executed").exists()


def test_missing_weights_are_an_error(clip_folder):
    folder, _ = clip_folder
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="缺少 1 个.*post_layernorm.weight"):
        load_clip_checkpoint(folder)


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "没有权重.*model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "无法读取"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json.*JSON"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json.*list"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{'"), "preprocessor_config.json.*JSON"),
        (lambda folder: edit_config(folder, vision_config={"hidden_size": 64}), "无法读取"),
    ],
)
def test_a_damaged_folder(clip_folder, harm, message):
    folder, _ = clip_folder
    harm(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_clip_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_not_there(tmp_path):
    folder, _ = save_pretrained(tmp_path, "clip", save=save_shards)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=f"不完整.*{shard.name}"):
        load_clip_checkpoint(folder)


def test_flags_that_mean_nothing_here_are_said(clip_folder):
    for flag, value in (("image_encoder", "resnet50"), ("embed_dim", 512), ("text_encoder", "bert-base-chinese")):
        with pytest.warns(InputWarning, match=f"--{flag.replace('_', '-')} {value}"):
            load_clip_checkpoint(clip_folder[0], **{flag: value})


# -- where it is ------------------------------------------------------------------------------


def test_what_is_a_folder_or_a_name(clip_folder, tmp_path):
    folder, _ = clip_folder
    assert is_pretrained(folder) and is_pretrained(str(folder))
    assert is_pretrained("openai/clip-vit-base-patch32")
    (tmp_path / "model.pth").write_bytes(b"")
    for path in (tmp_path, tmp_path / "model.pth", "checkpoints/clip_model.pth", "a/b/c", "name", "./model", "~/m", ""):
        assert not is_pretrained(path), path


def test_a_folder_without_a_config_says_so(tmp_path):
    with pytest.raises(InputError, match="找不到检查点文件.*config.json"):
        load_clip_checkpoint(tmp_path)


def test_a_name_that_is_nowhere_says_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoints/clip_model.*不是本地的检查点文件.*模型库") as caught:
        load_clip_checkpoint("checkpoints/clip_model")
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A local cache of the model hub with "org/tiny-clip" in it; the snapshot's folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return save_pretrained(repository / "snapshots" / ("0" * 40), "clip")


def test_a_name_in_the_local_cache(hub_cache):
    folder, network = hub_cache
    assert_like_the_library(load_clip_checkpoint("org/tiny-clip"), folder, network)
    assert fingerprint("org/tiny-clip") == fingerprint(folder)


def test_a_cache_without_the_weights_is_none(hub_cache):
    (hub_cache[0] / "model.safetensors").unlink()
    with pytest.raises(InputError, match="org/tiny-clip.*不在本地缓存中"):
        load_clip_checkpoint("org/tiny-clip")


def test_what_is_downloaded_is_one_set_of_weights_and_the_small_files(monkeypatch, clip_folder):
    """The hub's client stands in for the network."""
    asked = {}
    there = ["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx"]

    def download(name, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError
        asked[name] = allow_patterns
        return str(clip_folder[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: there)
    monkeypatch.setattr("models.weights.hub._hub_is_reachable", lambda: True)
    assert load_clip_checkpoint("org/other").image_encoder_name == "clip-vit"
    assert "model.safetensors" in asked["org/other"] and "*.json" in asked["org/other"]
    assert not {"pytorch_model.bin", "flax_model.msgpack"} & set(asked["org/other"])


def test_a_fingerprint_is_of_the_content(clip_folder, tmp_path):
    folder, _ = clip_folder
    first = fingerprint(folder)
    assert len(first) == 32 and int(first, 16) >= 0
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    (other / "README.md").write_text("hello")
    assert fingerprint(other) == first
    for name in ("model.safetensors", "merges.txt", "preprocessor_config.json", "config.json"):
        content = (other / name).read_bytes()
        (other / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint(other) != first, name
        (other / name).write_bytes(content)
    assert fingerprint(other) == first


NEW_CODE = ("pretrained", "pretrained_towers", "openai_clip", "clip_resnet", "clip_text", "torchscript")


def test_our_own_checkpoints_import_none_of_this(checkpoint):
    script = (
        "import sys; from models.loading.load import load_clip_checkpoint as load;"
        f"load({str(checkpoint)!r}, ['正常']);"
        f"print([name for name in {NEW_CODE} if 'models.' + name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_typo_is_answered_without_the_heavy_libraries():
    script = (
        "import sys; from models.errors import InputError\n"
        "from models.weights.hub import is_pretrained\n"
        "assert not is_pretrained('checkpoints/missing.pth')\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_said_that_is_not_for_the_user(clip_folder, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip_checkpoint(clip_folder[0]).text_encoder(texts=["a cat"])
    assert capfd.readouterr() == ("", "")


def test_the_input_shows_what_its_region_says(clip_folder):
    """White left of the region changes nothing, white inside it does."""
    model = load_clip_checkpoint(clip_folder[0])
    region = model.preprocessing.region(60, 90)
    outside, inside = np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90, 3), np.uint8)
    outside[:, : int(region.left) - 4] = 255
    inside[20:30, int(region.left) + 2 : int(region.left) + 12] = 255
    black = model.preprocessing(np.zeros((60, 90, 3), np.uint8))
    assert torch.equal(model.preprocessing(outside), black) and not torch.equal(model.preprocessing(inside), black)
