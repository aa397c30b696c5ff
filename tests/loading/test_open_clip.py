"""Open_clip's models with towers of timm and Hugging Face: its own networks, of a tiny size, are the oracle."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_published_cache import assert_kept, built  # noqa: F401 (a fixture)
from tiny import gradient_picture, load_with_text_features, tiny_clip
from tiny_pretrained import FAMILIES, randomise, write_clip_bpe
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM, explain
from models.errors import InputError
from models.loading.load import embed_texts, load_clip_checkpoint
from models.loading.open_clip import TIMM_HEAD_WIDTHS, kind_of
from models.towers.cleaning import CLEANERS

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")

pytestmark = pytest.mark.filterwarnings("ignore:文本“two ")
TEXTS = ["a cat", "正常，“假体”", "two  dogs on the loose hip &amp; more", "感染"]
WIDTH, EMBED, CONTEXT, SIDE = 128, 40, 24, 32
TINY = {"embed_dim": WIDTH, "depth": 3, "num_heads": 2, "img_size": SIDE, "patch_size": 8}
TEXT_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}

IMAGES = {
    "vit": {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"},
    "vit, mlp": {"timm_model_name": "vit_small_patch16_224.augreg_in21k", "timm_pool": "token", "timm_proj": "mlp"},
    "vit, its head": {"timm_model_name": "deit_base_patch16_224", "timm_pool": "token", "timm_proj": None},
    "clip": {
        **{"timm_model_name": "vit_base_patch16_clip_quickgelu_224", "timm_pool": "token", "timm_proj": "linear"},
        "timm_proj_bias": True,
    },
    "siglip": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "linear"},
    "siglip, tanh": {"timm_model_name": "vit_base_patch32_siglip_256", "timm_pool": "map", "timm_proj": "none"},
    "open_clip's own": {"layers": 3, "width": WIDTH, "patch_size": 8},
}
_TRANSFORMER = {"width": WIDTH, "heads": 4, "layers": 2, "context_length": CONTEXT}
_SIGLIP = {**_TRANSFORMER, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
_SIGLIP |= {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}
_BERT = {"hf_model_name": "microsoft/BiomedBERT-base", "hf_tokenizer_name": "microsoft/BiomedBERT-base"}
_ROBERTA = {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "xlm-roberta-base"}
_LAST = "cls_last_hidden_state_pooler"
# name -> family whose tokenizer it has, type of the encoder, text_cfg
TEXT_TOWERS = {
    "bert": ("chinese_clip", "bert", {**_BERT, "hf_proj_type": "mlp", "hf_pooler_type": _LAST}),
    "bert, pooled": ("chinese_clip", "bert", {**_BERT, "hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}),
    "roberta": ("altclip", "roberta", {**_ROBERTA, "hf_proj_type": "linear"}),
    "xlm-roberta": ("altclip", "xlm-roberta", {**_ROBERTA, "hf_pooler_type": None}),
    "siglip": ("siglip", None, {**_SIGLIP, "norm_kwargs": {"eps": 1e-6}}),
    "siglip, tanh": ("siglip", None, {**_SIGLIP, "proj_bias": False, "act_kwargs": {"approximate": "tanh"}}),
    "clip": (None, None, _TRANSFORMER),
}
PAIRS = (
    ("vit", "bert"),
    ("vit, mlp", "roberta"),
    ("vit, its head", "bert, pooled"),
    ("clip", "clip"),
    ("siglip", "siglip"),
    ("siglip, tanh", "siglip, tanh"),
    ("open_clip's own", "xlm-roberta"),
)
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "resize_mode": "squash", "interpolation": "bilinear"}


def save_tiny(folder, image="vit", text="bert", name="open_clip_pytorch_model.bin", preprocess=PIXELS, **encoder):
    """A tiny random model of open_clip in a folder, as it is published; returns its network.

    `encoder`: settings of the text encoder's config.json, which is not part of the folder.
    """
    family, kind, text_cfg = TEXT_TOWERS[text]
    tokens = FAMILIES[family][1](folder) if family else write_clip_bpe(folder)
    text_cfg = {**text_cfg, "context_length": CONTEXT, "vocab_size": tokens}
    embed = WIDTH if "tanh" in image or kind == "xlm-roberta" else EMBED
    cfg = {"embed_dim": embed, "vision_cfg": {"image_size": SIDE, **IMAGES[image]}, "text_cfg": text_cfg}
    if "siglip" in image:
        cfg["init_logit_bias"] = -10
    write_config(folder, cfg, preprocess)
    build = timm.create_model
    torch.manual_seed(0)
    with (
        TemporaryDirectory() as source,
        mock.patch.object(timm, "create_model", lambda name, **options: build(name, **{**TINY, **options})),
    ):
        if kind:
            write_encoder(source, kind, tokens, **encoder)
            cfg["text_cfg"] = {**text_cfg, "hf_model_name": source, "hf_model_pretrained": False}
        network = randomise(open_clip.model.CustomTextCLIP(**cfg))
    with torch.no_grad():
        for key, tensor in network.named_parameters():
            if key.endswith(("pos_embed", "cls_token", "latent")):
                tensor.normal_()
    (save_file if name.endswith("safetensors") else torch.save)(network.state_dict(), folder / name)
    return network


@pytest.fixture
def make(tmp_path):
    """A function that saves a tiny model and returns (folder, its network); see `save_tiny`."""

    def make_one(*kinds, **options):
        return tmp_path / "model", save_tiny(tmp_path / "model", *kinds, **options)

    return make_one


def write_encoder(folder, kind, tokens, **settings):
    """The config.json of a text encoder."""
    kinds = {"bert": (40, 2, 1e-12, 0), "roberta": (42, 1, 1e-5, 1), "xlm-roberta": (42, 1, 1e-5, 1)}
    positions, types, epsilon, padding = kinds[kind]
    sizes = {"max_position_embeddings": positions, "type_vocab_size": types, "layer_norm_eps": epsilon}
    content = {"model_type": kind, "vocab_size": tokens, **TEXT_SIZES, **sizes, "pad_token_id": padding, **settings}
    Path(folder, "config.json").write_text(json.dumps(content))


def write_config(folder, model, preprocess=PIXELS):
    content = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def change_config(folder, part, **changes):
    content = json.loads((folder / "open_clip_config.json").read_text())
    model = content["model_cfg"]
    settings = {"model_cfg": model, "preprocess_cfg": content["preprocess_cfg"]}.get(part) or model[part]
    settings.update(changes)
    for name in [name for name, value in changes.items() if value is ...]:
        del settings[name]
    write_config(folder, model, content["preprocess_cfg"])


def change_weights(folder, change):
    weights = torch.load(folder / "open_clip_pytorch_model.bin")
    change(weights)
    torch.save(weights, folder / "open_clip_pytorch_model.bin")


def library_ids(folder, model):
    """The token ids that open_clip's own tokenizer makes of TEXTS."""
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    if "hf_tokenizer_name" not in text_cfg:
        tokens = model.text_encoder.tokenize(TEXTS)
        ids = tokens["input_ids"] * tokens["attention_mask"]  # filled up with zeros
        return F.pad(ids, (0, CONTEXT - ids.shape[1]))
    options = text_cfg.get("tokenizer_kwargs", {})
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=CONTEXT, **options)(TEXTS)


def assert_like_open_clip(model, folder, network, preprocess=PIXELS):
    """Pixels, token ids, embeddings, logits and probabilities."""
    cfg = open_clip.transform.PreprocessCfg(size=SIDE, **preprocess)
    images = open_clip.transform.image_transform_v2(cfg, is_train=False)(Image.fromarray(gradient_picture()))[None]
    torch.testing.assert_close(model.preprocessing(gradient_picture()), images, rtol=0, atol=1e-5)
    ids = library_ids(folder, model)
    with torch.no_grad():
        image_features = network.encode_image(images, normalize=True)
        text_features = network.encode_text(ids, normalize=True)
        logits = network.get_logits(images, ids)[0]
        own_texts = model.text_encoder(texts=TEXTS)
        for own, expected in (
            (model.image_encoder(images), image_features),
            (own_texts, text_features),
            (model(images, TEXTS), logits),
            (
                model.probabilities(model.image_encoder(images) @ own_texts.T),
                logits.sigmoid() if network.logit_bias is not None else logits.softmax(-1),
            ),
        ):
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    assert (text_features @ text_features.T - torch.eye(len(TEXTS))).max() < 0.999  # else nothing would be compared


@pytest.mark.parametrize("image, text", PAIRS)
def test_as_open_clip_computes_it(make, image, text):
    folder, network = make(image, text)
    model = load_clip_checkpoint(folder)
    assert_like_open_clip(model, folder, network)
    encoders = {"vit": "plain-vit", "clip": "clip-vit", "siglip": "siglip-vit", "open_clip's own": "clip-vit"}
    assert model.image_encoder_name == encoders[image.partition(",")[0]]
    assert model.independent_probabilities == ("siglip" in image)
    assert all("的 config.json" in str(caution) for caution in model.cautions)  # of a BERT of an unusual width
    assert not any(module.training for module in model.modules())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("text", ["bert", "roberta"])
def test_a_text_is_the_same_alone_as_among_longer_ones(make, text):
    """Filling up is masked: it need not go to the full length."""
    model = load_clip_checkpoint(make(text=text)[0])
    together = embed_texts(model, TEXTS)
    for sentence, expected in zip(TEXTS, together):
        torch.testing.assert_close(embed_texts(model, [sentence])[0], expected, rtol=0, atol=1e-6)
    assert model.text_encoder.tokenize(["a cat"])["input_ids"].shape[1] < CONTEXT


# -- heatmaps ---------------------------------------------------------------------------------

SAME_LAYER = {
    "vit": ("blocks.2.norm1", "layers.2.layernorm_before"),
    "clip": ("blocks.2.norm1", "encoder.layers.2.layer_norm1"),
    "siglip": ("norm", "post_layernorm"),
}


@pytest.mark.parametrize("image", SAME_LAYER)
def test_the_heatmap_is_that_of_a_plain_backward(make, image):
    """sum_k <g_k> A_k of timm's own module."""
    folder, network = make(image, "bert")
    model, kept = load_clip_checkpoint(folder), []
    theirs, ours = SAME_LAYER[image]

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    network.visual.trunk.get_submodule(theirs).register_forward_hook(keep)
    images, texts = model.preprocessing(gradient_picture()), embed_texts(model, TEXTS)
    (network.encode_image(images, normalize=True) @ texts[1]).sum().backward()
    A, g = (x[0, -16:] for x in (kept[0].detach(), kept[0].grad))
    expected = (A @ g.mean(0)).reshape(4, 4)
    cam = CLIPGradCAM(model, model.image_encoder.backbone.get_submodule(ours), use_cuda=False)
    maps = cam.text_maps(images, texts, 1).maps[0, 0]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert expected.std() > 1e-4


def library_attention(network, images, text, blocks):
    """(attention A, ds/dA) of timm's last blocks [heads, N, N], by autograd through its unfused attention.

    s is the score of the mean token of each block (LeGrad); of the last one first that of the class token.
    """
    trunk, maps, tokens, handles = network.visual.trunk, [], [], []
    for block in trunk.blocks[-blocks:]:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: maps.append(output)))
        handles.append(block.register_forward_hook(lambda module, inputs, output: tokens.append(output)))
    image = network.encode_image(images, normalize=True)
    for handle in handles:
        handle.remove()
    scores = [(F.normalize(network.visual.head(trunk.norm(block.mean(1))), dim=-1) @ text).sum() for block in tokens]
    gradients = [torch.autograd.grad((image @ text).sum(), maps[-1], retain_graph=True)[0]]
    gradients += [torch.autograd.grad(score, a, retain_graph=True)[0] for score, a in zip(scores, maps)]
    return [a.detach()[0] for a in (maps[-1], *maps)], [g[0] for g in gradients]


@torch.no_grad()
def expected_maps(attention, gradients) -> dict:
    """The formulas of `models.explain.attention` from whole matrices, on the patches."""
    side = round((attention[0].shape[-1] - 1) ** 0.5)
    legrad = torch.stack([g.relu().mean((0, 1)) for g in gradients[1:]]).mean(0)[1:]
    through = (attention[0] * gradients[0]).sum(0)[0, 1:]
    return {
        "legrad": (legrad - legrad.min()).reshape(side, side),
        "attention-gradient": through.reshape(side, side),
    }


def test_the_attention_is_that_of_timms_own_blocks(make):
    folder, network = make("vit", "bert")
    model = load_clip_checkpoint(folder)
    images, texts = model.preprocessing(gradient_picture()), embed_texts(model, TEXTS)
    expected = expected_maps(*library_attention(network, images, texts[1], 2))
    for method, maps in expected.items():
        own = CLIPGradCAM(model, None, use_cuda=False, method=method).text_maps(images, texts, 1).maps[0, 0]
        torch.testing.assert_close(own, maps, rtol=1e-4, atol=1e-5 * maps.abs().max().item())
        assert maps.std() > 1e-6


# -- what no shape shows ----------------------------------------------------------------------

NAMES = ("vit_tiny_patch16_224", "deit_small_patch16_224", "vit_giant_patch14_224", "vit_huge_patch14_clip_224")
NAMES += ("vit_large_patch14_clip_quickgelu_336", "vit_gigantic_patch14_clip_224", "vit_base_patch16_plus_clip_240")
NAMES += ("vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_256")
NAMES += ("vit_large_patch16_siglip_512", "vit_so400m_patch14_siglip_224", "vit_so400m_patch16_siglip_384")
NAMES += ("vit_giantopt_patch16_siglip_256",)
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_implies_is_what_timm_builds(name, tmp_path):
    with torch.device("meta"):
        network = timm.create_model(name, depth=1, num_classes=0)
    kind, block = kind_of(name, tmp_path), network.blocks[0]
    assert (kind.epsilon, kind.activation) == (block.norm1.eps, ACTIVATIONS[type(block.mlp.act).__name__])
    assert network.embed_dim // TIMM_HEAD_WIDTHS.get(network.embed_dim, 64) == block.attn.num_heads


@pytest.mark.parametrize("clean", CLEANERS)
def test_texts_are_cleaned_as_open_clip_does(clean):
    """Each character of the first plane but those of a guess at a wrong encoding; entities, quotes, spaces."""
    theirs = open_clip.tokenizer.get_clean_fn(clean)
    letters = [*range(0x20, 0x80), *range(0xA0, 0x800), *range(0x2000, 0x3100), *range(0x4E00, 0x4E40)]
    letters += range(0xF900, 0x10000)
    texts = [f"透亮 a{chr(code)}B. " for code in letters] + TEXTS
    texts += ["Ａ＿b<br>&lt;c", "&amp;lt; d", "e\u3000\n ｆ", "“左”侧，未见：(g)！", "\x1b[31mred\x07"]
    wrong = [(text, CLEANERS[clean](text), theirs(text)) for text in texts if CLEANERS[clean](text) != theirs(text)]
    assert wrong == []


def test_a_text_encoders_own_settings(make):
    """Heads and eps of the config.json beside the weights; without one what is usual, and said."""
    own = {"num_attention_heads": 8, "layer_norm_eps": 1e-3}
    folder, network = make("vit", "bert", **own)
    model = load_clip_checkpoint(folder)
    assert re.search("BiomedBERT-base 的 config.json.*64 宽", str(*model.cautions))
    with pytest.raises(AssertionError):
        assert_like_open_clip(model, folder, network)
    write_encoder(folder, "bert", network.text.vocab_size, **own)
    model = load_clip_checkpoint(folder)
    assert_like_open_clip(model, folder, network)
    assert model.cautions == []


def test_without_a_preprocess_cfg_open_clips_defaults_are_taken_and_said(make):
    folder, network = make("clip", "clip", preprocess={})
    model = load_clip_checkpoint(folder)
    assert_like_open_clip(model, folder, network, {})
    assert "没有 preprocess_cfg" in str(*model.cautions)


# -- files ------------------------------------------------------------------------------------


def is_bert(model, network) -> bool:
    """Whether a model that was loaded is the tiny BiomedCLIP of the fixture, by its image tower."""
    images = model.preprocessing(gradient_picture())
    with torch.no_grad():
        return torch.allclose(model.image_encoder(images), network.encode_image(images, normalize=True), atol=1e-5)


def test_where_a_model_may_lie(make, monkeypatch, tmp_path):
    """The folder, the file itself, safetensors, a training checkpoint, and a name in the hub's local cache."""
    folder, network = make(name="open_clip_model.safetensors")
    file = folder / "open_clip_model.safetensors"
    assert is_bert(load_clip_checkpoint(folder), network) and is_bert(load_clip_checkpoint(file), network)
    training = {"epoch": 1, "state_dict": {f"module.{key}": tensor for key, tensor in network.state_dict().items()}}
    torch.save(training, folder / "epoch_1.pt")
    assert is_bert(load_clip_checkpoint(folder / "epoch_1.pt"), network)
    with pytest.raises(InputError, match="有 2 个检查点：open_clip_model.safetensors、epoch_1.pt"):
        load_clip_checkpoint(folder)  # which of them is meant?
    (folder / "open_clip_model.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    assert is_bert(load_clip_checkpoint(folder), network)
    (folder / "epoch_1.pt").unlink()
    (tmp_path / "open_clip_model.safetensors").rename(file)
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")  # the same in another form
    assert is_bert(load_clip_checkpoint(folder), network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--biomed"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    assert is_bert(load_clip_checkpoint("org/biomed"), network)


def test_a_checkpoint_of_our_own_beside_an_open_clip_config(make, tmp_path):
    folder, _ = make()
    (folder / "open_clip_pytorch_model.bin").unlink()
    torch.save(tiny_clip("resnet18").state_dict(), folder / "clip_model.pth")
    (folder / "hparams.json").write_text(json.dumps({"img_size": 96}))
    assert load_clip_checkpoint(folder).img_size == 96


@pytest.mark.parametrize("kind", [["bert"], {"bert": 1}, 5])
def test_a_config_of_no_text_encoder_is_passed_over(make, kind):
    folder, network = make()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    assert is_bert(load_clip_checkpoint(folder), network)


def test_where_the_tokenizer_is_looked_for(make, monkeypatch, tmp_path):
    """Beside the weights, in the folder that the user names, in the hub's cache under the name of the config."""
    folder, network = make()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(tokenizer / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match="找不到分词器 microsoft/BiomedBERT-base.*--text-encoder") as caught:
        load_clip_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert load_clip_checkpoint(folder, text_tower=False).text_encoder is None
    with torch.no_grad():
        expected = network.encode_text(open_clip.tokenizer.HFTokenizer(str(tokenizer), CONTEXT)(TEXTS), normalize=True)
    texts = embed_texts(load_clip_checkpoint(folder, text_encoder=str(tokenizer)), TEXTS)
    torch.testing.assert_close(texts, expected, rtol=0, atol=1e-5)
    repository = tmp_path / "hub" / "models--microsoft--BiomedBERT-base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    tokenizer.rename(repository / "snapshots" / ("0" * 40))
    torch.testing.assert_close(embed_texts(load_clip_checkpoint(folder), TEXTS), expected, rtol=0, atol=1e-5)


# -- what cannot be used ----------------------------------------------------------------------

TRUNK = "visual.trunk."
CONFIG_HARMS = {  # part of the config, its changes, what is said
    "mean pooling": ("vision_cfg", {"timm_pool": "avg"}, "timm_pool 是 'avg'.*'map' 之一"),
    "mean pooling, unsaid": ("vision_cfg", {"timm_pool": ...}, "timm_pool 是 'avg'"),
    "eva": ("vision_cfg", {"timm_model_name": "eva02_base_patch16_clip_224"}, "timm 的 eva02_base_patch16_clip_224"),
    "a network of convolutions": ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm 的 convnext_base"),
    "dinov2": ("vision_cfg", {"timm_model_name": "vit_small_patch14_dinov2"}, "timm 的 vit_small_patch14_dinov2"),
    "no square": ("vision_cfg", {"image_size": [32, 48]}, "image_size 是 .32, 48.*正方形"),
    "another size": ("vision_cfg", {"image_size": 64}, "1 个权重的形状.*position_embeddings"),
    "no size": ("vision_cfg", {"image_size": "large"}, "vision_cfg.image_size"),
    "layer scale": ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value 不受支持"),
    "a pooler that cannot run": ("text_cfg", {"hf_pooler_type": "max_pooler"}, "max_pooler.*'mean_pooler' 之一"),
    "another way to cut": ("text_cfg", {"tokenizer_mode": "clips"}, "tokenizer_mode 不受支持"),
    "no separators": ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token 不受支持"),
    "no tokenizer": ("text_cfg", {"hf_tokenizer_name": ...}, "没有写明 hf_tokenizer_name"),
    "coca": ("model_cfg", {"multimodal_cfg": {"width": 8}}, "multimodal_cfg 不受支持"),
    "a bias that is not there": ("model_cfg", {"init_logit_bias": -10}, "没有 logit_bias"),
    "pixels": ("preprocess_cfg", {"resize_mode": "longest"}, "resize_mode 是 'longest'"),
}
WEIGHT_HARMS = {
    "layer scale": (lambda w: w.update({f"{TRUNK}blocks.0.ls1.gamma": torch.ones(WIDTH)}), "没有位置.*ls1.gamma"),
    "norms of queries": (
        lambda w: w.update({f"{TRUNK}blocks.0.attn.q_norm.weight": torch.ones(64)}),
        "没有位置.*attn.q_norm",
    ),
    "registers": (lambda w: w.update({f"{TRUNK}reg_token": torch.ones(1, 4, WIDTH)}), "没有位置.*reg_token"),
    "no class token": (lambda w: w.pop(f"{TRUNK}cls_token"), "既没有类别词元也没有注意力池化"),
    "a weight missing": (lambda w: w.pop(f"{TRUNK}norm.weight"), "缺少 1 个权重.*layernorm.weight"),
    "no patches": (lambda w: w.pop(f"{TRUNK}patch_embed.proj.weight"), "没有 visual.trunk.patch_embed.proj.weight"),
    "another encoder": (
        lambda w: w.pop("text.transformer.embeddings.token_type_embeddings.weight"),
        "没有 text.transformer.embeddings.token_type_embeddings.weight",
    ),
    "one channel": (
        lambda w: w.update({f"{TRUNK}patch_embed.proj.weight": w[f"{TRUNK}patch_embed.proj.weight"][:, :1].clone()}),
        "1 个通道",
    ),
    "half a projection": (lambda w: w.pop("text.proj.2.weight"), "没有 text.proj.2.weight"),
    "something else": (lambda w: w.update({"text_decoder.a": torch.ones(3)}), "缺|没有位置|两个编码器之外"),
}


@pytest.mark.parametrize("harm", CONFIG_HARMS)
def test_a_config_that_cannot_be_built(make, harm):
    folder, _ = make()
    part, changes, says = CONFIG_HARMS[harm]
    change_config(folder, part, **changes)
    with pytest.raises(InputError, match=says) as caught:
        load_clip_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", WEIGHT_HARMS)
def test_weights_that_do_not_fit(make, harm):
    folder, _ = make()
    change, says = WEIGHT_HARMS[harm]
    change_weights(folder, change)
    supported = "" if harm == "one channel" else ".*支持：timm 的 ViT"
    with pytest.raises(InputError, match=says + supported) as caught:
        load_clip_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_weights_alone_say_too_little(make):
    folder, _ = make()
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match="没有 open_clip_config.json.*model_configs"):
        load_clip_checkpoint(folder / "open_clip_pytorch_model.bin")


def test_a_causal_transformer_reads_the_end_of_a_text(make):
    folder, _ = make("siglip", "siglip")
    change_config(folder, "text_cfg", pool_type="argmax")
    with pytest.raises(InputError, match="pool_type 是 'argmax'.*no_causal_mask 是 True"):
        load_clip_checkpoint(folder)


@pytest.mark.parametrize(("image", "text"), [("vit", "bert"), ("siglip", "siglip"), ("clip", "clip")])
def test_features_are_kept_between_runs(make, built, image, text):  # noqa: F811
    folder, _ = make(image, text)
    assert_kept(folder, built)
    assert_kept(folder / "open_clip_pytorch_model.bin", built)


def test_features_of_other_settings_are_computed_anew(make, built):  # noqa: F811
    folder, _ = make("vit", "bert")
    load_with_text_features(folder, TEXTS)
    change_config(folder, "text_cfg", hf_pooler_type="mean_pooler")
    mean_pooled = assert_kept(folder, built)
    change_config(folder, "text_cfg", hf_pooler_type="cls_last_hidden_state_pooler")
    assert not torch.equal(load_with_text_features(folder, TEXTS)[1], mean_pooled)


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_in_memory_it_is_as_loaded(make, image, text):
    folder, network = make(image, text)
    loaded = load_clip_checkpoint(folder)
    prepare = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=SIDE, **PIXELS), False)
    options = {"text_features": embed_texts(loaded, TEXTS), "target_text_idx": 1, "use_cuda": False}
    one = explain(network, gradient_picture(), TEXTS, processor=prepare, **options)
    other = explain(loaded, gradient_picture(), TEXTS, **options)
    assert other.maps.any() and one.source == other.source and one.independent == other.independent
    np.testing.assert_allclose(one.maps, other.maps, rtol=0, atol=1e-5 * abs(other.maps).max())
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-6)
