"""Published models of transformers. The library's own `model(**processor(...))` is the oracle throughout."""

import copy
import importlib.util
import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import corner_square, gradient_picture, load_with_text_features
from tiny_pretrained import (
    CLIP_PIXELS,
    FAMILIES,
    TEXTS,
    Payload,
    library_outputs,
    library_pixels,
    make_network,
    save_pretrained,
)
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM
from models.errors import InputError, InputWarning
from models.loading.fingerprint import fingerprint
from models.loading.load import embed_texts, load_clip_checkpoint
from models.loading.processors import read_preprocessing
from models.towers.published import VisionTransformerTower, into_patches
from models.towers.unread import warnings_of
from models.weights.hub import is_hub_name
from models.weights.modules import release_text_tower

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs")

PIXEL_FILE = "preprocessor_config.json"
LAYERS = {"clip-vit": "encoder.layers.{}.layer_norm1", "siglip-vit": "post_layernorm", "siglip2-vit": "post_layernorm"}
ENCODERS = {"siglip": "siglip-vit", "siglip2": "siglip2-vit"}  # the others: clip-vit


@pytest.fixture(scope="session", params=FAMILIES)
def published(request, tmp_path_factory):
    """(folder, the library's network) of one family after the other."""
    return save_pretrained(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture
def clip_folder(tmp_path):
    return save_pretrained(tmp_path / "clip", "clip")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_json(folder, name="config.json", **changes):
    content = {**json.loads((folder / name).read_text(encoding="utf-8")), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def target_layer(model):
    path = LAYERS[model.image_encoder_name].format(len(model.image_encoder.transformer().blocks) - 1)
    return model.image_encoder.backbone.get_submodule(path)


def assert_like_the_library(model, folder, network):
    """Embeddings, logits, probabilities: as the library computes them from the folder's own processor."""
    with torch.no_grad():
        expected = library_outputs(folder, network)
    images, logits = model.preprocessing(gradient_picture()), expected.logits_per_image
    probabilities = logits.sigmoid() if model.independent_probabilities else logits.softmax(dim=-1)
    with torch.no_grad():
        features, texts = model.image_encoder.embed(images), model.text_encoder(texts=TEXTS)
        cosines = F.normalize(features, dim=-1) @ texts.T
        best, predicted = model.predict(images, dict(zip("abcd", TEXTS)))
        for own, theirs in (
            (F.normalize(features, dim=-1), F.normalize(expected.image_embeds, dim=-1)),
            (texts, F.normalize(expected.text_embeds, dim=-1)),
            (model(images, TEXTS), logits),
            (model.probabilities(cosines), probabilities),
            (predicted, probabilities),
        ):
            torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    assert best.item() == logits.argmax()


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


def test_the_texts_and_the_image_matter(published):
    """A comparison of two constants would prove nothing. Each text is the same alone as among others."""
    model = load_clip_checkpoint(published[0])
    pictures = gradient_picture(), corner_square(60, 90, 30, True, False)[0]
    texts = embed_texts(model, TEXTS)
    with torch.no_grad():
        one, other = (model.image_encoder(model.preprocessing(pixels)) for pixels in pictures)
    assert (texts @ texts.T - torch.eye(len(TEXTS))).fill_diagonal_(0).max() < 0.999
    assert (one @ other.T).item() < 0.999
    for text, expected in zip(TEXTS, texts):
        torch.testing.assert_close(embed_texts(model, [text])[0], expected, rtol=0, atol=1e-5)


def library_heatmap(folder, network, model, target):
    """sum_k <g_k> A_k on the patch grid, by retain_grad and backward through the library's model; text `target`."""
    last = network.config.vision_config.num_hidden_layers - 1
    layer = network.vision_model.get_submodule(LAYERS[model.image_encoder_name].format(last))
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    outputs = library_outputs(folder, network)
    F.cosine_similarity(outputs.image_embeds[0], outputs.text_embeds[target], dim=0).backward()
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
    features, tower = embed_texts(model, TEXTS), model.text_encoder
    images = model.preprocessing(gradient_picture())
    before = CLIPGradCAM(model, target_layer(model), use_cuda=False).text_maps(images, features, 0).maps
    release_text_tower(model)
    assert model.text_encoder is None and all(p.numel() == 0 for p in tower.parameters())
    without, same_features = load_with_text_features(published[0], TEXTS)
    assert without.text_encoder is None
    torch.testing.assert_close(same_features, features, rtol=0, atol=0)
    for released in (model, without):
        after = CLIPGradCAM(released, target_layer(released), use_cuda=False).text_maps(images, features, 0).maps
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
PIXELS = {name: {**CLIP_PIXELS, **settings} for name, settings in PIXELS.items()}
PIXELS |= {f"{kind}'s own": {"image_processor_type": f"{kind}ImageProcessor"} for kind in ("CLIP", "Siglip", "ViT")}


@pytest.mark.parametrize("settings", PIXELS)
def test_pixels_are_those_of_the_librarys_own_processor(tmp_path, settings):
    """What a file leaves open is the processor's default."""
    (tmp_path / PIXEL_FILE).write_text(json.dumps(PIXELS[settings]))
    preprocessing = read_preprocessing(tmp_path, {"model_type": "clip"})
    for height, width in SHAPES:
        pixels = gradient_picture(height, width)
        expected = library_pixels(tmp_path, pixels)["pixel_values"]
        torch.testing.assert_close(preprocessing(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.skipif("siglip2" not in FAMILIES, reason="transformers is older than SigLIP 2")
@pytest.mark.parametrize(
    "most, shape",
    [(20, shape) for shape in (*SHAPES, (7, 5), (1000, 40))] + [(1, (60, 90)), (256, (301, 299)), (256, (17, 200))],
)
def test_free_shapes(tmp_path, most, shape):
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": most}
    (tmp_path / PIXEL_FILE).write_text(json.dumps(settings))
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
    (tmp_path / PIXEL_FILE).write_text(json.dumps({"size": 99}))
    assert read_preprocessing(tmp_path, {"model_type": "siglip"}).resize == (40, 40)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert read_preprocessing(tmp_path, {"model_type": "siglip"}).resize == (99, 99)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_preprocessor_the_familys_usual_one_is_taken_and_said(tmp_path, family):
    folder, _ = save_pretrained(tmp_path, family)
    (folder / PIXEL_FILE).unlink()
    model = load_clip_checkpoint(folder)
    preprocessing, (caution,) = model.preprocessing, model.cautions
    assert PIXEL_FILE in str(caution)
    if family == "siglip2":
        assert preprocessing.patches == (8, 16)
    else:
        assert preprocessing.input_size(60, 90) == (32, 32)
        assert (preprocessing.mean == (0.5,) * 3) == (family == "siglip")


# -- other sizes ------------------------------------------------------------------------------


SIDES = {"clip": 48, "chinese_clip": 36, "altclip": 16, "metaclip_2": 48, "siglip": 36}


@pytest.mark.parametrize("family, side", [(name, SIDES[name]) for name in FAMILIES if name in SIDES])
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


def test_the_preprocessing_keeps_its_proportions_at_another_size(clip_folder, tmp_path):
    folder, _ = clip_folder
    assert load_clip_checkpoint(folder, img_size=64).preprocessing[:2] == (72, (64, 64))
    assert load_clip_checkpoint(folder, img_size=32).preprocessing == load_clip_checkpoint(folder).preprocessing
    if "siglip2" in FAMILIES:  # for free shapes an area
        model = load_clip_checkpoint(save_pretrained(tmp_path / "siglip2", "siglip2")[0], img_size=48)
        assert model.preprocessing.patches == (8, 36) and model.img_size == 48


@pytest.mark.parametrize("family, patch, side", [("clip", 4, 32), ("siglip", 16, 32), ("siglip", 7, 30)])
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
    network.half().save_pretrained(folder)
    network.float()


def save_with_position_ids(network, folder):
    """Which in old files are no weights."""
    network.save_pretrained(folder)
    change_weights(
        folder, lambda weights: weights.update({"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    )


def save_shards(network, folder):
    network.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_bin(network, folder):
    network.save_pretrained(folder)
    into_bin(folder)


def into_bin(folder, **more):
    torch.save({**load_file(folder / "model.safetensors"), **more}, folder / "pytorch_model.bin")
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


@pytest.mark.parametrize("save", [save_half, save_shards, save_bin, save_bin_shards, save_with_position_ids])
def test_every_way_to_save_weights(tmp_path, save):
    folder, network = save_pretrained(tmp_path, "clip", save=save)
    model = load_clip_checkpoint(folder)
    assert_like_the_library(model, folder, network)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def save_dual(folder, kind):
    """Vision model `kind` and a BERT as the library's VisionTextDualEncoderModel; the network."""
    _, save_tokenizer, text_config, *_ = FAMILIES["chinese_clip"]
    tokens = save_tokenizer(folder)
    vision = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**FAMILIES["clip"][3]))
    bert = transformers.BertModel(transformers.BertConfig(**text_config, vocab_size=tokens))
    dual = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=bert).eval()
    dual.save_pretrained(folder)
    (folder / PIXEL_FILE).write_text(json.dumps(CLIP_PIXELS))
    return dual


def test_a_model_type_that_no_table_knows(tmp_path):
    """Its towers count: these are known ones."""
    dual = save_dual(tmp_path / "known", "CLIPVision")
    model = load_clip_checkpoint(tmp_path / "known")
    assert model.image_encoder_name == "clip-vit"
    assert_like_the_library(model, tmp_path / "known", dual)


# -- texts ------------------------------------------------------------------------------------


def test_a_text_that_is_cut_is_said(published):
    model = load_clip_checkpoint(published[0])
    long = "two dogs on the loose hip"
    (part,) = model.text_encoder.unread(["a", long])
    most = 20 if published[1].config.model_type == "chinese_clip" else 16
    assert f"超过 {most} 的部分被截去" in str(warnings_of([part])[0])
    with pytest.warns(InputWarning, match="two dogs"):
        cut = embed_texts(model, [long])
    torch.testing.assert_close(cut, embed_texts(model, [long + " and more"]), rtol=0, atol=1e-6)


def test_the_position_codes_limit_a_text_where_the_tokenizer_does_not(tmp_path):
    """RoBERTa's first two codes are not for tokens: of 18 there are 16."""
    folder, _ = save_pretrained(tmp_path, "altclip")
    change_json(folder, "tokenizer_config.json", model_max_length=10**30)
    model = load_clip_checkpoint(folder)
    assert model.text_encoder.max_tokens == 16
    with pytest.warns(InputWarning, match="超过 16 的部分被截去"):
        assert torch.isfinite(embed_texts(model, ["two dogs on the loose hip"])).all()


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


# -- what cannot be used ----------------------------------------------------------------------


def foreign_words(folder):
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    change_json(folder, "vocab.json", **{word: index + 900 for word, index in words.items()})


def own_code(folder):
    (folder / "modeling_own.py").write_text("open('executed', 'w')\nclass Own: pass\n")
    classes = {name: "modeling_own.Own" for name in ("AutoConfig", "AutoModel")}
    change_json(folder, model_type="own", auto_map=classes)


def lost_shard(folder):
    network = transformers.CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    save_shards(network, folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


WEIGHT = "vision_model.post_layernorm.weight"
# what is done to a folder -> what the error says
HARMS = {
    "another kind": (lambda f: change_json(f, model_type="bert", vision_config=None), "bert.*CLIPModel.*SiglipModel"),
    "code of its own": (own_code, "clip.*own.*文件夹自带的代码，已拒绝"),
    "a pickle that runs code": (lambda f: into_bin(f, extra=Payload(os.system, "echo > executed")), "clip.*已拒绝"),
    "a weight missing": (lambda f: change_weights(f, lambda w: w.pop(WEIGHT)), f"缺少 1 个.*{WEIGHT}"),
    "a shard missing": (lost_shard, "不完整.*model-00002-of"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "没有权重.*model.safetensors"),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"123"), "无法读取"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json.*JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json.*list"),
    "no sizes": (lambda f: change_json(f, vision_config={"hidden_size": 64}), "无法按.*config.json 建立"),
    "other sizes": (lambda f: change_json(f, vision_config={"hidden_size": 48}), "权重与 config.json 不符"),
    "no JSON for pixels": (lambda f: (f / PIXEL_FILE).write_text("{'"), f"{PIXEL_FILE}.*JSON"),
    "the longest edge": (lambda f: change_json(f, PIXEL_FILE, size={"longest_edge": 32}), "图像大小"),
    "a size in words": (lambda f: change_json(f, PIXEL_FILE, size="big"), "图像大小"),
    "two edges": (lambda f: change_json(f, PIXEL_FILE, size={"shortest_edge": 3, "longest_edge": 5}), "图像大小"),
    "another model's tokenizer": (foreign_words, "不是一套文件"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_that_cannot_be_used(clip_folder, tmp_path, monkeypatch, harm):
    monkeypatch.chdir(tmp_path)
    change, message = HARMS[harm]
    change(clip_folder[0])
    with pytest.raises(InputError, match=message) as caught:
        load_clip_checkpoint(clip_folder[0]).text_encoder(texts=["a cat"])
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


def test_flags_that_mean_nothing_here_are_said(clip_folder):
    for flag, value in (("image_encoder", "resnet50"), ("embed_dim", 512), ("text_encoder", "bert-base-chinese")):
        with pytest.warns(InputWarning, match=f"--{flag.replace('_', '-')} {value}"):
            load_clip_checkpoint(clip_folder[0], **{flag: value})


# -- where it is ------------------------------------------------------------------------------


def test_what_is_a_folder_or_a_name(clip_folder, tmp_path):
    folder, _ = clip_folder
    assert is_hub_name("openai/clip-vit-base-patch32") and is_hub_name("hub:openai/clip-vit-base-patch32")
    (tmp_path / "model.pth").write_bytes(b"")
    files = (folder, str(folder), tmp_path, tmp_path / "model.pth", "checkpoints/clip_model.pth")
    for path in (*files, "a/b/c", "name", "./model", "~/m", ""):
        assert not is_hub_name(path), path


def test_a_folder_without_a_config_says_so(tmp_path):
    with pytest.raises(InputError, match="找不到检查点文件.*config.json"):
        load_clip_checkpoint(tmp_path)


def test_a_name_that_is_nowhere_says_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="checkpoints/clip_model.*没有这个文件或文件夹.*模型库.*--download") as caught:
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

    def download(name, allow_patterns=None, local_files_only=False, cache_dir=None):
        if local_files_only:
            raise FileNotFoundError
        asked[name] = allow_patterns
        return str(clip_folder[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: there)
    monkeypatch.setattr("models.weights.hub._hub_is_reachable", lambda: True)
    with pytest.raises(InputError, match="--download.*hub:org/other"):
        load_clip_checkpoint("org/other")
    assert asked == {}
    assert load_clip_checkpoint("org/other", download=True).image_encoder_name == "clip-vit"
    assert load_clip_checkpoint("hub:org/other").image_encoder_name == "clip-vit"
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
    for name in ("model.safetensors", "merges.txt", PIXEL_FILE, "config.json"):
        content = (other / name).read_bytes()
        (other / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint(other) != first, name
        (other / name).write_bytes(content)
    assert fingerprint(other) == first


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
