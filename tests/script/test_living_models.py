"""CLIPs of transformers, open_clip and openai/CLIP that are in memory. The oracle: the same model, saved and loaded."""

import copy
import functools
import gzip
import json
import random
import threading

import numpy as np
import open_clip
import peft
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tiny import gradient_picture, tiny_clip
from tiny_pretrained import CLIP_MERGES, FAMILIES, TEXTS, library_outputs, randomise, save_pretrained
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from clip_gradcam_visualization import CLIPGradCAM, explain, living_clip, load_clip_checkpoint, visualize_clip_gradcam
from models.errors import InputError, InputWarning
from models.explain.defaults import get_target_layer_for_clip
from models.towers.tokenizers import BPE_FILE

pytestmark = pytest.mark.filterwarnings("ignore:文本“two dogs", "ignore:.*torch.jit")
PIXELS = gradient_picture()


def processor_of(folder):
    """(image processor, tokenizer) of a folder, as the library loads them."""
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return images, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def published(request, tmp_path_factory):
    """(folder, network, processor) of one family of transformers after the other."""
    folder, network = save_pretrained(tmp_path_factory.mktemp("living") / request.param, request.param)
    return folder, network, processor_of(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(folder, network, processor) of transformers' CLIP; a test that changes the network takes a copy."""
    folder, network = save_pretrained(tmp_path_factory.mktemp("living") / "one", "clip")
    return folder, network, processor_of(folder)


TEXT_SIZES = {"context_length": 16, "vocab_size": 600, "width": 64, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}
# of open_clip: class, image tower, quick_gelu
KINDS = {
    "vit": (open_clip.CLIP, VIT, False),
    "quick vit": (open_clip.model.CustomTextCLIP, VIT, True),
    "resnet": (open_clip.CLIP, RESNET, False),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """open_clip's tokenizer over a few merges."""
    file = tmp_path_factory.mktemp("vocabulary") / BPE_FILE
    with gzip.open(file, "wt", encoding="utf-8") as packed:
        packed.write("\n".join(["#version", *CLIP_MERGES]))
    return open_clip.tokenizer.SimpleTokenizer(str(file), context_length=16)


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tokenizer, tmp_path_factory):
    """(folder, network, processor) of one kind of open_clip after the other; the folder has its weights."""
    return save_open_clip(tmp_path_factory.mktemp("opened"), request.param, tokenizer)


@pytest.fixture(scope="module")
def open_vit(tokenizer, tmp_path_factory):
    """(folder, network, processor) of open_clip's ViT; a test that changes the network takes a copy."""
    return save_open_clip(tmp_path_factory.mktemp("opened"), "vit", tokenizer)


def save_open_clip(folder, kind, tokenizer):
    build, vision, quick = KINDS[kind]
    sizes = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**TEXT_SIZES, "vocab_size": tokenizer.vocab_size}}
    network = randomise(build(**copy.deepcopy(sizes), quick_gelu=quick))
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    content = {"model_cfg": {**sizes, "quick_gelu": quick}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with gzip.open(folder / BPE_FILE, "wt", encoding="utf-8") as packed:
        packed.write("\n".join(["#version", *CLIP_MERGES]))
    return folder, network, (image_transform_v2(PreprocessCfg(size=vision["image_size"]), False), tokenizer)


def file_of(folder):
    """What load_clip_checkpoint is given."""
    file = folder / "open_clip_pytorch_model.bin"
    return file if file.is_file() else folder


def explained(model, **options):
    return explain(model, PIXELS, TEXTS, **{"target_text_idx": 1, **options})


def assert_same(one, other, tolerance=1e-6):
    """Two results are of one model: maps within a share of the maximum, probabilities, all that is said of both."""
    assert other.maps.any() and one.source == other.source
    np.testing.assert_allclose(one.maps, other.maps, rtol=0, atol=tolerance * np.abs(other.maps).max())
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=tolerance)
    assert one.region == other.region and one.independent == other.independent


def test_the_words_of_a_model_in_memory_are_those_of_the_same_model_loaded(clip):
    folder, network, processor = clip
    (ours,) = explained(load_clip_checkpoint(folder), words=True).words
    for model in (network, torch.nn.DataParallel(network)):
        (words,) = explained(model, processor=processor, words=True).words
        assert [word._replace(contribution=0) for word in words] == [word._replace(contribution=0) for word in ours]
        pairs = [(word.contribution, own.contribution) for word, own in zip(words, ours)]
        np.testing.assert_allclose(*zip(*pairs), atol=1e-6)


def test_words_need_what_weighs_them_in_memory_too(clip, open_vit):
    (_, network, (images, _)), (_, opened, processor) = clip, open_vit
    features = torch.randn(len(TEXTS), network.config.projection_dim)
    with pytest.raises(InputError, match="分词器"):
        explained(network, processor=images, text_features=features, words=True)
    with pytest.raises(InputError, match="open_clip 和 openai/CLIP 的对象用自己的；请保存模型"):
        explained(opened, processor=processor, words=True)


# -- the same as loaded -----------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "gradcam"])
def test_transformers_in_memory_is_as_loaded(published, method):
    folder, network, processor = published
    loaded = explained(load_clip_checkpoint(folder), method=method)
    assert_same(explained(network, processor=processor, method=method), loaded)


def test_open_clip_in_memory_is_as_loaded(opened):
    folder, network, processor = opened
    loaded = load_clip_checkpoint(file_of(folder))
    with torch.no_grad():
        features = loaded.text_encoder(TEXTS)
    for method in (None, "gradcam"):
        one = explained(network, processor=processor, method=method, text_features=features)
        assert_same(one, explained(loaded, method=method, text_features=features))
    assert_same(explained(network, processor=processor), explained(loaded), 1e-4)  # its own text tower rounds otherwise


def test_the_embeddings_are_the_librarys(published):
    folder, network, processor = published
    with torch.no_grad():
        expected = library_outputs(folder, network)
        model = living_clip(network, processor)
        images = F.normalize(model.image_encoder.embed(model.preprocessing(PIXELS)), dim=-1)
    torch.testing.assert_close(images, F.normalize(expected.image_embeds, dim=-1), rtol=0, atol=1e-6)
    texts = F.normalize(expected.text_embeds, dim=-1)
    torch.testing.assert_close(model.text_encoder(TEXTS).detach(), texts, rtol=0, atol=1e-6)


def test_the_embeddings_are_open_clips(opened):
    _, network, (prepare, tokenizer) = opened
    model = living_clip(network, (prepare, tokenizer))
    with torch.no_grad():
        images, texts = network.encode_image(prepare(Image.fromarray(PIXELS))[None]), tokenizer(TEXTS)
        torch.testing.assert_close(model.image_encoder.embed(model.preprocessing(PIXELS)), images, rtol=0, atol=1e-5)
        expected = network.encode_text(texts, normalize=True)
        torch.testing.assert_close(model.text_encoder(TEXTS), expected, rtol=0, atol=1e-6)


def test_nothing_of_open_clips_image_tower_is_copied_but_the_projection(open_vit):
    _, network, processor = open_vit
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    tower = living_clip(network, processor).image_encoder
    copied = [name for name, p in tower.named_parameters() if p.untyped_storage().data_ptr() not in own]
    assert copied == ["projection.weight"]


# -- left as it was ---------------------------------------------------------------------------

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model):
    """All that a caller could miss: modules, weights by identity, version, place and value, modes, hooks, gradients."""
    modules = {
        name: (id(module), module.training, *(list(getattr(module, hooks)) for hooks in HOOKS), sorted(vars(module)))
        for name, module in model.named_modules()
    }
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {
        name: (id(t), t.data_ptr(), t._version, t.dtype, t.device, t.requires_grad, t.grad is None, t.is_contiguous())
        for name, t in tensors.items()
    }
    gradients = {name: t.grad.clone() for name, t in tensors.items() if t.grad is not None}
    return modules, weights, {name: t.detach().clone() for name, t in tensors.items()}, gradients


def random_state():
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.is_grad_enabled()


def disorder(network):
    """Half of the modules train, some weights are frozen, one has a gradient, one module a hook; dropout is on."""
    for index, module in enumerate(network.modules()):
        module.training = index % 2 == 0
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        for name in ("dropout", "attention_dropout"):  # those of attention are numbers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    for index, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(index % 3 > 0)
    parameter.grad = torch.ones_like(parameter)
    module.register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip", *KINDS])
def test_a_model_is_left_as_it_was(family, tokenizer, tmp_path):
    if family in FAMILIES:
        folder, network = save_pretrained(tmp_path, family)
        processor = processor_of(folder)
    else:
        _, network, processor = save_open_clip(tmp_path, family, tokenizer)
    plain = explained(network, processor=processor)
    disorder(network)
    before, chance = state_of(network), random_state()
    assert_same(explained(network, processor=processor), plain)
    assert_same(explained(network, processor=processor, method="all")[0], plain)
    after, later = state_of(network), random_state()
    assert before[:2] == after[:2]
    for ours, theirs in zip(before[2:], after[2:]):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(chance[0], later[0]) and str(chance[1:]) == str(later[1:])


def test_it_stays_where_it_is(clip, monkeypatch):
    """With CUDA at hand a model of ours moves there; a caller's does not."""
    _, network, processor = clip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    moves = []
    monkeypatch.setattr(nn.Module, "to", lambda self, *where, **options: moves.append(where) or self)
    expected = explained(network, processor=processor, use_cuda=True)
    assert ("cuda",) not in moves
    monkeypatch.undo()
    assert_same(explained(network, processor=processor), expected)


# -- what surrounds it ------------------------------------------------------------------------


class Training(nn.Module):
    """A module for training around a model, with a loss beside it."""

    def __init__(self, network):
        super().__init__()
        self.loss, self.net = nn.CrossEntropyLoss(), nn.ModuleDict({"clip": network})


def with_compiled_tower(network):
    network = copy.deepcopy(network)
    name = "visual" if hasattr(network, "visual") else "vision_model"
    setattr(network, name, torch.compile(getattr(network, name), backend="eager"))
    return network


def with_parallel_towers(network):
    network = copy.deepcopy(network)
    for name in {"visual", "vision_model", "text_model"} & set(network._modules):
        setattr(network, name, nn.DataParallel(getattr(network, name)))
    return network


WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "average": torch.optim.swa_utils.AveragedModel,
    "training": Training,
    "compiled tower": with_compiled_tower,
    "parallel towers": with_parallel_towers,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("library", ["clip", "open_vit"])
def test_a_wrapped_model_is_explained_by_itself(wrap, library, request):
    _, network, processor = request.getfixturevalue(library)
    assert_same(explained(WRAPPERS[wrap](network), processor=processor), explained(network, processor=processor))


def test_inside_of_distributed_data_parallel(clip, tmp_path):
    _, network, processor = clip
    file = f"file://{tmp_path / 'ranks'}"
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(network))
        assert_same(explained(wrapped, processor=processor), explained(network, processor=processor))
    finally:
        torch.distributed.destroy_process_group()


def test_several_models_are_named(clip, open_vit):
    both = nn.Module()
    both.student, both.teacher = clip[1], open_vit[1]
    with pytest.raises(InputError, match="Module 中有 2 个 CLIP：model.student、model.teacher；请给出其中一个"):
        explained(both, processor=clip[2])


@pytest.mark.parametrize("library", ["clip", "open_vit"])
def test_inside_of_autocast_and_inference_mode(library, request):
    _, network, processor = request.getfixturevalue(library)
    expected = explained(network, processor=processor)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(explained(network, processor=processor), expected)
    with torch.inference_mode():
        assert_same(explained(network, processor=processor), expected)


def test_two_threads_on_one_model(clip):
    _, network, processor = clip
    expected = explained(network, processor=processor)
    network, answers = copy.deepcopy(network).train(), []
    threads = [
        threading.Thread(target=lambda: answers.extend(explained(network, processor=processor) for _ in range(3)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6 and all(module.training for module in network.modules())
    for answer in answers:
        assert_same(answer, expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_transformers_in_half_precision(dtype, tolerance, clip):
    _, network, processor = clip
    expected, half = explained(network, processor=processor, method="layercam"), copy.deepcopy(network).to(dtype)
    assert_same(explained(half, processor=processor, method="layercam"), expected, tolerance)
    assert {weight.dtype for weight in half.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_open_clip_in_another_precision_is_explained_in_float32(dtype, open_vit):
    _, network, processor = open_vit
    features = torch.randn(len(TEXTS), 24, generator=torch.Generator().manual_seed(0))
    other = copy.deepcopy(network).to(dtype)
    expected = explained(copy.deepcopy(other).float(), processor=processor, text_features=features)
    assert_same(explained(other, processor=processor, text_features=features), expected)
    assert np.isfinite(explained(other, processor=processor).map).any()


# -- as it is now -----------------------------------------------------------------------------


def train_a_step(network):
    """One step that changes both towers."""
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    sum(parameter.pow(3).sum() for parameter in network.parameters()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_after_a_step_of_training_it_is_another_model(clip, tmp_path):
    network, processor = copy.deepcopy(clip[1]), clip[2]
    kept, before = living_clip(network, processor), explained(network, processor=processor)
    train_a_step(network)
    loaded, _ = save_pretrained(tmp_path, "clip", save=lambda _, folder: network.save_pretrained(folder))
    expected = explained(load_clip_checkpoint(loaded))
    assert np.abs(expected.probabilities - before.probabilities).max() > 1e-3
    assert_same(explained(network, processor=processor), expected)
    assert_same(explained(kept), expected)


def test_after_a_step_of_training_open_clips_is_asked_for_again(open_vit):
    network, processor = copy.deepcopy(open_vit[1]), open_vit[2]
    kept, before = living_clip(network, processor), explained(network, processor=processor)
    assert_same(explained(kept), before)
    train_a_step(network)
    with pytest.raises(InputError, match="living_clip 之后改变"):
        explained(kept)
    assert np.abs(explained(network, processor=processor).probabilities - before.probabilities).max() > 1e-3


def test_adapters_count(clip):
    """LoRA of both towers, without merging: the maps of the same, merged."""
    _, network, processor = clip
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(network), config)
    merged = copy.deepcopy(adapted).merge_and_unload()
    expected, plain = explained(merged, processor=processor), explained(network, processor=processor)
    assert np.abs(expected.probabilities - plain.probabilities).max() > 1e-3
    assert_same(explained(adapted, processor=processor), expected, 1e-5)
    with adapted.disable_adapter():
        assert_same(explained(adapted, processor=processor), plain)


def test_a_hook_counts_or_is_an_error(clip, open_vit):
    """Of transformers' modules it acts; of open_clip's, which are built anew, it is no silent loss."""
    network, processor = copy.deepcopy(clip[1]), clip[2]
    before = explained(network, processor=processor)
    network.vision_model.encoder.layers[1].register_forward_hook(lambda module, inputs, output: output * 1.5)
    assert np.abs(explained(network, processor=processor).probabilities - before.probabilities).max() > 1e-3
    network, processor = copy.deepcopy(open_vit[1]), open_vit[2]
    explained(network, processor=processor)  # which was compared before there was a hook
    network.visual.transformer.resblocks[1].register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(InputError, match="CLIP 给出的图像嵌入.*钩子"):
        explained(network, processor=processor)


@pytest.mark.parametrize("library, method", [("clip", "get_image_features"), ("open_vit", "encode_image")])
def test_what_is_computed_is_compared_once(library, method, request):
    """A second pass through the library's own model is not needed where weights alone are others."""
    _, network, processor = request.getfixturevalue(library)
    network, calls = copy.deepcopy(network), []
    own = getattr(network, method)

    @functools.wraps(own)
    def counted(*inputs, **options):
        calls.append(1)
        return own(*inputs, **options)

    setattr(network, method, counted)
    explained(network, processor=processor)
    train_a_step(network)
    explained(network.eval(), processor=processor)
    assert len(calls) == 1
    network.add_module("head", nn.Linear(2, 2))
    explained(network, processor=processor)
    assert len(calls) == 2


# -- what prepares images and texts -----------------------------------------------------------


class Both:
    """As CLIPProcessor: an image processor and a tokenizer."""

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer


def test_a_processor_whole_or_in_two_or_from_the_models_folder(clip):
    folder, network, (images, tokenizer) = clip
    expected = explained(network, processor=(images, tokenizer))
    assert_same(explained(network, processor=Both(images, tokenizer)), expected)
    loaded = transformers.CLIPModel.from_pretrained(folder)
    assert_same(explained(loaded), expected)
    assert_same(explained(loaded, processor=(None, tokenizer)), expected)
    with torch.no_grad():
        features = living_clip(network, (images, tokenizer)).text_encoder(TEXTS)
    assert_same(explained(network, processor=images, text_features=features), expected)


def test_what_open_clip_writes_on_its_image_tower(open_vit):
    network, tokenizer = copy.deepcopy(open_vit[1]), open_vit[2][1]
    for changes in ({}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3}):
        written = PreprocessCfg(**{"size": 32, **changes})
        expected = explained(network, processor=(image_transform_v2(written, False), tokenizer))
        open_clip.model.set_model_preprocess_cfg(network, vars(written))
        assert_same(explained(network, processor=(None, tokenizer)), expected)


def test_the_input_is_what_the_library_makes_of_the_picture(open_vit):
    _, network, processor = open_vit
    for cfg in (PreprocessCfg(size=32), PreprocessCfg(size=32, resize_mode="squash", interpolation="bilinear")):
        prepare = image_transform_v2(cfg, False)
        ours = living_clip(network, (prepare, processor[1])).preprocessing(PIXELS)
        torch.testing.assert_close(ours[0], prepare(Image.fromarray(PIXELS)), rtol=0, atol=1e-5)


def test_a_text_that_is_cut_is_warned_of(open_vit):
    _, network, processor = open_vit
    with pytest.warns(InputWarning, match="“a loose hip a loose .*词元，超过 16"):
        explain(network, PIXELS, ["a loose hip " * 4, "a"], processor=processor)


class Brighter(transformers.CLIPImageProcessorPil if hasattr(transformers, "CLIPImageProcessorPil") else object):
    """An image processor that does more than it says."""

    def __call__(self, *args, **options):
        output = super().__call__(*args, **options)
        output["pixel_values"] = output["pixel_values"] + 1
        return output


def train_transforms():
    return image_transform_v2(PreprocessCfg(size=32), True)


def nearest_transforms():
    prepare = image_transform_v2(PreprocessCfg(size=32), False)
    prepare.transforms[0].interpolation = InterpolationMode.NEAREST_EXACT
    return prepare


MISTAKES = {
    "nothing": ("clip", lambda network, p: (network, None), "CLIPModel 没有说明图像怎样预处理；.*AutoProcessor"),
    "no tokenizer": ("clip", lambda network, p: (network, p[0]), "没有带着分词器；.*或直接给出 text_features"),
    "no image processor": (
        "clip",
        lambda network, p: (network, p[1]),
        "没有分词器|不是 transformers 的图像处理器|图像大小",
    ),
    "three": ("clip", lambda network, p: (network, (*p, None)), "两项，收到 3 项"),
    "brighter": ("clip", lambda network, p: (network, (Brighter(**p[0].to_dict()), p[1])), "与它自己写明的不同"),
    "ours": ("clip", lambda network, p: (tiny_clip(), p), "CLIPModel 不需要它"),
    "open nothing": ("open_vit", lambda network, p: (network, None), "没有说明图像怎样预处理；.*get_tokenizer"),
    "open no tokenizer": ("open_vit", lambda network, p: (network, p[0]), "没有带着分词器.*get_tokenizer"),
    "training": ("open_vit", lambda network, p: (network, (train_transforms(), p[1])), "RandomResizedCrop 不受支持"),
    "nearest": ("open_vit", lambda network, p: (network, (nearest_transforms(), p[1])), "'nearest-exact' 不受支持"),
    "function": ("open_vit", lambda network, p: (network, (lambda image: image, p[1])), "function 不是.*Compose"),
    "lists": ("open_vit", lambda network, p: (network, (p[0], lambda texts: [[1]])), "分词器给出 list，应是张量"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_give(mistake, request):
    library, make, message = MISTAKES[mistake]
    _, network, processor = request.getfixturevalue(library)
    model, processor = make(network, processor)
    with pytest.raises(InputError, match=message) as caught:
        explained(model, processor=processor)
    assert "\n" not in str(caught.value)


def changed(network, change):
    network = copy.deepcopy(network)
    change(network)
    return network


STRANGE = {
    "activation": (lambda n: setattr(n.visual.transformer.resblocks[0].mlp, "gelu", nn.ReLU()), "激活函数 ReLU"),
    "pool": (lambda n: setattr(n.visual, "pool_type", "avg"), "图像嵌入.*算出的不同"),
    "norm": (lambda n: setattr(n.visual, "ln_pre", nn.Identity()), "VisionTransformer 的结构不受支持"),
    "tower": (lambda n: setattr(n, "visual", nn.Conv2d(3, 24, 32)), "Conv2d 的结构不受支持；支持：OpenAI 的 ViT"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_structure_that_is_not_ours_is_refused(strange, open_vit):
    change, message = STRANGE[strange]
    with pytest.raises(InputError, match=message):
        explained(changed(open_vit[1], change), processor=open_vit[2])


# -- the other doors --------------------------------------------------------------------------


def test_it_is_drawn_and_goes_through_gradcam(clip, tmp_path):
    folder, network, processor = clip
    picture = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(picture)
    overlay = visualize_clip_gradcam(network, picture, TEXTS, processor=processor)
    np.testing.assert_array_equal(overlay, visualize_clip_gradcam(load_clip_checkpoint(folder), picture, TEXTS))
    model = living_clip(network, processor)
    cam = CLIPGradCAM(model, get_target_layer_for_clip(model))
    assert cam.target_layer is network.vision_model.encoder.layers[-1].layer_norm1
    assert living_clip(model) is model
    with pytest.raises(InputError, match="living_clip"):
        CLIPGradCAM(network, None)
