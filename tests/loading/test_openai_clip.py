"""OpenAI's archives and the state dicts of open_clip and Chinese-CLIP, against plain re-implementations.

`OpenAIClip` is the forward of clip/model.py of openai/CLIP, written down once more under its parameter names; where
open_clip is installed its own model is compared with as well.
"""

import gzip
import importlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY_BERT, gradient_picture, load_with_text_features, tiny_clip
from tiny_pretrained import CLIP_MERGES, TEXTS, Payload, make_network, randomise, write_clip_bpe
from torch import nn
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM
from models.errors import InputError, InputWarning
from models.loading.load import embed_texts, load_clip_checkpoint
from models.loading.processors import CLIP_MEAN, CLIP_STD
from models.towers.tokenizers import BPE_FILE, find_clip_tokenizer
from models.weights.archives import is_torchscript
from models.weights.files import read_torch_file
from models.weights.openai_names import LONG_FROM, LONG_POSITIONS, translate
from models.weights.plain import Name

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs", "ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
CONTEXT, WIDTH, EMBED = 16, 64, 24

# -- the originals ----------------------------------------------------------------------------


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, activation, mask=None):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", activation()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.mask = mask

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x):  # (B, N, D), which the blocks take as (N, B, D)
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class Vit(nn.Module):
    def __init__(self, activation, patch=8, side=32, width=WIDTH, heads=1):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, EMBED))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(*(Block(width, heads, activation) for _ in range(3)))

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)
        self.relu, self.downsample = nn.ReLU(), nn.Identity()
        if stride > 1 or inplanes != planes * 4:
            down = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(inplanes, planes * 4, 1, bias=False))]
            self.downsample = nn.Sequential(OrderedDict([*down, ("1", nn.BatchNorm2d(planes * 4))]))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.avgpool(self.relu(self.bn2(self.conv2(out))))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class AttentionPool2d(nn.Module):
    def __init__(self, side, width, heads):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, EMBED)
        self.num_heads = heads

    def forward(self, x, positions=None):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        x = x + (self.positional_embedding if positions is None else positions)[:, None]
        weights = {f"{name}_proj_weight": getattr(self, f"{name}_proj").weight for name in "qkv"}
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        return F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.num_heads, None, bias, None, None, False, 0.0, self.c_proj.weight,
            self.c_proj.bias, training=False, need_weights=False, use_separate_proj_weight=True, **weights,
        )[0][0]  # fmt: skip


class ModifiedResNet(nn.Module):
    def __init__(self, side=64, width=16, layers=(1, 2, 1, 1)):
        super().__init__()
        for n, (inplanes, planes, stride) in enumerate(((3, 8, 2), (8, 8, 1), (8, width, 1)), 1):
            setattr(self, f"conv{n}", nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False))
            setattr(self, f"bn{n}", nn.BatchNorm2d(planes))
        inplanes = width
        for n, blocks in enumerate(layers):
            members = []
            for block in range(blocks):
                members.append(Bottleneck(inplanes, width * 2**n, 2 if n and not block else 1))
                inplanes = width * 2**n * 4
            setattr(self, f"layer{n + 1}", nn.Sequential(*members))
        self.attnpool = AttentionPool2d(side // 32, width * 32, width * 32 // 64)
        self.relu, self.avgpool = nn.ReLU(), nn.AvgPool2d(2)

    def trunk(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu(self.bn3(self.conv3(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.attnpool(self.trunk(x))


class OpenAIClip(nn.Module):
    def __init__(self, visual, vocabulary, activation=QuickGELU):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.text_projection = nn.Parameter(torch.zeros(WIDTH, EMBED))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.visual = visual
        mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu_(1)
        self.transformer = Blocks(*(Block(WIDTH, 1, activation, mask) for _ in range(2)))
        self.token_embedding, self.ln_final = nn.Embedding(vocabulary, WIDTH), nn.LayerNorm(WIDTH)

    def encode_text(self, ids):
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection

    def forward(self, images, ids):
        images, texts = F.normalize(self.visual(images), dim=-1), F.normalize(self.encode_text(ids), dim=-1)
        return self.logit_scale.exp() * images @ texts.T


@pytest.fixture
def vocabulary(tmp_path):
    """CLIP's tokenizer beside the file that a test writes; the number of its tokens."""
    return write_clip_bpe(tmp_path)


KINDS = {"vit": (Vit, 32), "resnet": (ModifiedResNet, 64)}


def make_original(kind, vocabulary, activation=QuickGELU, seed=0, **options):
    visual = KINDS[kind][0](**({"activation": activation} if kind == "vit" else {}), **options)
    torch.manual_seed(seed)
    return randomise(OpenAIClip(visual, vocabulary, activation), seed)


@pytest.fixture(params=KINDS)
def original(request, vocabulary):
    return make_original(request.param, vocabulary)


def full_length(model, texts=TEXTS):
    """Token ids as OpenAI's tokenizer gives them: filled up with zeros."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        tokens = model.text_encoder.tokenize(texts)
    ids = tokens["input_ids"] * tokens["attention_mask"]
    return F.pad(ids, (0, CONTEXT - ids.shape[1]))


def assert_like(model, original, atol=1e-5):
    images = model.preprocessing(gradient_picture())
    with torch.no_grad():
        expected = original(images, full_length(model))
        cosine = model.image_encoder(images) @ model.text_encoder(texts=TEXTS).T
        own, theirs = model.image_encoder(images), F.normalize(original.visual(images), dim=-1)
    torch.testing.assert_close(own, theirs, rtol=0, atol=atol)
    torch.testing.assert_close(cosine * original.logit_scale.exp(), expected, rtol=0, atol=10 * atol)
    torch.testing.assert_close(model.probabilities(cosine), expected.softmax(-1), rtol=0, atol=atol)


# -- every form of a file ---------------------------------------------------------------------

FORMS = {  # name of the file -> what is saved in it
    "bare.pt": lambda w: w,
    "state_dict.bin": lambda w: {"epoch": 1, "state_dict": w},
    "权重 1.pth": lambda w: {"model_state_dict": w, "optimizer": {"state": {}}},
    "module.ckpt": lambda w: {"state_dict": {f"module.{key}": tensor for key, tensor in w.items()}},
    "constants": lambda w: {**w, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(9)},
    "text.pt": lambda w: {key if key.startswith(("visual.", "logit_scale")) else f"text.{key}": w[key] for key in w},
    "parameters.pt": lambda w: {k: nn.Parameter(t) if t.is_floating_point() else t for k, t in w.items()},
    "half.pt": lambda w: {key: tensor.half() for key, tensor in w.items()},
    "a.safetensors": lambda w: {key: tensor.contiguous() for key, tensor in w.items()},
}
FORMS_OF_KINDS = [("vit", form) for form in FORMS] + [("resnet", "bare.pt"), ("resnet", "half.pt")]


@pytest.mark.parametrize("kind, form", FORMS_OF_KINDS)
def test_every_form_of_a_state_dict(vocabulary, tmp_path, kind, form):
    original = make_original(kind, vocabulary)
    save = save_file if form.endswith("safetensors") else torch.save
    save(FORMS[form](original.state_dict()), tmp_path / form)
    model = load_clip_checkpoint(tmp_path / form)
    assert_like(model, original.half().float() if form == "half.pt" else original)
    side = KINDS[kind][1]
    assert (model.image_encoder_name, model.img_size) == (f"clip-{kind}", side)
    assert model.preprocessing[:5] == (side, (side, side), CLIP_MEAN, CLIP_STD, 3)
    tower = model.image_encoder
    if kind == "resnet":
        assert tower.token_grid(64, 64) is None and tower.transformer() is None and tower.patch_size is None
    assert not any(module.training for module in model.modules())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_features_beside_a_model_without_its_text_tower(original, write_checkpoint):
    path = write_checkpoint(original.state_dict())
    model, features = load_with_text_features(path, TEXTS)
    assert model.text_encoder is None
    torch.testing.assert_close(features, embed_texts(load_clip_checkpoint(path), TEXTS), rtol=0, atol=1e-6)
    assert load_clip_checkpoint(path, text_tower=False).text_encoder is None


# -- TorchScript archives ---------------------------------------------------------------------


@pytest.fixture
def no_jit(monkeypatch):
    """torch.jit.load, which runs what a file says, must not be called."""

    def refused(*args, **kwargs):
        raise AssertionError("torch.jit.load was called")

    monkeypatch.setattr(torch.jit, "load", refused)


def trace(original, path, half=False):
    side = 32 if isinstance(original.visual, Vit) else 64
    traced = torch.jit.trace(original, (torch.zeros(1, 3, side, side), torch.zeros(1, CONTEXT, dtype=torch.long)))
    (traced.half() if half else traced).save(str(path))  # the weights are the original's, which becomes half as well
    return traced.state_dict()


@pytest.mark.parametrize("kind, half", [("vit", False), ("vit", True), ("resnet", True)])
def test_a_traced_archive(vocabulary, tmp_path, no_jit, kind, half):
    original = make_original(kind, vocabulary)
    path = tmp_path / "ViT-B-32.pt"
    state = trace(original, path, half)
    assert is_torchscript(path)
    tensors = read_torch_file(path)["state_dict"]
    assert tensors.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=0, msg=key)
        assert tensors[key].dtype == tensor.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "文本")
        assert_like(load_clip_checkpoint(path), original.half().float() if half else original)


class Scripted(nn.Module):
    """Lists, numbers, texts, tuples and shared tensors among the attributes: what a pickle of torch.jit may hold."""

    sizes: list[int]

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.sizes, self.ratio, self.name, self.pair = [1, 2], 0.5, "名称", (1, "a")
        self.register_buffer("shared", inner.weight.data.T)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("counter", torch.tensor(7))

    def forward(self, x):
        return self.inner(x) * self.ratio + sum(self.sizes)


def test_a_scripted_archive(tmp_path, no_jit):
    module = Scripted(nn.Linear(3, 4))
    torch.jit.script(module).save(str(tmp_path / "a.pt"))
    tensors = read_torch_file(tmp_path / "a.pt")["state_dict"]
    assert tensors.keys() == module.state_dict().keys()
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(tensors[key], tensor, rtol=0, atol=0)


def test_other_checkpoints_are_no_archives(original, write_checkpoint, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    assert not is_torchscript(write_checkpoint(original.state_dict())) and not is_torchscript(tmp_path / "a.txt")


DANGERS = {
    "system": lambda path: pickle.dumps(Payload(os.system, f"echo > {path}"), 2),
    "exec": lambda path: pickle.dumps(Payload(exec, f"open({str(path)!r}, 'w')"), 2),
}


def write_archive(path, pickled, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "constants.pkl": b"\x80\x02).", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("name", DANGERS)
def test_a_malicious_archive_is_refused_by_name(tmp_path, no_jit, name):
    path = write_archive(tmp_path / "a.pt", DANGERS[name](tmp_path / "executed"))
    with pytest.raises(InputError, match=rf"a.pt.*\.{name}.*拒绝") as caught:
        load_clip_checkpoint(path)
    assert not (tmp_path / "executed").exists() and "\n" not in str(caught.value)


def persistent(identity) -> bytes:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.persistent_id = lambda value: identity if value is Ellipsis else None
    pickler.dump(Ellipsis)
    return stream.getvalue()


BROKEN = (b"", b"\x80\x02", b"garbage", b"N.", b"c__torch__\nA\n)R}b.", persistent(("file", "/a")), persistent("x"))
INERT = (b"c__builtin__\ngetattr\n.", b"ctorch.jit\nload\n(X\x01\x00\x00\x00atR.", b"c__torch\nOwn\n)R.")
INERT += (b"ctorch.storage\n_load_from_bytes\n(C\x01atR.", b"ctorch\nTensor\n.")


@pytest.mark.parametrize("pickled", [*BROKEN, *INERT])
def test_an_archive_without_weights(tmp_path, no_jit, pickled):
    with pytest.raises(InputError, match="a.pt|没有 image_encoder"):
        load_clip_checkpoint(write_archive(tmp_path / "a.pt", pickled))


def test_a_name_in_an_archive_cannot_be_changed(tmp_path):
    """A BUILD on a function or on a class leaves nothing behind."""
    for start in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"c__torch__\nA\n"):
        pickled = b"\x80\x02" + start + b"}X\x01\x00\x00\x00aK\x01sb."
        assert not read_torch_file(write_archive(tmp_path / "a.pt", pickled))["state_dict"]
    assert not hasattr(torch._utils._rebuild_tensor_v2, "a") and not hasattr(Name, "a")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_archive_cut_short(vocabulary, tmp_path, share):
    path = tmp_path / "a.pt"
    trace(make_original("vit", vocabulary), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="a.pt.*不完整"):
        load_clip_checkpoint(path)


# -- what no shape shows ----------------------------------------------------------------------


def write_open_clip_config(folder, preprocess=None, vision=None, text=None, **model):
    content = {"model_cfg": {"vision_cfg": vision or {}, "text_cfg": text or {}, **model}}
    (folder / "open_clip_config.json").write_text(json.dumps({**content, "preprocess_cfg": preprocess or {}}))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("source", ["a config beside the file", "the name of a run of open_clip"])
def test_the_activation(vocabulary, write_checkpoint, tmp_path, source, quick):
    right, wrong = (QuickGELU, nn.GELU) if quick else (nn.GELU, QuickGELU)
    content = {"state_dict": make_original("vit", vocabulary, right).state_dict()}
    if "config" in source:
        write_open_clip_config(tmp_path, quick_gelu=quick)
    else:
        content["name"] = f"2026_01_02-03_04_05-model_ViT-B-32{'-quickgelu' * quick}-lr_0.0005-b_64-j_4-p_amp"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "文本")
        model = load_clip_checkpoint(write_checkpoint(content))
    assert_like(model, make_original("vit", vocabulary, right))
    with pytest.raises(AssertionError):
        assert_like(model, make_original("vit", vocabulary, wrong))


def test_an_unknown_activation_is_said(original, write_checkpoint):
    """On the terminal and in the tables, with what is said of each image."""
    (caution,) = load_clip_checkpoint(write_checkpoint(original.state_dict())).cautions
    assert re.search("checkpoint.pth.*QuickGELU.*open_clip_config.json", str(caution))


def test_an_archive_takes_no_config_of_another_model(vocabulary, tmp_path):
    original = make_original("vit", vocabulary)
    write_open_clip_config(tmp_path, quick_gelu=False)
    trace(original, tmp_path / "a.pt")
    assert_like(load_clip_checkpoint(tmp_path / "a.pt"), original)


def test_heads_of_another_width(vocabulary, write_checkpoint, tmp_path):
    original = make_original("vit", vocabulary, heads=4)
    write_open_clip_config(tmp_path, quick_gelu=True, vision={"head_width": 16, "width": 64, "layers": 3})
    model = load_clip_checkpoint(write_checkpoint(original.state_dict()))
    assert_like(model, original)
    assert model.image_encoder.transformer().num_heads == 4


def test_open_clips_own_preprocessing(vocabulary, write_checkpoint, tmp_path):
    path = write_checkpoint(make_original("vit", vocabulary).state_dict())
    write_open_clip_config(tmp_path, {"mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear"})
    assert load_clip_checkpoint(path).preprocessing[:5] == (32, (32, 32), (0.5,) * 3, (0.4,) * 3, 2)
    write_open_clip_config(tmp_path, {"resize_mode": "squash"})
    assert load_clip_checkpoint(path).preprocessing[:2] == ((32, 32), None)
    assert load_clip_checkpoint(path, img_size=48).preprocessing[:2] == ((48, 48), None)
    write_open_clip_config(tmp_path, {"resize_mode": "longest"})
    with pytest.raises(InputError, match="longest.*squash"):
        load_clip_checkpoint(path)


@pytest.mark.parametrize("strange", [{"vision": {"pool_type": "avg"}}, {"text": {"no_causal_mask": True}}])
def test_what_open_clip_can_and_we_cannot(vocabulary, write_checkpoint, tmp_path, strange):
    write_open_clip_config(tmp_path, **strange)
    with pytest.raises(InputError, match="pool_type|no_causal_mask"):
        load_clip_checkpoint(write_checkpoint(make_original("vit", vocabulary).state_dict()))


def test_a_folder_of_open_clip(original, write_checkpoint, tmp_path):
    write_checkpoint(original.state_dict(), "open_clip_pytorch_model.bin")
    write_open_clip_config(tmp_path, quick_gelu=True)
    assert_like(load_clip_checkpoint(tmp_path), original)


def test_other_images_and_patches(vocabulary, write_checkpoint):
    original = make_original("vit", vocabulary, patch=7, side=35)
    model = load_clip_checkpoint(write_checkpoint(original.state_dict()))
    assert model.img_size == 35 and model.image_encoder.token_grid(35, 35) == (1, 5, 5)
    assert_like(model, original)


def test_a_resnet_at_another_size(vocabulary, write_checkpoint):
    original = make_original("resnet", vocabulary)
    model = load_clip_checkpoint(write_checkpoint(original.state_dict()), img_size=96)
    images = model.preprocessing(gradient_picture())
    assert images.shape[-2:] == (96, 96)
    codes = original.visual.attnpool.positional_embedding
    grid = codes[1:].reshape(2, 2, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(9, -1)
    with torch.no_grad():
        expected = original.visual.attnpool(original.visual.trunk(images), torch.cat([codes[:1], grid]))
        own = model.image_encoder.embed(images)
    torch.testing.assert_close(F.normalize(own), F.normalize(expected), rtol=0, atol=1e-5)


def test_texts_are_cleaned_as_openais_own_tokenizer_does(vocabulary, write_checkpoint):
    """basic_clean and whitespace_clean of simple_tokenizer.py, with what ftfy does to single characters."""
    model = load_clip_checkpoint(write_checkpoint(make_original("vit", vocabulary).state_dict()))
    tokens = model.text_encoder.tokenize(["Ｔｈｅ  “cat”，&amp;", 'the "cat",&'])["input_ids"]
    assert torch.equal(*tokens) and len(set(tokens[0].tolist())) > 5


# -- heatmaps ---------------------------------------------------------------------------------


SAME_LAYER = {
    "resnet": ("visual.layer4.0", "layer4.0"),
    "vit": ("visual.transformer.resblocks.2.ln_1", "encoder.layers.2.layer_norm1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_heatmap_is_that_of_a_plain_backward(vocabulary, write_checkpoint, kind):
    original = make_original(kind, vocabulary)
    model = load_clip_checkpoint(write_checkpoint(original.state_dict()))
    paths = SAME_LAYER[kind]
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    original.get_submodule(paths[0]).register_forward_hook(keep)
    images, ids = model.preprocessing(gradient_picture()), full_length(model)
    (original(images, ids)[0, 1] / original.logit_scale.exp()).backward()
    A, g = kept[0].detach(), kept[0].grad
    if kind == "vit":  # (1 + 16, B, C)
        A, g = (x[1:, 0].T.reshape(1, -1, 4, 4) for x in (A, g))
    expected = torch.einsum("bc,bchw->bhw", g.mean((2, 3)), A)[0]
    layer = model.image_encoder.backbone.get_submodule(paths[1])
    cam = CLIPGradCAM(model, layer, use_cuda=False)
    maps = cam.text_maps(images, embed_texts(model, TEXTS), 1).maps[0, 0]
    # in float64 the two are one; in float32 the random ResNet's gradients cancel to a thousandth
    atol = (1e-3 if kind == "resnet" else 1e-5) * expected.abs().max().item()
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=atol)
    assert expected.std() > 1e-5


# -- what cannot be used ----------------------------------------------------------------------

HARMS = {
    "a weight missing": (lambda w: w.pop("visual.ln_post.weight"), "缺少 1 个.*vision_model.post_layernorm.weight"),
    "a weight too many": (
        lambda w: w.update({"visual.ls_1.gamma": torch.zeros(3)}),
        "有 1 个权重.*没有位置.*ls_1.gamma",
    ),
    "another shape": (lambda w: w.update({"ln_final.bias": torch.zeros(3)}), "有 1 个权重的形状.*final_layer_norm"),
    "no text tower": (lambda w: w.pop("token_embedding.weight"), "没有 token_embedding.weight"),
    "no blocks": (lambda w: [w.pop(k) for k in [*w] if "visual.tr" in k], "没有 visual.transformer.resblocks.0"),
    "no projection": (lambda w: w.pop("text_projection"), "没有 text_projection"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_weights_that_do_not_fit(vocabulary, write_checkpoint, harm):
    weights = dict(make_original("vit", vocabulary).state_dict())
    HARMS[harm][0](weights)
    with pytest.raises(InputError, match=HARMS[harm][1] + ".*支持：OpenAI"):
        load_clip_checkpoint(write_checkpoint(weights))


# -- Chinese-CLIP -----------------------------------------------------------------------------


def test_chinese_clips_original_checkpoint(write_checkpoint):
    """The library's ChineseCLIPModel under the names of cn_clip, with the vocabulary that ships."""
    vision = {"hidden_act": "quick_gelu", "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    network = make_network("chinese_clip", 21128, **vision)
    text = {**TINY_BERT, "vocab_size": 21128}
    torch.manual_seed(0)
    from transformers import ChineseCLIPTextConfig, ChineseCLIPTextModel

    network.text_model = ChineseCLIPTextModel(ChineseCLIPTextConfig(**text), add_pooling_layer=False).eval()
    network.text_projection = nn.Linear(64, 28, bias=False)
    original = into_openai_names(network)
    wrapped = {"epoch": 1, "name": "run", "state_dict": {f"module.{key}": tensor for key, tensor in original.items()}}
    model = load_clip_checkpoint(write_checkpoint(wrapped))
    flash = load_clip_checkpoint(write_checkpoint(with_flash_attention(original), "flash.pt"))
    assert_same_state(flash, model)
    assert model.preprocessing[:5] == ((32, 32), None, CLIP_MEAN, CLIP_STD, 3)
    images, texts = model.preprocessing(gradient_picture()), ["正常假体", "感染"]
    tokens = model.text_encoder.tokenize(texts)
    assert tokens["input_ids"][0].tolist()[:3] == [101, 3633, 2382]  # [CLS] 正 常
    with torch.no_grad():
        expected = network(pixel_values=images, **tokens)
        torch.testing.assert_close(model.image_encoder(images), expected.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.text_encoder(texts=texts), expected.text_embeds, rtol=0, atol=1e-5)


def with_flash_attention(weights: dict) -> dict:
    """cn_clip's weights as `convert_state_dict` of cn_clip/clip/model.py names them for flash attention."""
    renamed = {key.replace("attn.in_proj_", "attn.Wqkv."): tensor for key, tensor in weights.items()}
    for query in [key for key in renamed if ".attention.self.query." in key]:
        names = [query.replace("query", letter) for letter in ("query", "key", "value")]
        renamed[query.replace("query", "Wqkv")] = torch.cat([renamed.pop(name) for name in names])
        dense = query.replace("self.query", "output.dense")
        renamed[query.replace("query", "out_proj")] = renamed.pop(dense)
    assert sum("Wqkv" in key for key in renamed) == 2 * (3 + 1)  # three blocks of the one tower, one of the other
    return renamed


def assert_same_state(one, other) -> None:
    """Two models have the same weights, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


PARTS = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn", "self_attn"))
PARTS += (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))


def into_openai_names(network) -> dict:
    """The way back from transformers' names to OpenAI's (and cn_clip's), of a vision transformer."""
    back, weights = {}, network.state_dict()
    for key, tensor in weights.items():
        name = key.replace("vision_model.encoder.layers.", "visual.transformer.resblocks.")
        name = name.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("text_model.", "bert.")
        for theirs, ours in PARTS:
            name = name.replace(f".{ours}.", f".{theirs}.")
        for part in ("weight", "bias"):
            if name.endswith(f"attn.q_proj.{part}"):
                thirds = [weights[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                name, tensor = name.replace(f"q_proj.{part}", f"in_proj_{part}"), torch.cat(thirds)
        name = name.replace("vision_model.embeddings.class_embedding", "visual.class_embedding")
        name = name.replace("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding")
        name = name.replace("vision_model.embeddings.patch_embedding", "visual.conv1")
        name = name.replace("vision_model.pre_layrnorm", "visual.ln_pre")
        name = name.replace("vision_model.post_layernorm", "visual.ln_post")
        if name in ("visual_projection.weight", "text_projection.weight"):
            name, tensor = {"v": "visual.proj", "t": "text_projection"}[name[0]], tensor.T
        if not (".k_proj." in name or ".v_proj." in name):
            back[name] = tensor
    return back


# -- Long-CLIP --------------------------------------------------------------------------------


def with_long_positions(original, rows):
    """An OpenAIClip with two tables of `rows` position codes, added as model/model_longclip.py of Long-CLIP does."""
    generator = torch.Generator().manual_seed(5)
    tables = [nn.Parameter(torch.randn(rows, WIDTH, generator=generator)) for _ in range(2)]
    original.positional_embedding, original.positional_embedding_res = tables
    first = (torch.arange(rows) < LONG_FROM).float()[:, None]
    blocks = original.transformer
    mask = torch.full((rows, rows), float("-inf")).triu_(1)
    for block in blocks.resblocks:
        block.mask = mask

    def encode_text(ids):
        x = original.token_embedding(ids) + tables[0] * first + tables[1] * (1 - first)
        return original.ln_final(blocks(x))[torch.arange(len(ids)), ids.argmax(-1)] @ original.text_projection

    original.encode_text = encode_text
    return original


LONG = ["a cat " * 60, "cat " * 230, "the dog"]


def test_long_clips_two_tables_of_positions(vocabulary, write_checkpoint):
    original = with_long_positions(make_original("vit", vocabulary), 248)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its activation is known, and no text of up to 248 tokens is cut
        model = load_clip_checkpoint(write_checkpoint(original.state_dict()))
        tokens = model.text_encoder.tokenize(LONG)
        own = model.text_encoder(texts=LONG)
    assert model.text_encoder.max_tokens == 248 and 77 < tokens["input_ids"].shape[1] <= 248
    ids = tokens["input_ids"] * tokens["attention_mask"]
    with torch.no_grad():
        theirs = F.normalize(original.encode_text(F.pad(ids, (0, 248 - ids.shape[1]))), dim=-1)
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    with pytest.warns(InputWarning, match="248"):
        model.text_encoder(texts=["cat " * 250])


def test_a_longer_table_of_positions_is_a_longer_text(vocabulary, write_checkpoint):
    original = make_original("vit", vocabulary)
    original.positional_embedding.data = torch.randn(100, WIDTH)
    assert load_clip_checkpoint(write_checkpoint(original.state_dict())).text_encoder.max_tokens == 100


def test_long_clips_tables_must_agree(vocabulary, write_checkpoint):
    weights = {**make_original("vit", vocabulary).state_dict(), LONG_POSITIONS: torch.zeros(248, WIDTH)}
    with pytest.raises(InputError, match=r"positional_embedding_res 的形状不同：\[16, 64\]、\[248, 64\]"):
        load_clip_checkpoint(write_checkpoint(weights))


# -- CLIP's tokenizer -------------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither a package nor a cache has CLIP's vocabulary."""
    monkeypatch.setattr("models.towers.tokenizers.BPE_PACKAGES", ())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_tokenizer_the_error_says_what_to_put_where(nowhere, write_checkpoint, tmp_path):
    path = write_checkpoint(make_original("vit", 600).state_dict(), "ViT-B-32.pt")
    with pytest.raises(InputError, match=r"vocab.json 和 merges.txt.*bpe_simple_vocab.*--text-encoder") as caught:
        load_clip_checkpoint(path)
    assert str(tmp_path) in str(caught.value)
    assert load_clip_checkpoint(path, text_tower=False).img_size == 32


def test_where_the_tokenizer_is_looked_for(nowhere, monkeypatch, tmp_path):
    given, beside = tmp_path / "given", tmp_path / "beside"
    cached = tmp_path / "hub" / "models--openai--clip-vit-base-patch32"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    for folder in (cached / "snapshots" / ("0" * 40), beside, given):  # each found before those made earlier
        write_clip_bpe(folder)
        words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        words[str(folder)] = len(words)
        (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
        assert str(folder) in find_clip_tokenizer(given, beside)().get_vocab()


def test_openais_own_list_of_merges_gives_the_same_tokens(nowhere, tmp_path):
    write_clip_bpe(tmp_path / "files")
    (tmp_path / "list").mkdir()
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *CLIP_MERGES]
    (tmp_path / "list" / BPE_FILE).write_bytes(gzip.compress("\n".join(lines).encode()))
    files, merges = (find_clip_tokenizer(tmp_path / name)() for name in ("files", "list"))
    assert files.get_vocab() == merges.get_vocab()
    assert files(TEXTS)["input_ids"] == merges(TEXTS)["input_ids"]
    words = ["<|startoftext|>", "the</w>", "cat</w>", "<|endoftext|>"]
    assert files("the cat").input_ids == files.convert_tokens_to_ids(words)


def test_the_list_in_an_installed_package():
    """Where openai/CLIP or open_clip is installed; the ids are those of OpenAI's own tests."""
    if not any(importlib.util.find_spec(name) for name in ("clip", "open_clip")):
        pytest.skip("neither openai/CLIP nor open_clip is installed")
    tokenizer = find_clip_tokenizer(None)()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


# -- CLIP's text tower in a checkpoint of our own ---------------------------------------------


def own_checkpoint(backbone: dict, projection, config=None):
    own = {key: tensor for key, tensor in tiny_clip().state_dict().items() if not key.startswith("text_encoder.")}
    own.update({f"text_encoder.backbone.{key}": tensor for key, tensor in backbone.items()})
    own.update({f"text_encoder.projection.{key}": tensor for key, tensor in projection.state_dict().items()})
    return {"model_state_dict": own, "config": config or {}}


@pytest.fixture
def text_tower(vocabulary):
    """(OpenAI's model, our projection behind it, OpenAI's own projection included)."""
    original = make_original("vit", vocabulary)
    torch.manual_seed(3)
    return original, nn.Linear(EMBED, 32)


NAMES = {  # how CLIP's text tower is named, what the config calls it
    "OpenAI": (lambda text, whole: text, "clip:ViT-B/32"),
    "OpenAI, whole": (lambda text, whole: whole, None),
    "transformers 5": (
        lambda text, whole: {key.removeprefix("text_model."): t for key, t in translate(text).items()},
        "clip:ViT-L/14",
    ),
    "transformers 4": (lambda text, whole: translate(text), None),
}


def of_the_text(original) -> dict:
    return {key: t for key, t in original.state_dict().items() if not key.startswith(("visual.", "logit_scale"))}


@pytest.mark.parametrize("names", NAMES)
def test_clips_text_tower_in_our_own_format(text_tower, write_checkpoint, tmp_path, user_cache, names):
    original, projection = text_tower
    rename, name = NAMES[names]
    backbone = rename(of_the_text(original), original.state_dict())
    path = write_checkpoint(own_checkpoint(backbone, projection, {"text_encoder": name} if name else {}))
    model, features = load_with_text_features(path, TEXTS, text_encoder=str(tmp_path))
    assert features.shape == (4, 32) and model.text_encoder is None
    (tmp_path / "tokenizer.json").write_text("{}")  # which a BERT would be read by
    assert torch.equal(load_with_text_features(path, TEXTS, text_encoder=str(tmp_path))[1], features)
    assert len(list(user_cache.glob("*"))) == 1
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges.replace("0.2", "0.3"), encoding="utf-8")  # the tokenizer's very files
    assert torch.equal(load_with_text_features(path, TEXTS, text_encoder=str(tmp_path))[1], features)
    assert len(list(user_cache.glob("*"))) == 2
    whole = load_clip_checkpoint(path, text_encoder=str(tmp_path))
    with torch.no_grad():
        expected = F.normalize(projection(original.encode_text(full_length(whole))), dim=-1)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embed_texts(whole, TEXTS), expected, rtol=0, atol=1e-5)
    assert not any(tensor.is_meta for tensor in (*whole.parameters(), *whole.buffers()))


def test_without_clips_own_projection_ours_reads_the_text_model(text_tower, write_checkpoint, tmp_path):
    original, _ = text_tower
    text = of_the_text(original)
    del text["text_projection"]
    torch.manual_seed(4)
    path = write_checkpoint(own_checkpoint(text, projection := nn.Linear(WIDTH, 32), {"text_encoder": "clip:ViT-B/32"}))
    model = load_clip_checkpoint(path, text_encoder=str(tmp_path))
    original.text_projection.data = torch.eye(WIDTH)
    with torch.no_grad():
        expected = F.normalize(projection(original.encode_text(full_length(model))), dim=-1)
    torch.testing.assert_close(embed_texts(model, TEXTS), expected, rtol=0, atol=1e-5)


def test_clips_text_tower_without_a_tokenizer(text_tower, write_checkpoint, nowhere):
    original, projection = text_tower
    path = write_checkpoint(own_checkpoint(original.state_dict(), projection, {"text_encoder": "clip:ViT-B/32"}))
    with pytest.raises(InputError, match="vocab.json 和 merges.txt.*--text-encoder"):
        load_with_text_features(path, TEXTS)


# -- open_clip itself -------------------------------------------------------------------------


@pytest.mark.parametrize("kind, quick, bias", [("vit", True, None), ("vit", False, -3.0), ("resnet", True, -3.0)])
def test_as_open_clip_computes_it(vocabulary, write_checkpoint, tmp_path, kind, quick, bias):
    """With a bias, as for SigLIP's loss, every text has a probability of its own."""
    pytest.importorskip("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=64, patch_size=8, image_size=32)
    if kind == "resnet":
        vision = CLIPVisionCfg(layers=(1, 2, 1, 1), width=16, image_size=64)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=vocabulary, width=64, heads=1, layers=2)
    theirs = randomise(CLIP(EMBED, vision, text, quick_gelu=quick, init_logit_bias=bias))
    write_open_clip_config(tmp_path, quick_gelu=quick, init_logit_bias=bias)
    model = load_clip_checkpoint(write_checkpoint(theirs.state_dict()))
    images, ids = model.preprocessing(gradient_picture()), full_length(model)
    with torch.no_grad():
        for own, expected in (
            (model.image_encoder(images), theirs.encode_image(images, normalize=True)),
            (model.text_encoder(texts=TEXTS), theirs.encode_text(ids, normalize=True)),
        ):
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
        logits = theirs.get_logits(images, ids)[0]
        expected = logits.softmax(-1) if bias is None else logits.sigmoid()
        torch.testing.assert_close(model.predict(images, TEXTS)[1], expected, rtol=0, atol=1e-5)
    assert model.independent_probabilities == (bias is not None)


def test_a_bias_that_the_config_promises(vocabulary, write_checkpoint, tmp_path):
    write_open_clip_config(tmp_path, quick_gelu=True, init_logit_bias=-10)
    with pytest.raises(InputError, match="没有 logit_bias.*open_clip_config.json"):
        load_clip_checkpoint(write_checkpoint(make_original("vit", vocabulary).state_dict()))


def test_of_several_weights_the_models_own_are_used_and_said(original, write_checkpoint):
    other = {key: tensor + 1 for key, tensor in original.state_dict().items()}
    path = write_checkpoint({"ema": other, "net": {f"clip.{key}": t for key, t in original.state_dict().items()}})
    with pytest.warns(InputWarning, match="采用 net.clip 的，没有采用 ema 的"):
        assert_like(load_clip_checkpoint(path), original)
