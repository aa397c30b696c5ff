"""What people do with living models: threads, autocast, compilers, wrappers, adapters, and things that are no models.

The map is the right one, or there is one InputError with the cause.
"""

import copy
import sys
import threading
import types
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import numpy as np
import peft
import pytest
import torch
import torchvision
import transformers
from test_gradcam import hook_count, pictures, texts
from test_methods import assert_close, small_vit
from tiny import BrightnessClip, Clip, PooledNet, gradient_picture, tiny_clip
from tiny_pretrained import save_pretrained
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from clip_gradcam_visualization import CLIPGradCAM, explain, get_target_layer_for_clip, visualize_clip_gradcam
from models.clip import CLIPModel
from models.errors import InputError
from models.explain.attention import projection
from models.explain.layers import find_layer, layer_name, list_spatial_layers
from models.explain.methods import METHODS
from models.explain.subject import clip_of
from models.loading.load import load_clip_checkpoint
from models.weights.modules import evaluating

TEXTS = ["正常", "松动", "感染"]
PIXELS = gradient_picture(48, 64)
FEATURES = texts(3, 32)
ATTENTION = ["legrad", "grad-eclip", "rollout"]


@pytest.fixture(scope="module")
def vit():
    return small_vit(3)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """CLIP's ViT and SigLIP's of transformers, without their text towers."""
    folders = {family: tmp_path_factory.mktemp(family) for family in ("clip", "siglip")}
    return {
        family: load_clip_checkpoint(save_pretrained(folder, family)[0], text_tower=False)
        for family, folder in folders.items()
    }


def explained(model, method="all", **options):
    """{method: maps [3, h, w]} of the picture, whatever the model's own texts."""
    options = {"img_size": 64, "target_text_idx": 0, "text_features": FEATURES, **options}
    answer = explain(model, PIXELS, TEXTS, method=method, **options)
    return {result.method: result.maps for result in (answer if method == "all" else [answer])}


def assert_same_maps(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for method, maps in one.items():
        assert other[method].any()
        np.testing.assert_allclose(maps, other[method], rtol=0, atol=tolerance * np.abs(other[method]).max())


# -- threads ----------------------------------------------------------------------------------


@contextmanager
def busy_switching():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def in_threads(call, arguments, threads=8):
    with busy_switching(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, arguments))


def test_a_thousand_calls_over_eight_threads_on_a_model_that_trains():
    net = PooledNet(activation=nn.Sequential(nn.GELU(), nn.Dropout(0.5)))
    model, images, features = Clip(net).train(), pictures(5), texts()
    net.activation[0].eval()
    modes = [module.training for module in model.modules()]
    cams = [CLIPGradCAM(model, layer, method=m) for m in ("gradcam", "layercam") for layer in ("conv", "activation")]
    questions = [(cam, n, target) for cam in cams for n in range(5) for target in range(3)]

    def answer(number):
        cam, n, target = questions[number % len(questions)]
        return cam.text_maps(images[n : n + 1], features, target).maps

    alone = [answer(number) for number in range(len(questions))]
    for number, maps in enumerate(in_threads(answer, range(1000))):
        assert torch.equal(maps, alone[number % len(questions)]), number
    assert [module.training for module in model.modules()] == modes and hook_count(model) == 0


@pytest.mark.parametrize("method", [None, "scorecam", *ATTENTION])
def test_eight_threads_explain_on_one_transformer(vit, method):
    pictures_of = [np.roll(PIXELS, 5 * n, 1) for n in range(4)]

    def answer(n):
        return explain(vit, pictures_of[n % 4], TEXTS, img_size=64, target_text_idx="all", method=method).maps

    alone = [answer(n) for n in range(4)]
    for n, maps in enumerate(in_threads(answer, range(16))):
        np.testing.assert_allclose(maps, alone[n % 4], rtol=0, atol=1e-6 * alone[n % 4].max())
    assert hook_count(vit) == 0


def test_eight_threads_visualize_on_one_model(tmp_path):
    model = BrightnessClip()
    pictures_of = [np.roll(PIXELS, 7 * n, 1) for n in range(4)]

    def answer(n):
        return visualize_clip_gradcam(model, pictures_of[n % 4], ["bright", "dark"], "grid", n % 2, img_size=64)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [answer(n) for n in range(4)]
        for n, overlay in enumerate(in_threads(answer, range(200))):
            np.testing.assert_array_equal(overlay, alone[n % 4])


def test_what_other_threads_ask_of_the_model_meanwhile_is_left_alone():
    """A plain pass, in another thread, while our hooks are on the layer: no graph, the same embedding."""
    net, images, seen = PooledNet().requires_grad_(False), pictures(1), []
    expected = net(images)

    def plain_pass():
        seen.append((torch.is_grad_enabled(), net(images), torch.is_grad_enabled()))

    def meanwhile(module, inputs, output):
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=plain_pass)
            other.start()
            other.join()

    net.activation.register_forward_hook(meanwhile)
    assert CLIPGradCAM(Clip(net), net.conv).text_maps(images, texts(), 0).maps.any()
    ((before, embedding, after),) = seen
    assert before and after and not embedding.requires_grad and torch.equal(embedding, expected)


def test_the_last_of_overlapping_blocks_puts_the_modes_back():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval()).train()
    net[1].eval()
    one, other = evaluating(net), evaluating(net)
    one.__enter__(), other.__enter__()
    one.__exit__(None, None, None)
    assert [module.training for module in net.modules()] == [False] * 3
    other.__exit__(None, None, None)
    assert [module.training for module in net.modules()] == [True, True, False]


# -- what surrounds a call --------------------------------------------------------------------


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "double": double_by_default,
    "deterministic": deterministic,
    "device": lambda: torch.device("meta"),  # where new tensors would go
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("encoder", ["starnet_s1", "vit"])
def test_the_surroundings_make_no_difference(surrounding, encoder, clip, vit):
    model = vit if encoder == "vit" else clip
    methods = ["gradcam", "eigencam", *(["scorecam", *ATTENTION] if encoder == "vit" else [])]

    def answers():
        options = {"img_size": 64, "text_features": FEATURES}
        tested = explain(model, PIXELS, TEXTS, method="hirescam", faithfulness=True, **options)
        return [tested, *(explain(model, PIXELS, TEXTS, method=method, **options) for method in methods)]

    expected = answers()
    with SURROUNDINGS[surrounding]():
        results = answers()
    for result, same in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.maps, same.maps, rtol=0, atol=1e-5 * np.abs(same.maps).max())
        np.testing.assert_allclose(result.probabilities, same.probabilities, atol=1e-6)
        np.testing.assert_allclose(result.heatmap, same.heatmap, atol=1e-4)
        for tested, again in zip(result.tested, same.tested):
            assert tested is again is None or tested[:3] == pytest.approx(again[:3], abs=1e-4)


class InModeOfItsOwn(PooledNet):
    """A tower that turns gradients off by itself."""

    mode = nullcontext

    def forward(self, images):
        with self.mode():
            return super().forward(images)


def test_a_tower_that_turns_gradients_off_by_itself(monkeypatch):
    net, images = InModeOfItsOwn(), pictures()
    expected = CLIPGradCAM(Clip(net), "conv").text_maps(images, texts())
    monkeypatch.setattr(net, "mode", torch.no_grad)
    torch.testing.assert_close(CLIPGradCAM(Clip(net), "conv").text_maps(images, texts()), expected)
    monkeypatch.setattr(net, "mode", torch.inference_mode)
    with pytest.raises(InputError, match="inference_mode.*no_grad"):
        CLIPGradCAM(Clip(net), "conv").text_maps(images, texts())
    assert hook_count(net) == 0


@pytest.mark.parametrize("surrounding", ["autocast", "inference", "double"])
def test_the_texts_are_embedded_in_the_models_own_precision(surrounding, clip):
    expected = explain(clip, PIXELS, TEXTS, img_size=64)
    with SURROUNDINGS[surrounding]():
        result = explain(clip, PIXELS, TEXTS, img_size=64)
    np.testing.assert_allclose(result.similarities, expected.similarities, atol=1e-6)
    np.testing.assert_allclose(result.maps, expected.maps, rtol=0, atol=1e-5 * np.abs(expected.maps).max())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.01), (torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_a_model_of_another_precision_predicts_and_explains(dtype, tolerance, clip):
    model = copy.deepcopy(clip).to(dtype)
    expected, result = (explain(m, PIXELS, TEXTS, img_size=64, target_text_idx=0) for m in (clip, model))
    np.testing.assert_allclose(result.maps, expected.maps, rtol=0, atol=tolerance * np.abs(expected.maps).max())
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=tolerance)
    images = pictures(2, 64, 64)
    ours, theirs = model.predict(images.to(dtype), TEXTS)[1], clip.predict(images, TEXTS)[1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=max(tolerance, 1e-6))


# -- compiled and wrapped models --------------------------------------------------------------


def compiled_model(model, backend):
    return torch.compile(model, backend=backend)


def compiled_tower(model, backend):
    model.image_encoder = torch.compile(model.image_encoder, backend=backend)
    return model


def compiled_backbone(model, backend):
    model.image_encoder.backbone = torch.compile(model.image_encoder.backbone, backend=backend)
    return model


def compiled_in_place(model, backend):
    model.image_encoder.compile(backend=backend)
    return model


def compiled_forward(model, backend):
    model.image_encoder.forward = torch.compile(model.image_encoder.forward, backend=backend)
    return model


def compiled_blocks(model, backend):
    backbone = model.image_encoder.backbone
    blocks = backbone.stages if hasattr(backbone, "stages") else model.image_encoder.transformer().blocks
    for number, block in enumerate(blocks):
        blocks[number] = torch.compile(block, backend=backend)
    return model


COMPILED = [compiled_model, compiled_tower, compiled_backbone, compiled_in_place, compiled_forward, compiled_blocks]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("encoder, backend", [("starnet_s1", "eager"), ("vit", "eager"), ("vit", "aot_eager")])
def test_a_compiled_model_has_the_map_of_its_source(compiled, encoder, backend, clip, vit):
    source = vit if encoder == "vit" else clip
    methods = ["layercam", *ATTENTION] if encoder == "vit" else ["gradcam"]
    model = compiled(copy.deepcopy(source), backend)
    images = pictures(1, 64, 64)
    before = model.image_encoder(images)
    for method in methods:
        assert_same_maps(explained(model, method), explained(source, method))
    name = layer_name(source, get_target_layer_for_clip(source))
    assert layer_name(clip_of(model), get_target_layer_for_clip(model)) == name
    assert_same_maps(explained(model, "gradcam", target_layer=name), explained(source, "gradcam", target_layer=name))
    torch.testing.assert_close(model.image_encoder(images), before)  # compiled as before
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_caller_that_is_compiled_is_told_to_stay_outside():
    cam, features = CLIPGradCAM(Clip(PooledNet()), "conv"), texts()
    caller = torch.compile(lambda images: cam(images, features, 0), backend="eager")
    with pytest.raises(InputError, match="编译的函数之内"):
        caller(pictures())
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert cam(pictures(), features, 0).any()


class Sharded(nn.Module):
    """As FSDP and others name what is inside."""

    def __init__(self, model):
        super().__init__()
        self._fsdp_wrapped_module = model


class Training(nn.Module):
    """A module for training around a model, with a loss beside it."""

    def __init__(self, model):
        super().__init__()
        self.loss, self.net = nn.CrossEntropyLoss(), nn.ModuleDict({"clip": model})


def parallel_tower(model):
    model = copy.deepcopy(model)
    model.image_encoder = nn.DataParallel(model.image_encoder)
    return model


WRAPPERS = [nn.DataParallel, torch.optim.swa_utils.AveragedModel, Sharded, Training, parallel_tower]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("encoder", ["starnet_s1", "vit"])
def test_a_wrapped_model_has_its_own_map(wrap, encoder, clip, vit):
    model = vit if encoder == "vit" else clip
    wrapped = wrap(model)
    for method in ("layercam", *ATTENTION) if encoder == "vit" else ("layercam",):
        assert_same_maps(explained(wrapped, method), explained(model, method))
    name = layer_name(model, get_target_layer_for_clip(model))
    assert layer_name(clip_of(wrapped), get_target_layer_for_clip(wrapped)) == name
    assert_same_maps(explained(wrapped, "gradcam", target_layer=name), explained(model, "gradcam", target_layer=name))


def test_the_average_of_the_weights_is_explained_not_the_last_ones(clip):
    average = torch.optim.swa_utils.AveragedModel(clip)
    other = tiny_clip(seed=3)
    average.update_parameters(clip)
    average.update_parameters(other)
    middle = copy.deepcopy(other)  # the buffers are the last model's
    with torch.no_grad():
        for ours, theirs in zip(middle.parameters(), clip.parameters()):
            ours.lerp_(theirs, 0.5)
    assert_same_maps(explained(average, "gradcam"), explained(middle, "gradcam"), 1e-4)


def test_pixels_beyond_the_last_patch_stay_uncoloured_in_a_wrapped_tower(vit):
    """What a tower says of itself is read past its wrapper."""
    pixels = gradient_picture(72, 72)
    result = explain(parallel_tower(vit), pixels, TEXTS, img_size=72, text_features=texts(3, 32))
    assert result.geometry == (0, 0, 64, 64) and np.isnan(result.map[64:]).all()


class FullyShardedDataParallel(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


def two_models(model):
    both = nn.Module()
    both.online_model, both.ema_model = model, copy.deepcopy(model)
    return both


def traced(model):
    return torch.jit.trace(model, pictures(1, 64, 64))


def traced_tower(model):
    model = copy.deepcopy(model)
    model.image_encoder = traced(model.image_encoder)
    return model


@pytest.mark.parametrize(
    "wrap, message",
    [
        (FullyShardedDataParallel, "FSDP.*load_clip_checkpoint"),
        (two_models, "2 个带 image_encoder 的模型：model.online_model、model.ema_model；请给出其中一个"),
        (traced_tower, "image_encoder 是 TorchScript.*转换之前的模型"),
        (lambda model: traced(model.image_encoder), "TorchScript.*转换之前的模型"),
    ],
    ids=["fsdp", "two", "traced tower", "traced"],
)
def test_a_wrapper_that_cannot_be_looked_into_says_why(wrap, message, clip):
    with pytest.raises(InputError, match=message):
        explained(wrap(clip))


def test_a_scripted_layer_cannot_be_watched_but_its_neighbours_can():
    plain = PooledNet(activation=nn.Sequential(nn.Conv2d(6, 6, 1), nn.GELU()))
    scripted = copy.deepcopy(plain)
    scripted.activation = torch.jit.script(scripted.activation)
    expected = CLIPGradCAM(Clip(plain), "conv").text_maps(pictures(1), texts(), 0)
    torch.testing.assert_close(CLIPGradCAM(Clip(scripted), "conv").text_maps(pictures(1), texts(), 0), expected)
    for layer in ("activation", "activation.0"):
        with pytest.raises(InputError, match="TorchScript"):
            CLIPGradCAM(Clip(scripted), layer).text_maps(pictures(1), texts(), 0)


# -- adapters, hooks and parametrisations -----------------------------------------------------

ASKED = {"vit": ((48, 64), 32), "clip": ((32, 32), 28), "siglip": ((32, 32), 32)}
FAMILIES = list(ASKED)
CAPTURING = [*ATTENTION, "layercam", "gradcam", "scorecam"]


@pytest.fixture
def network(vit, published):
    """A function: family -> a copy of the model."""
    return lambda family: copy.deepcopy(vit if family == "vit" else published[family])


def all_maps(model, family, methods=CAPTURING):
    size, width = ASKED[family]
    images, features, targets = pictures(2, *size), texts(3, width), torch.tensor([[0, 2], [1, 0]])
    return {m: CLIPGradCAM(model, None, method=m).text_maps(images, features, targets).maps for m in methods}


def assert_maps(model, same, family, plain=None):
    """The maps of `model` are those of `same`, and, to be told, not those of `plain`."""
    ours, theirs = all_maps(model, family), all_maps(same, family)
    for method in CAPTURING:
        assert_close(ours[method], theirs[method])  # merged weights round otherwise
    if plain is not None:
        untouched = all_maps(plain, family)
        assert all(not torch.allclose(ours[m], untouched[m], rtol=0.01, atol=0) for m in CAPTURING)


def blocks_of(model):
    return model.image_encoder.transformer().blocks


def linears(model):
    """(parent, name, linear layer) of each in the blocks, and in the pool's MLP."""
    modules = list(model.image_encoder.backbone.modules())
    return [(m, name, child) for m in modules for name, child in m.named_children() if type(child) is nn.Linear]


class HandWritten(nn.Module):
    """LoRA as people write it: the layer, and a product of two thin matrices beside it."""

    def __init__(self, layer, seed, rank=4):
        super().__init__()
        self.layer, generator = layer, torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5)
        self.b = nn.Parameter(0.3 * torch.randn(layer.out_features, rank, generator=generator))

    def forward(self, x):
        return self.layer(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("family", FAMILIES)
def test_hand_written_adapters_are_asked(family, network):
    model, merged = network(family), network(family)
    for number, ((parent, name, layer), (_, _, same)) in enumerate(zip(linears(model), linears(merged), strict=True)):
        adapted = HandWritten(layer, number)
        setattr(parent, name, adapted)
        with torch.no_grad():
            same.weight += adapted.b @ adapted.a
    assert_maps(model, merged, family, plain=network(family))


class Subclassed(nn.Linear):
    """A linear layer by its class, and more by its forward pass."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_subclasses_of_a_linear_layer_are_asked(family, network):
    model, same = network(family), network(family)
    for (_, _, layer), (_, _, doubled) in zip(linears(model), linears(same), strict=True):
        layer.__class__ = Subclassed
        with torch.no_grad():
            doubled.weight *= 2
            doubled.bias *= 2
    assert_maps(model, same, family)


PEFT_TARGETS = {
    "all": r".*\.layers?\.\d+\..*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|query|key|value|dense)",
    "last": r".*\.layers?\.\d+\.(mlp\.fc2|output\.dense)",
    "query": r".*\.(q_proj|query)",
    "pool": r".*head\.attention",
}


def with_lora(module, targets, wrap=peft.get_peft_model):
    """The module with adapters in some of its layers, the same each time."""
    torch.manual_seed(1)
    pattern = PEFT_TARGETS[targets]
    config = peft.LoraConfig(r=4, target_modules=pattern, init_lora_weights=False, lora_dropout=0.3)
    return wrap(module, config)


@pytest.mark.parametrize(
    "family, targets", [*((family, t) for family in FAMILIES for t in ("all", "last", "query")), ("siglip", "pool")]
)
def test_lora_layers_are_asked(family, targets, network):
    """Around the tower, around the model, and put into it, against the weights that they merge into."""
    of_tower, merged, injected = network(family), network(family), network(family)
    of_tower.image_encoder = with_lora(of_tower.image_encoder, targets)
    merged.image_encoder = with_lora(merged.image_encoder, targets).merge_and_unload()
    with_lora(injected.image_encoder, targets, lambda m, config: peft.inject_adapter_in_model(config, m))
    assert_maps(of_tower, merged, family, plain=network(family))
    for model in (injected, with_lora(network(family), targets)):
        assert_maps(model, merged, family)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("family", FAMILIES)
def test_parametrised_weights_are_those_in_use(family, network):
    model, same = network(family), network(family)
    for (_, _, layer), (_, _, doubled) in zip(linears(model), linears(same), strict=True):
        parametrize.register_parametrization(layer, "weight", Doubled())
        with torch.no_grad():
            doubled.weight *= 2
    if family == "siglip":
        ours, theirs = (m.image_encoder.backbone.head.attention for m in (model, same))
        parametrize.register_parametrization(ours, "in_proj_weight", Doubled())
        parametrize.register_parametrization(ours.out_proj, "weight", Doubled())
        with torch.no_grad():
            theirs.in_proj_weight *= 2
            theirs.out_proj.weight *= 2
    assert_maps(model, same, family)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore")
def test_weight_norm_changes_nothing(norm, network):
    model = network("vit")
    for _, _, layer in linears(model):
        norm(layer)
    assert_maps(model, network("vit"), "vit")


@pytest.mark.parametrize("where", ["query", "value", "output", "before output", "last", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_users_hook_changes_is_part_of_the_network(family, where, network):
    """A hook that makes an output half as large again, against weights that do so."""
    model, same = network(family), network(family)
    for ours, theirs in zip(blocks_of(model), blocks_of(same)):
        hooked, scaled = (layer_by(block, where) for block in (ours, theirs))
        if where == "before output":
            hooked.register_forward_pre_hook(lambda module, inputs: (1.5 * inputs[0],))
        else:
            hooked = ours.mlp if where == "mlp" else hooked
            hooked.register_forward_hook(lambda module, inputs, output: 1.5 * output)
        with torch.no_grad():
            scaled.weight *= 1.5
            scaled.bias *= 1 if where == "before output" else 1.5
    assert_maps(model, same, family)


def layer_by(block, where):
    if where in ("last", "mlp"):
        return block.get_submodule("mlp.fc2")
    return projection(block, where.split()[-1])


def test_a_hook_that_treats_tokens_apart_is_followed_by_legrad(network):
    """The mean of what such a hook gives is no function of the mean token: against two copies of the same pass."""
    model, same = network("vit"), network("vit")
    blocks_of(model)[-1].mlp.register_forward_hook(lambda module, inputs, output: output * torch.tanh(output))

    class Gated(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.inside = mlp

        def forward(self, x):
            output = self.inside(x)
            return output * torch.tanh(output)

    last = blocks_of(same)[-1]
    last.mlp = Gated(last.mlp)
    assert_close(all_maps(model, "vit", ["legrad"])["legrad"], all_maps(same, "vit", ["legrad"])["legrad"], 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_have_no_gradient_and_say_so(network):
    model = torch.ao.quantization.quantize_dynamic(network("vit"), {nn.Linear}, dtype=torch.qint8)
    plain = network("vit")
    for method in METHODS:
        if method in ("eigencam", "rollout"):
            maps, expected = (all_maps(m, "vit", [method])[method] for m in (model, plain))
            assert np.corrcoef(maps.flatten(), expected.flatten())[0, 1] > 0.9
        else:
            with pytest.raises(InputError, match="量化.*没有梯度"):
                all_maps(model, "vit", [method])


# -- text features ----------------------------------------------------------------------------

SAME_FEATURES = {
    "array": FEATURES.numpy(),
    "double array": FEATURES.numpy().astype(float),
    "list": FEATURES.tolist(),
    "double": FEATURES.double(),
    "with gradients": FEATURES.clone().requires_grad_(),
    "transposed": FEATURES.T.contiguous().T,
    "sparse": FEATURES.to_sparse(),
    "longer": 1000 * FEATURES,
}
ROW_OF_ZEROS = torch.cat([FEATURES[:2], torch.zeros(1, 32)])
BAD_FEATURES = {
    "one": (FEATURES[0], r"\[32\].*text_features\[None\]"),
    "batch": (FEATURES[None], r"\[1, 3, 32\]"),
    "none": (FEATURES[:0], r"\[0, 32\]"),
    "width": (texts(3, 16), "宽度是 16.*宽度是 32"),
    "whole numbers": ((100 * FEATURES).int(), "int32"),
    "complex": (FEATURES.to(torch.complex64), "complex64"),
    "nan": (FEATURES.where(FEATURES[1, 3] != FEATURES, torch.nan), "第 1 行.*NaN"),
    "infinite": (FEATURES.where(FEATURES[2, 3] != FEATURES, torch.inf), "第 2 行.*无穷大"),
    "zero": (ROW_OF_ZEROS, "第 2 行.*没有方向"),
    "text": ("正常", "str"),
    "meta": (FEATURES.to("meta"), "meta"),
}


@pytest.mark.parametrize("kind", SAME_FEATURES)
def test_text_features_in_every_form(kind, clip):
    features, images = SAME_FEATURES[kind], pictures(1, 64, 64)
    assert_same_maps(explained(clip, "gradcam", text_features=features), explained(clip, "gradcam"))
    cam = CLIPGradCAM(clip, None)
    np.testing.assert_allclose(cam(images, features, 1), cam(images, FEATURES, 1), atol=1e-4)
    torch.testing.assert_close(
        clip.predict(images, text_features=features)[1].float(), clip.predict(images, text_features=FEATURES)[1]
    )


@pytest.mark.parametrize("kind", BAD_FEATURES)
def test_text_features_that_cannot_be_are_one_line(kind, clip):
    features, message = BAD_FEATURES[kind]
    images = pictures(1, 64, 64)
    calls = [
        lambda: explained(clip, "gradcam", text_features=features),
        lambda: CLIPGradCAM(clip, None)(images, features),
        lambda: CLIPGradCAM(clip, None).score(images, features),
        lambda: clip.predict(images, text_features=features),
    ]
    if kind not in ("nan", "infinite", "zero"):  # training compares what it has
        calls.append(lambda: clip.compute_similarity(clip.image_encoder(images), features))
    for call in calls:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_text_features_as_texts(clip, count):
    with pytest.raises(InputError, match=f"{count} 行，class_texts 有 3 个"):
        explained(clip, "gradcam", text_features=texts(count, 32))


def test_features_that_the_model_has_of_other_texts_explain_none_but_their_own(picture):
    model = tiny_clip()
    model.precompute_class_text_features(["别的", "文本", "在此"])
    result = explain(model, picture, TEXTS, img_size=64)
    fresh = explain(tiny_clip(), picture, TEXTS, img_size=64)
    np.testing.assert_array_equal(result.similarities, fresh.similarities)


def test_one_text_is_not_taken_letter_by_letter(clip):
    assert clip.predict(pictures(1, 64, 64), "正常")[1].shape == (1, 1)
    with pytest.raises(InputError, match="类别文本"):
        clip.predict(pictures(1, 64, 64), [])


def test_a_text_tower_that_gives_nan_is_named():
    model = tiny_clip()
    with torch.no_grad():
        model.text_encoder.projection.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="文本编码器给出 NaN"):
        explain(model, PIXELS, TEXTS, img_size=64)


# -- what is no model, no layer, no image -----------------------------------------------------


class OpenClipLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Conv2d(3, 8, 4)

    def encode_image(self, images):
        return self.visual(images).mean((2, 3))


def transformers_clip():
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    special = {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config={**tiny, **special}, vision_config=tiny))


NO_MODELS = {
    "path": (lambda clip: "checkpoints/clip_model.pth", r"路径 'checkpoints/clip_model.pth'.*load_clip_checkpoint\("),
    "weights": (lambda clip: clip.state_dict(), "OrderedDict.*权重.*load_clip_checkpoint"),
    "checkpoint": (lambda clip: {"model_state_dict": {}}, "dict.*load_clip_checkpoint"),
    "none": (lambda clip: None, "NoneType.*load_clip_checkpoint"),
    "class": (lambda clip: CLIPModel, "类 CLIPModel.*load_clip_checkpoint"),
    "tower": (lambda clip: clip.image_encoder, "ImageEncoder 没有 image_encoder.*单独的网络"),
    "torchvision": (lambda clip: torchvision.models.resnet18(), "ResNet 没有 image_encoder.*单独的网络"),
    "transformers": (lambda clip: transformers_clip(), "CLIPModel .*processor="),
    "open_clip": (lambda clip: OpenClipLike(), "open_clip.*processor=.*living_clip"),
    "empty": (lambda clip: types.SimpleNamespace(image_encoder=None), "image_encoder 是 NoneType"),
    "wrapped": (lambda clip: nn.DataParallel(nn.Linear(2, 2)), "DataParallel 没有 image_encoder"),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_says_what_it_is_and_what_to_do(kind, clip, picture):
    make, message = NO_MODELS[kind]
    thing = make(clip)
    for call in (
        lambda: explain(thing, PIXELS, TEXTS),
        lambda: visualize_clip_gradcam(thing, picture, TEXTS),
        lambda: CLIPGradCAM(thing, None),
        lambda: get_target_layer_for_clip(thing),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_model_that_is_no_module_needs_its_image_encoder_only():
    net = PooledNet()
    cam = CLIPGradCAM(types.SimpleNamespace(image_encoder=net), "conv", use_cuda=False)
    expected = CLIPGradCAM(Clip(net), net.conv).text_maps(pictures(), texts())
    torch.testing.assert_close(cam.text_maps(pictures(), texts()), expected)


@pytest.mark.parametrize("name", ["stages.2.1", "backbone.stages.2.1", "image_encoder.backbone.stages.2.1"])
def test_a_layer_by_its_name(name, clip):
    cam, expected = CLIPGradCAM(clip, name), CLIPGradCAM(clip, find_layer(clip, "stages.2.1"))
    images = pictures(1, 64, 64)
    np.testing.assert_array_equal(cam(images, FEATURES, 0), expected(images, FEATURES, 0))
    assert cam.target_layer is clip.image_encoder.backbone.stages[2][1]


def test_no_layer_is_the_encoders_own(clip):
    images = pictures(1, 64, 64)
    expected = CLIPGradCAM(clip, get_target_layer_for_clip(clip))(images, FEATURES, 0)
    np.testing.assert_array_equal(CLIPGradCAM(clip, None)(images, FEATURES, 0), expected)
    with pytest.raises(InputError, match="target_layer"):
        CLIPGradCAM(Clip(PooledNet()), None)


@pytest.mark.parametrize(
    "layer, message",
    [
        ("stage.3.3", "stage.3.3.*最接近的是 stages.3.3"),
        ("text_encoder.projection", "text_encoder.projection 不在这个模型的图像编码器"),
        (nn.Conv2d(3, 3, 1), "Conv2d 不在这个模型的图像编码器.*另一个模型"),
        (3, "int：3"),
        (["stages.3.3", nn.ReLU()], "ReLU 不在"),
    ],
    ids=str,
)
def test_a_layer_that_is_none_of_the_encoders(layer, message, clip):
    for call in (lambda: CLIPGradCAM(clip, layer), lambda: explained(clip, "gradcam", target_layer=layer)):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("name", ["resnet50", "vit", "clip-vit"])
def test_an_encoders_name_that_is_anothers_is_said(name, clip):
    with pytest.raises(InputError, match="不是同一种网络.*target_layer"):
        explained(clip, None, image_encoder_name=name)


class Reformed(nn.Module):
    """A layer that gives its input in another form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, maps):
        return self.form(maps)


class Unpacking(PooledNet):
    """PooledNet with a layer whose output is unpacked by its name or place."""

    def __init__(self, form, unpack):
        super().__init__()
        self.layer, self.unpack = Reformed(form), unpack

    def forward(self, images):
        maps = self.unpack(self.layer(self.conv(images)))
        return F.normalize(self.projection(maps.mean((2, 3))), dim=-1)


Pair = namedtuple("Pair", "maps rest")


def test_a_named_tuple_stays_one():
    images, plain = pictures(2), PooledNet()
    net = Unpacking(lambda maps: Pair(maps, None), lambda pair: pair.maps)
    expected = CLIPGradCAM(Clip(plain), "conv").text_maps(images, texts(), 0)
    torch.testing.assert_close(CLIPGradCAM(Clip(net), "layer").text_maps(images, texts(), 0), expected)


@pytest.mark.parametrize(
    "form", [lambda m: {"maps": m}, lambda m: types.SimpleNamespace(maps=m)], ids=["dict", "object"]
)
def test_a_layer_that_gives_no_tensor_says_what_it_gives(form):
    net = Unpacking(form, lambda output: output["maps"] if isinstance(output, dict) else output.maps)
    with pytest.raises(InputError, match="目标层的输出是 (dict|SimpleNamespace)"):
        CLIPGradCAM(Clip(net), "layer").text_maps(pictures(), texts())


def test_of_a_layer_that_runs_twice_the_last_pass_counts():
    class Twice(PooledNet):
        def __init__(self):
            super().__init__()
            self.shared = nn.Conv2d(6, 6, 1)

        def forward(self, images):
            maps = torch.tanh(self.shared(torch.tanh(self.shared(self.conv(images)))))
            return F.normalize(self.projection(maps.mean((2, 3))), dim=-1)

    net, images, features = Twice(), pictures(1), texts()
    outputs = []
    handle = net.shared.register_forward_hook(lambda m, i, o: outputs.append(o) or o.retain_grad())
    (net(images) @ features[0]).sum().backward()
    handle.remove()
    last = outputs[1]
    expected = torch.einsum("bc,bchw->bhw", last.grad.mean((2, 3)), last)[0].detach()
    assert_close(CLIPGradCAM(Clip(net), "shared").text_maps(images, features, 0).maps[0, 0], expected, 1e-5)


IMAGES = pictures(1, 64, 64)
BAD_IMAGES = {
    "bytes": (PIXELS, "uint8.*explain"),
    "byte tensor": (torch.as_tensor(PIXELS), "uint8.*explain"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), "64 个通道.*3 个.*通道在前"),
    "one channel": (IMAGES[:, :1], "1 个通道.*3 个"),
    "two axes": (IMAGES[0, 0], r"\[64, 64\]"),
    "five axes": (IMAGES[None], r"\[1, 1, 3, 64, 64\]"),
    "no image": (IMAGES[:0], "空的"),
    "no pixels": (IMAGES[..., :0], "空的"),
    "nan": (IMAGES.where(IMAGES[0, 0, 0, 0] != IMAGES, torch.nan), "图像中就有"),
    "infinite": (IMAGES / 0, "图像中就有"),
    "path": ("image.png", "str.*explain"),
    "complex": (IMAGES.to(torch.complex64), "complex64"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("encoder", ["starnet_s1", "vit"])
def test_images_that_are_no_input_are_one_line(kind, encoder, clip, vit):
    images, message = BAD_IMAGES[kind]
    with pytest.raises(InputError, match=message) as caught:
        CLIPGradCAM(vit if encoder == "vit" else clip, None)(images, FEATURES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images", [IMAGES.numpy(), IMAGES[0].numpy(), IMAGES.double(), IMAGES.clone().requires_grad_()], ids=type
)
def test_images_in_every_form(images, clip):
    expected = CLIPGradCAM(clip, None)(IMAGES, FEATURES, 0)
    np.testing.assert_allclose(CLIPGradCAM(clip, None)(images, FEATURES, 0), expected, atol=1e-5)


def test_an_image_smaller_than_a_patch_says_so(vit):
    with pytest.raises(InputError, match="8×8 小于.*16×16.*--img-size"):
        CLIPGradCAM(vit, None)(pictures(1, 8, 8), FEATURES)


def one_channel(model):
    model.image_encoder.backbone.stem[0].conv = nn.Conv2d(1, 32, 3, 2, 1)


def half_the_projection(model):
    model.image_encoder.projection.half()


def unloaded_projection(model):
    model.image_encoder.projection.to("meta")


def no_projection(model):
    nn.init.zeros_(model.image_encoder.projection.weight)
    nn.init.zeros_(model.image_encoder.projection.bias)


def nan_in(name, value=torch.nan):
    def poison(model):
        with torch.no_grad():
            model.image_encoder.get_parameter(name).view(-1)[0] = value

    return poison


BAD_MODELS = {
    "one channel": (one_channel, "3 个通道.*要 1 个.*RGB"),
    "mixed precision": (half_the_projection, "float16、torch.float32.*float()"),
    "part on meta": (unloaded_projection, "projection.weight.*meta.*load_clip_checkpoint"),
    "meta": (lambda model: model.to("meta"), "meta.*load_clip_checkpoint"),
    "zero": (no_projection, "全是零"),
    "nan": (nan_in("backbone.stages.1.0.conv.weight"), "backbone.stages.1.0.conv.weight 中就有"),
    "inf": (nan_in("projection.bias", torch.inf), "projection.bias 中就有"),
    "hidden inf": (nan_in("backbone.stages.3.3.f1.conv.weight", torch.inf), "stages.3.3.f1.conv.weight 中就有"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_cannot_answer_says_why(kind, clip):
    spoil, message = BAD_MODELS[kind]
    model = copy.deepcopy(clip)
    spoil(model)
    with pytest.raises(InputError, match=message) as caught:
        explained(model, None)
    assert "\n" not in str(caught.value) and hook_count(model) == 0


def test_a_model_of_one_channel_explains_its_own_input():
    net = PooledNet()
    net.conv = nn.Conv2d(1, 6, 4, stride=4)
    assert CLIPGradCAM(Clip(net), "conv").text_maps(pictures()[:, :1], texts(), 0).maps.any()
    model = tiny_clip()
    one_channel(model)
    with pytest.raises(InputError, match="3 个通道.*要 1 个"):
        list_spatial_layers(model, 64)


def test_half_precision_that_overflows_says_so():
    net = PooledNet().half()
    nn.init.constant_(net.conv.bias, 6e4)
    nn.init.ones_(net.projection.weight)
    with pytest.raises(InputError, match="溢出.*float16.*float()"):
        CLIPGradCAM(Clip(net), "conv")(pictures(), texts())


def test_a_model_made_in_inference_mode_has_no_gradients():
    with torch.inference_mode():
        model = tiny_clip()
    with pytest.raises(InputError, match="inference_mode"):
        explained(model, "gradcam")


# -- probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -0.07, float("nan"), float("inf")])
def test_a_temperature_that_turns_the_classes_round_is_refused(value):
    model = tiny_clip(temperature=value)
    calls = (
        lambda: explained(model, "gradcam"),
        lambda: model.probabilities(torch.zeros(3)),
        lambda: model.predict(IMAGES, TEXTS),
    )
    for call in calls:
        with pytest.raises(InputError, match=f"temperature 是 {value:g}.*正数"):
            call()


@pytest.mark.parametrize("value", [1000.0, -1000.0, float("nan")])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_published_scale_that_is_none_is_refused(value, family, published):
    model = copy.deepcopy(published[family])
    with torch.no_grad():
        model.logit_scale.fill_(value)
    with pytest.raises(InputError, match="logit_scale"):
        model.probabilities(torch.zeros(1, 3))


def test_a_model_without_probabilities_says_what_it_needs():
    net = PooledNet()
    model = Clip(net)
    with pytest.raises(InputError, match="Clip 没有 probabilities.*temperature"):
        explain(model, PIXELS, TEXTS, "conv", img_size=32, text_features=texts())
    model.temperature = 0.1  # a plain number will do
    result = explain(model, PIXELS, TEXTS, "conv", img_size=32, text_features=texts())
    np.testing.assert_allclose(
        result.probabilities, torch.softmax(torch.from_numpy(result.similarities) / 0.1, -1), rtol=1e-5
    )
