"""The methods that read a layer, each against its formula written out."""

import copy
import functools
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from test_gradcam import hook_count, pictures, texts
from tiny import Clip, PooledNet, assert_same_map, tiny_clip, vit_blocks
from torch import nn
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM
from models.errors import InputError
from models.explain import needs
from models.explain.layers import fuse_layers
from models.explain.methods import METHODS, SIMILARITIES, check_method, methods_for
from models.explain.question import OFF_THE_DIRECTION, OFF_THE_MAP, Others

LAYER_METHODS = ["gradcam", "hirescam", "local-gradcam", "gradcam++", "layercam", "xgradcam", "eigencam", "scorecam"]
GRADIENT_METHODS = LAYER_METHODS[:6]
TARGETS = torch.tensor([[0, 2], [1, 0]])  # for each of two images, two of three texts


class Pooled(PooledNet):
    """PooledNet with the embedding before its norm, as `similarity="dot"` needs it."""

    def embed(self, images):
        return self.projection(self.activation(self.conv(images)).mean((2, 3)))


# -- the oracle: y and its gradient by a backward pass through the whole net, in float64 -------------------------------


def written_out(encoder, similarity, features, target, gamma=0.0):
    """Images [B, 3, H, W] -> y [B]: z . t or z . t / |z|, less gamma times the mean over the other texts."""
    others = [index for index in range(len(features)) if index != target]

    def y(images):
        z = encoder.embed(images)
        if similarity == "cosine":
            z = z / z.norm(dim=-1, keepdim=True)
        products = torch.stack([(z * t / t.norm()).sum(-1) for t in features])
        return products[target] - (gamma * products[others].mean(0) if gamma else 0)

    return y


def full_backward(layer, y, images):
    """(A, dy/dA) at the layer, whatever is done to its output in place afterwards."""
    kept = []

    def keep(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        kept.append(output.clone())
        kept[0].retain_grad()
        return kept[0].clone()

    handle = layer.register_forward_hook(keep)
    y(images.clone().requires_grad_()).sum().backward()  # the weights may be frozen
    handle.remove()
    return kept[0].detach(), kept[0].grad


def by_grid(tokens, images):
    """[B, 1 + h * w, K] tokens of patches 16 wide -> [B, K, h, w]; maps stay."""
    if tokens.ndim == 4:
        return tokens
    rows, columns = images.shape[-2] // 16, images.shape[-1] // 16
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, rows, columns)


# -- the formulas, channel by channel: A and g [K, h, w] in float64 -> map [h, w] before the ReLU ----------------------


def gradcam(A, g):
    return sum(d.sum() / d.size * a for a, d in zip(A, g))


def hirescam(A, g):
    return sum(d * a for a, d in zip(A, g))


def local_gradcam(A, g):
    """Position by position: the gradients around it, weighted by a Gaussian of a sixth of the shorter side."""
    rows, columns = A.shape[1:]
    spread, result = min(rows, columns) / 6, np.zeros((rows, columns))
    down, right = np.mgrid[:rows, :columns]
    for i in range(rows):
        for j in range(columns):
            weights = np.exp(-((down - i) ** 2 + (right - j) ** 2) / (2 * spread**2))
            result[i, j] = (A[:, i, j] * (g * weights / weights.sum()).sum((1, 2))).sum()
    return result


def gradcam_plus_plus(A, g):
    result = np.zeros(A.shape[1:])
    for a, d in zip(A, g):
        alphas = [x**2 / (2 * x**2 + a.sum() * x**3) if x != 0 else 0 for x in d.ravel()]
        result += sum(alpha * max(x, 0) for alpha, x in zip(alphas, d.ravel())) * a
    return result


def layercam(A, g):
    return sum(np.where(d > 0, d, 0) * a for a, d in zip(A, g))


def xgradcam(A, g):
    return sum((d * a).sum() / a.sum() * a for a, d in zip(A, g) if a.any())


def eigencam(A, g):
    columns = np.stack([a.ravel() - a.mean() for a in A], axis=1)  # positions x channels
    projected = (columns @ np.linalg.svd(columns, full_matrices=False)[2][0]).reshape(A.shape[1:])
    return -projected if abs(projected.min()) > abs(projected.max()) else projected


FORMULAS = {
    "gradcam": gradcam,
    "local-gradcam": local_gradcam,
    "hirescam": hirescam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "xgradcam": xgradcam,
    "eigencam": eigencam,
}


def scorecam(A, g, image, y, channels, align_corners=False, scale_first=False):
    """A and g [K, h, w], image [3, H, W], y of a batch of images -> map [h, w], one masked image at a time."""
    ranked = sorted(range(len(A)), key=lambda k: -g[k].mean())[:channels]
    scores = []
    for k in ranked:
        mask = torch.from_numpy(A[k])[None, None]
        mask = scaled(mask) if scale_first else mask
        mask = F.interpolate(mask, image.shape[1:], mode="bilinear", align_corners=align_corners)[0, 0]
        with torch.no_grad():
            scores.append(y((image * (mask if scale_first else scaled(mask)))[None]).item())
    weights = np.exp(scores) / np.exp(scores).sum()
    return sum(w * A[k] for w, k in zip(weights, ranked))


def scaled(mask):
    """From 0 to 1; a constant mask is 0 everywhere."""
    spread = mask.max() - mask.min()
    return (mask - mask.min()) / spread if spread > 0 else torch.zeros_like(mask)


# -- the nets and layers ----------------------------------------------------------------------


def small_vit(blocks=2, width=48, heads=4):
    """Our ViT tower, narrow and short, with weights large enough that attention is far from uniform."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 2 * width}
    config = ViTConfig(**sizes, num_hidden_layers=blocks, image_size=64, initializer_range=0.3)
    build = {"vit": lambda name: (ViTModel(config, add_pooling_layer=False), width)}
    with mock.patch.dict("models.towers.image.IMAGE_ENCODERS", build):
        return tiny_clip("vit")


BUILDERS = {
    "pooled": lambda: Clip(Pooled(bias=True, activation=nn.GELU())),
    "resnet18": lambda: tiny_clip("resnet18"),
    "starnet": lambda: tiny_clip("starnet_s1"),
    "vit": small_vit,
}
# (net, layer: its path below the image encoder, or a function of the model)
PLACES = {
    "pooled": ("pooled", "conv"),
    "layer4": ("resnet18", "backbone.layer4.1"),
    "layer3": ("resnet18", "backbone.layer3.0"),
    "layer2 conv": ("resnet18", "backbone.layer2.1.conv1"),
    "before ReLU in place": ("resnet18", "backbone.layer1.1.bn1"),
    "stage 2": ("starnet", "backbone.stages.1"),
    "stage 4": ("starnet", "backbone.stages.3.3"),
    "last norm": ("vit", lambda model: vit_blocks(model)[-1].layernorm_before),
    "first block": ("vit", lambda model: vit_blocks(model)[0].layernorm_after),
}
ASKED = [("cosine", 0.0), ("dot", 0.0), ("cosine", 0.6)]
# Shares of the largest value that float32 may be off: these divide by what may be next to nothing.
TOLERANCES = {"gradcam++": 5e-3, "xgradcam": 5e-3}


@functools.cache
def built(net, double=False):
    return copy.deepcopy(built(net)).double().requires_grad_(False) if double else BUILDERS[net]().eval()


def setting(place, double=False):
    """(model, layer, two images, three text features) of a row of PLACES."""
    net, path = PLACES[place]
    model = built(net, double)
    layer = path(model) if callable(path) else model.image_encoder.get_submodule(path)
    size = (64, 96) if net != "pooled" else (24, 32)
    images, features = pictures(2, *size), texts(3, 5 if net == "pooled" else 32)
    return (model, layer, images.double(), features.double()) if double else (model, layer, images, features)


@functools.cache
def oracle_gradients(place, similarity, gamma, target):
    """(A, g), numpy float64 [2, K, h, w]."""
    model, layer, images, features = setting(place, double=True)
    A, g = full_backward(layer, written_out(model.image_encoder, similarity, features, target, gamma), images)
    return by_grid(A, images).numpy(), by_grid(g, images).numpy()


def assert_close(maps, expected, tolerance=1e-4):
    """Equal up to a share of the largest value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(maps), expected, rtol=0, atol=tolerance * np.abs(expected).max())


# -- each method against its formula ----------------------------------------------------------


@pytest.mark.parametrize("similarity, gamma", ASKED)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", FORMULAS)
def test_equals_the_formula(method, place, similarity, gamma):
    model, layer, images, features = setting(place)
    cam = CLIPGradCAM(model, layer, method=method, similarity=similarity)
    explanation = cam.text_maps(images, features, TARGETS, contrast=gamma)
    assert explanation.maps.dtype == torch.float32
    for image, row in enumerate(TARGETS.tolist()):
        for place_in_row, target in enumerate(row):
            A, g = (tensor[image] for tensor in oracle_gradients(place, similarity, gamma, target))
            tolerance = TOLERANCES.get(method, 1e-4)
            assert_close(explanation.maps[image, place_in_row], FORMULAS[method](A, g), tolerance)
            if METHODS[method].knows_text:
                peak = explanation.gradient_peaks[image, place_in_row].item()
                assert peak == pytest.approx(np.abs(g).max(), rel=1e-3)
    expected = model.image_encoder(images) @ F.normalize(features, dim=-1).T
    torch.testing.assert_close(explanation.similarities, expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("similarity, gamma", ASKED)
@pytest.mark.parametrize("place", ["pooled", "layer3", "stage 4", "last norm"])
def test_scorecam_equals_the_formula(place, similarity, gamma, monkeypatch):
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 4)
    model, layer, images, features = setting(place)
    cam = CLIPGradCAM(model, layer, method="scorecam", similarity=similarity)
    maps = cam.text_maps(images, features, TARGETS, contrast=gamma).maps
    exact, _, exact_images, exact_features = setting(place, double=True)
    for image, row in enumerate(TARGETS.tolist()):
        for place_in_row, target in enumerate(row):
            A, g = (tensor[image] for tensor in oracle_gradients(place, similarity, gamma, target))
            y = written_out(exact.image_encoder, similarity, exact_features, target, gamma)
            assert_close(maps[image, place_in_row], scorecam(A, g, exact_images[image], y, 4), 2e-4)


def test_the_methods_are_told_apart(monkeypatch):
    """What the oracles above agree on is not one and the same map."""
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 20)
    model, layer, images, features = setting("layer3")
    maps = [
        CLIPGradCAM(model, layer, method=method).text_maps(images, features, 0).maps.flatten()
        for method in LAYER_METHODS
    ]
    alike = np.corrcoef(np.stack(maps)) - np.eye(len(maps))
    assert alike.max() < 0.999


@pytest.mark.parametrize("method", LAYER_METHODS)
@pytest.mark.parametrize("place", ["layer4", "last norm"])
def test_a_batch_equals_its_images_and_many_texts_equal_one(method, place, monkeypatch):
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 3)
    model, layer, images, features = setting(place)
    cam = CLIPGradCAM(model, layer, method=method)
    together = cam.text_maps(images, features, TARGETS).maps
    for image in range(2):
        for place_in_row, target in enumerate(TARGETS[image].tolist()):
            alone = cam.text_maps(images[image : image + 1], features, target).maps[0, 0]
            assert_close(together[image, place_in_row], alone, 1e-4)


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_the_heatmap_is_the_map_after_the_relu(method):
    model, layer, images, features = setting("pooled")
    cam = CLIPGradCAM(model, layer, method=method)
    raw = cam.text_maps(images, features, 1).maps[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a map without positive parts is told of
        heatmaps = cam(images, features, 1)
    assert heatmaps.min() >= 0 and heatmaps.max() == 1
    for mine, map_ in zip(heatmaps, raw):
        size = tuple(images.shape[2:])
        expected = F.interpolate(map_.relu()[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        assert_same_map(mine, expected / expected.max().clamp_min(1e-30))


@pytest.mark.parametrize("method", LAYER_METHODS)
@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode])
def test_frozen_weights_and_grad_modes_make_no_difference(method, surrounding):
    model = Clip(Pooled(activation=nn.ReLU(inplace=True))).requires_grad_(False)
    images, features = pictures(), texts()
    cam = CLIPGradCAM(model, model.image_encoder.conv, method=method)
    expected = cam.text_maps(images, features).maps
    with surrounding():
        maps = cam.text_maps(images.clone(), features.clone()).maps
    assert_close(maps.clone(), expected, 1e-5)
    assert hook_count(model) == 0 and not any(p.requires_grad or p.grad is not None for p in model.parameters())


# -- gradcam++, xgradcam, eigencam at their edges ---------------------------------------------


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_dead_channels_count_for_nothing(method):
    """Channels that are zero everywhere: no division by their sum, no share in the map."""
    net = Pooled(activation=nn.ReLU())
    with torch.no_grad():
        net.conv.weight[:2] = 0
        net.conv.bias[:2] = 0
    images, features = pictures(), texts()
    smaller = copy.deepcopy(net)
    for name in ("weight", "bias"):
        setattr(smaller.conv, name, nn.Parameter(getattr(net.conv, name)[2:]))
    smaller.projection.weight = nn.Parameter(net.projection.weight[:, 2:])
    maps, expected = (
        CLIPGradCAM(Clip(each), each.conv, method=method).text_maps(images, features, TARGETS).maps
        for each in (net, smaller)
    )
    assert torch.isfinite(maps).all()
    if method == "scorecam":  # a dead channel takes its share of the softmax, and adds nothing
        ratio = maps / expected
        assert (ratio < 1).all() and ratio.flatten(2).std(-1).max() < 1e-4
    else:
        assert_close(maps, expected, 1e-5)


def test_gradcam_plus_plus_keeps_its_ratio_for_gradients_of_any_size():
    """g^2 and g^3 underflow in float32; the fraction, which needs neither, does not."""
    net = Pooled()
    images, features = pictures(1), texts()
    ordinary = CLIPGradCAM(Clip(net), net.conv, method="gradcam++").text_maps(images, features, 0)
    large = copy.deepcopy(net)
    with torch.no_grad():
        large.conv.weight *= 2.0**60  # A times c, dy/dA by c: S g is the same, L = sum w_k A_k too
        large.conv.bias *= 2.0**60
    tiny = CLIPGradCAM(Clip(large), large.conv, method="gradcam++").text_maps(images, features, 0)
    assert tiny.gradient_peaks.item() ** 2 < 1e-36 and tiny.gradient_peaks.item() ** 3 < torch.finfo(torch.float32).tiny
    assert_close(tiny.maps, ordinary.maps, 1e-5)


def test_xgradcam_where_a_channel_sums_to_zero():
    """S = 0 with A not zero has no finite weight: the map stays finite and the other channels are as they were."""
    A = torch.tensor([[[[1.0, -1.0]], [[2.0, 3.0]]]])
    g = torch.tensor([[[[0.5, 0.25]], [[1.0, -1.0]]]])
    maps = xgradcam(A, g)
    assert torch.isfinite(maps).all()
    torch.testing.assert_close(xgradcam(A[:, 1:], g[:, 1:]), torch.tensor([[[-0.4, -0.6]]]))


def test_eigencam_does_not_depend_on_the_sign_of_the_activations():
    """A and -A have the same first axis; the rule |max| >= |min| chooses its direction, not the solver."""
    net, images = Pooled(), pictures(4)
    negated = copy.deepcopy(net)
    with torch.no_grad():
        negated.conv.weight.neg_()
        negated.conv.bias.neg_()
    cams = [CLIPGradCAM(Clip(each), each.conv, method="eigencam") for each in (net, negated)]
    one, other = (cam.text_maps(images, texts(), 0).maps for cam in cams)
    assert_close(one, other, 1e-5)
    assert (one.amax((2, 3)) >= -one.amin((2, 3))).all()


def test_eigencam_knows_no_text():
    model, layer, images, features = setting("layer3")
    maps = CLIPGradCAM(model, layer, method="eigencam").text_maps(images, features, TARGETS).maps
    assert torch.equal(maps[:, 0], maps[:, 1]) and not METHODS["eigencam"].knows_text


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_constant_activations_give_a_flat_map_and_no_nan(method):
    net = Pooled()
    with torch.no_grad():
        net.conv.weight.zero_()
    maps = CLIPGradCAM(Clip(net), net.conv, method=method).text_maps(pictures(), texts(), TARGETS).maps
    assert torch.isfinite(maps).all()
    assert (maps.flatten(2).std(-1) < 1e-5).all()


# -- scorecam: which channels, how many passes ------------------------------------------------


class Counting(nn.Module):
    """An image encoder that notes the sizes of the batches it is given."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.batches = encoder, []

    def embed(self, images):
        self.batches.append(len(images))
        return self.encoder.embed(images)

    def forward(self, images):
        return F.normalize(self.embed(images), dim=-1)


def counted(net, images, features, targets):
    encoder = Counting(net)
    maps = CLIPGradCAM(Clip(encoder), net.conv, method="scorecam").text_maps(images, features, targets).maps
    return maps, encoder.batches


def chosen_channels(net, images, features, target, count):
    """For each image the set of the `count` channels with the largest <g>."""
    y = written_out(net, "cosine", features, target)
    _, g = full_backward(net.conv, y, images)
    return [set(row.topk(count).indices.tolist()) for row in g.mean((2, 3))]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scorecam_runs_a_channel_once_for_all_its_texts(count, monkeypatch):
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", count)
    net, images, features = Pooled(channels=12, activation=nn.GELU()), pictures(2), texts(4)
    targets = torch.tensor([[0, 1, 2], [3, 1, 0]])
    _, batches = counted(net, images, features, targets)
    needed = 0
    for image, row in enumerate(targets.tolist()):
        needed += len(set.union(*(chosen_channels(net, images, features, t, count)[image] for t in row)))
    assert batches[0] == 2 and sum(batches[1:]) == needed
    assert needed < 6 * count or count == 1  # some channels are asked for twice


def test_scorecam_keeps_no_graph_of_the_masked_images():
    net, with_graph = Pooled(channels=12), []
    net.projection.register_forward_hook(lambda module, inputs, output: with_graph.append(output.requires_grad))
    CLIPGradCAM(Clip(net), net.conv, method="scorecam").text_maps(pictures(2), texts(), TARGETS)
    assert with_graph == [True, False, False]


@pytest.mark.parametrize("texts_asked", [1, 3])
def test_scorecam_runs_every_channel_once_where_there_are_few(texts_asked):
    net = Pooled(channels=12)
    _, batches = counted(net, pictures(2), texts(4), torch.arange(texts_asked).expand(2, -1))
    assert batches[0] == 2 and sum(batches[1:]) == 2 * 12


@pytest.mark.parametrize("size, sizes", [(1, [1] * 12), (5, [5, 5, 2]), (12, [12]), (100, [12])])
def test_the_batches_of_scorecam_make_no_difference(size, sizes, monkeypatch):
    net, images, features = Pooled(channels=12), pictures(1), texts(4)
    expected, _ = counted(net, images, features, TARGETS[:1])
    monkeypatch.setattr("models.explain.needs.SCORECAM_BATCH", size)
    maps, batches = counted(net, images, features, TARGETS[:1])
    assert batches == [1, *sizes]
    assert_close(maps, expected, 1e-6)


def test_scorecam_of_few_channels_is_no_scorecam_of_others(monkeypatch):
    """The channels left out have no share: the map is a convex mean of those taken."""
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 1)
    net, images, features = Pooled(channels=12), pictures(2), texts(4)
    maps, _ = counted(net, images, features, 3)
    for image, channels in enumerate(chosen_channels(net, images, features, 3, 1)):
        assert_close(maps[image, 0], net.conv(images)[image, channels.pop()].detach(), 1e-6)


def test_a_constant_channel_masks_the_whole_image():
    net, images, features = Pooled(activation=nn.GELU()), pictures(1), texts()
    with torch.no_grad():
        net.conv.weight[:3] = 0
        net.conv.bias[:3] = torch.tensor([0.0, 2.0, -1.0])
    maps = CLIPGradCAM(Clip(net), net.conv, method="scorecam").text_maps(images, features, 1).maps[0, 0]
    double = copy.deepcopy(net).double()
    y = written_out(double, "cosine", features.double(), 1)
    A, g = full_backward(double.conv, y, images.double())
    assert_close(maps, scorecam(A[0].numpy(), g[0].numpy(), images[0].double(), y, 6))


# -- exact identities -------------------------------------------------------------------------


def raw_maps(model, layer, images, features, method, similarity="cosine", targets=TARGETS):
    return CLIPGradCAM(model, layer, method=method, similarity=similarity).text_maps(images, features, targets).maps


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("net", ["pooled", "resnet18"])
def test_gradcam_hirescam_and_xgradcam_are_one_before_pooling(net, similarity):
    model = Clip(Pooled(bias=True)) if net == "pooled" else built("resnet18")
    layer = model.image_encoder.conv if net == "pooled" else model.image_encoder.backbone.layer4
    images, features = pictures(2, 96, 64), texts(3, 5 if net == "pooled" else 32)
    one, *others = (
        raw_maps(model, layer, images, features, method, similarity) for method in ("gradcam", "hirescam", "xgradcam")
    )
    for other in others:
        assert_close(other, one, 1e-5)


def test_what_the_map_sums_to():
    """Without bias: 0 for the cosine, which is free of scale, and y for the dot product; with bias neither."""
    images, features = pictures(), texts()
    for bias in (False, True):
        net = Pooled(bias=bias)
        cosine, dot = (raw_maps(Clip(net), net.conv, images, features, "gradcam", each) for each in SIMILARITIES)
        y = (net.embed(images) @ features.T).detach().gather(1, TARGETS)
        sums = cosine.sum((2, 3)).abs().max() < 1e-5 * cosine.abs().sum(), torch.allclose(dot.sum((2, 3)), y, rtol=1e-4)
        assert sums == (not bias, not bias)


def test_the_dot_product_is_of_the_unit_text():
    net, images, features = Pooled(), pictures(), texts()
    one, other = (raw_maps(Clip(net), net.conv, images, scale * features, "gradcam", "dot") for scale in (1, 7))
    assert_close(one, other, 1e-6)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_gradient_reaches_the_patches_of_the_last_output(method, similarity):
    model, images, features = built("vit"), pictures(1, 64, 96), texts(1, 32)
    block = vit_blocks(model)[-1]
    output, norm = (
        CLIPGradCAM(model, layer, method=method, similarity=similarity).text_maps(images, features)
        for layer in (block, block.layernorm_before)
    )
    assert not output.maps.any() and not output.gradient_peaks.any()
    assert norm.maps.any() and norm.gradient_peaks.all()


def test_hirescam_of_tokens_that_are_only_read_through_a_norm_is_zero():
    """The last block reads the patches through its first norm, which is free of scale: g_i . A_i = 0 at each."""
    model, images, features = built("vit"), pictures(1, 64, 96), texts(1, 32)
    layer = vit_blocks(model)[-2]
    A, g = full_backward(layer, written_out(model.image_encoder, "cosine", features, 0), images)
    maps = raw_maps(model, layer, images, features, "hirescam", targets=0)
    assert maps.abs().max() < 1e-5 * (g * A).abs()[:, 1:].sum(-1).max()
    assert raw_maps(model, layer, images, features, "gradcam", targets=0).abs().max() > maps.abs().max() * 100


@pytest.mark.parametrize("method", GRADIENT_METHODS[:2])
def test_the_dot_map_of_the_contrast_is_the_difference_of_the_maps(method):
    model, layer, images, features = setting("layer3")
    all_texts = torch.arange(3).expand(2, 3)
    cam = CLIPGradCAM(model, layer, method=method, similarity="dot")
    plain, contrast = (cam.text_maps(images, features, all_texts, contrast=gamma).maps for gamma in (0.0, 0.6))
    assert_close(contrast, plain - 0.3 * (plain.sum(1, keepdim=True) - plain), 1e-5)


# -- several layers ---------------------------------------------------------------------------


def test_one_layer_is_left_as_it_is():
    maps = torch.randn(2, 3, 4)
    assert fuse_layers([maps]) is maps or torch.equal(fuse_layers([maps]), maps)


def fused(maps):
    """Maps [h, w] of one image -> each after the ReLU, resized to the finest, over its maximum; their mean,
    times the mean of the maxima."""
    finest = max((m.shape for m in maps), key=lambda shape: shape[0] * shape[1])
    positive = []
    for m in maps:
        m = torch.as_tensor(np.maximum(m, 0))[None, None]
        positive.append(F.interpolate(m, finest, mode="bilinear", align_corners=False)[0, 0].numpy())
    tops = [m.max() for m in positive]
    shares = [m / top if top > 0 else 0 * m for m, top in zip(positive, tops)]
    return np.mean(shares, axis=0) * np.mean(tops)


def test_two_maps_by_hand():
    coarse, fine = torch.tensor([[[2.0]], [[-1.0]]]), torch.tensor([[[4.0, -8.0]], [[1.0, 3.0]]])
    expected = torch.tensor([[[3.0, 1.5]], [[0.25, 0.75]]])  # (2/2 + [4, 0]/4) / 2 * 3; (0 + [1, 3]/3) / 2 * 1.5
    torch.testing.assert_close(fuse_layers([coarse, fine]), expected)
    torch.testing.assert_close(fuse_layers([fine, coarse]), expected)


def test_maps_of_three_sizes():
    generator = np.random.default_rng(0)
    maps = [generator.normal(size=(2, *size)).astype(np.float32) for size in ((3, 4), (6, 8), (5, 2))]
    result = fuse_layers([torch.from_numpy(m) for m in maps])
    for image in range(2):
        assert_close(result[image], fused([m[image] for m in maps]), 1e-6)


def test_maps_without_anything_positive_fuse_to_zero():
    result = fuse_layers([-torch.ones(1, 2, 2), -torch.ones(1, 4, 4)])
    assert result.shape == (1, 4, 4) and not result.any()


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nested_layers_have_the_gradients_of_a_full_backward(method, similarity, order):
    """layer3 feeds layer4: the graph of the later must not begin anew, or the earlier has no gradient."""
    places = [("layer3", "layer4")[index] for index in order]
    model, _, images, features = setting("layer4")
    layers = [setting(place)[1] for place in places]
    explanation = CLIPGradCAM(model, layers, method=method, similarity=similarity).text_maps(images, features, TARGETS)
    for image, row in enumerate(TARGETS.tolist()):
        for place_in_row, target in enumerate(row):
            maps = [
                FORMULAS[method](*(tensor[image] for tensor in oracle_gradients(place, similarity, 0.0, target)))
                for place in places
            ]
            assert_close(explanation.maps[image, place_in_row], fused(maps), TOLERANCES.get(method, 1e-4))
    assert hook_count(model) == 0


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_a_layer_inside_another_and_one_before_a_relu_in_place(method, monkeypatch):
    """A block, its last norm, and a norm that a ReLU overwrites."""
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 3)
    model, _, images, features = setting("layer4")
    paths = ("layer3.0", "layer3.0.bn2", "layer3.0.bn1")
    layers = [model.image_encoder.backbone.get_submodule(path) for path in paths]
    together = CLIPGradCAM(model, layers, method=method).text_maps(images, features, 1).maps[:, 0]
    apart = [CLIPGradCAM(model, layer, method=method).text_maps(images, features, 1).maps[:, 0] for layer in layers]
    for image in range(2):
        assert_close(together[image], fused([maps[image].numpy() for maps in apart]))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_layers_of_a_transformer(method):
    model, _, images, features = setting("last norm")
    places = ("first block", "last norm")
    layers = [setting(place)[1] for place in places]
    maps = CLIPGradCAM(model, layers, method=method).text_maps(images, features, 2).maps[:, 0]
    for image in range(2):
        apart = [FORMULAS[method](*(t[image] for t in oracle_gradients(p, "cosine", 0.0, 2))) for p in places]
        assert_close(maps[image], fused(apart), TOLERANCES.get(method, 1e-4))


# -- the other texts taken off ----------------------------------------------------------------


def directions_written_out(model, similarity, features, images, targets):
    """For the k-th target of each image: (t_k, sum_j q_j t_j), [B, D] each, q: softmax of cosine / (2 temperature)."""
    unit = features / features.norm(dim=1, keepdim=True)
    with torch.no_grad():
        z = model.image_encoder.embed(images)
    logits = (z / z.norm(dim=1, keepdim=True)) @ unit.T / model.temperature.item()
    others = []
    for row, target in zip(logits, targets):
        weights = {j: math.exp(logit / 2) for j, logit in enumerate(row.tolist()) if j != target}
        assert max(weights.values()) > 1.2 * min(weights.values())  # else a mean would do
        others.append(sum(w * unit[j] for j, w in weights.items()) / sum(weights.values()))
    return unit[targets], torch.stack(others)


def along(encoder, similarity, directions):
    """Images [B, 3, H, W] -> z . d [B], z a unit vector for the cosine; directions [B, D]."""

    def y(images):
        z = encoder.embed(images)
        return ((z / z.norm(dim=1, keepdim=True) if similarity == "cosine" else z) * directions).sum(1)

    return y


@pytest.mark.parametrize("places", [("layer4",), ("stage 4",), ("layer3", "layer4"), ("stage 2", "stage 4")])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("others", [Others(0.3), Others(0.3, of_maps=True)], ids=["direction", "map"])
def test_a_share_of_the_other_texts_is_taken_off(others, method, similarity, places):
    """F(t_k - 0.3 o) or [F(t_k)]+ - 0.3 [F(o)]+, with o = sum_j q_j t_j and F of several layers the fused map."""
    model, _, images, _ = setting(places[0])
    exact, _, exact_images, _ = setting(places[0], double=True)
    features = texts(4, 32)
    layers = [setting(place)[1] for place in places]
    cam = CLIPGradCAM(model, layers, method=method, similarity=similarity, others=others)
    maps = cam.text_maps(images, features, TARGETS).maps

    def maps_along(directions):
        """Of each image, the fused map of all places, or the one place's."""
        y = along(exact.image_encoder, similarity, directions)
        by_layer = [full_backward(setting(place, double=True)[1], y, exact_images) for place in places]
        by_layer = [[tensor.numpy() for tensor in pair] for pair in by_layer]
        by_image = [[FORMULAS[method](A[b], g[b]) for A, g in by_layer] for b in range(2)]
        return [fused(layer_maps) if len(layer_maps) > 1 else layer_maps[0] for layer_maps in by_image]

    is_taken = []
    for column, targets in enumerate(TARGETS.T.tolist()):
        own, taken = directions_written_out(exact, similarity, features.double(), exact_images, targets)
        plain, of_others = (np.maximum(maps_along(directions), 0) for directions in (own, taken))
        expected = plain - 0.3 * of_others if others.of_maps else maps_along(own - 0.3 * taken)
        for image in range(2):
            assert_close(maps[image, column], expected[image])
            is_taken.append(np.abs(expected[image] - plain[image]).max() > 0.03 * plain[image].max() > 0)
    assert any(is_taken)  # it makes a difference


@pytest.mark.parametrize("others", [OFF_THE_DIRECTION, OFF_THE_MAP])
def test_what_is_taken_off_changes_nothing_else(others):
    """What knows no text has nothing to take off."""
    model, layer, images, features = setting("layer4")
    plain, less = (
        CLIPGradCAM(model, layer, others=taken).text_maps(images, features, TARGETS) for taken in (None, others)
    )
    assert torch.equal(less.similarities, plain.similarities) and torch.equal(less.targets, plain.targets)
    assert not torch.allclose(less.maps, plain.maps)
    free = [
        CLIPGradCAM(model, layer, method="eigencam", others=taken).text_maps(images, features, TARGETS).maps
        for taken in (None, others)
    ]
    assert torch.equal(*free)


def test_a_map_less_the_others_is_never_above_the_map():
    """And the peaks are of the text's own gradient."""
    model, layer, images, features = setting("layer4")
    plain, less = (
        CLIPGradCAM(model, layer, others=taken).text_maps(images, features, TARGETS) for taken in (None, OFF_THE_MAP)
    )
    torch.testing.assert_close(less.gradient_peaks, plain.gradient_peaks)
    assert (less.maps <= plain.maps.relu() + 1e-9).all()


def test_the_weights_are_the_models_own():
    """A colder model takes off the likeliest of the others, a hot one their mean."""
    model, layer, images, features = setting("layer4")
    own, lone = copy.copy(model), features[:3]
    others = [index for index in range(3) if index != 0]
    with torch.no_grad():
        cosines = F.normalize(model.image_encoder(images), dim=-1) @ lone.T
        likeliest = cosines[:, others].argmax(1)
    for temperature, direction in (
        (1e-4, torch.stack([lone[others[j]] for j in likeliest])),
        (1e4, lone[others].mean(0).expand(2, -1)),
    ):
        own.logits = lambda similarities, by=temperature: similarities / by
        maps = CLIPGradCAM(own, layer, others=Others(0.3, of_maps=True)).text_maps(images, lone, 0).maps[:, 0]
        for image in range(2):
            length = direction[image].norm()
            pair = torch.stack([lone[0], direction[image]])
            t, o = raw_maps(model, layer, images[image : image + 1], pair, "gradcam", targets=torch.tensor([[0, 1]]))[0]
            assert_close(maps[image], t.relu() - 0.3 * length * o.relu(), 1e-3)


# -- several methods from one pass ------------------------------------------------------------


@pytest.mark.parametrize("others", [None, OFF_THE_DIRECTION, OFF_THE_MAP])
@pytest.mark.parametrize("places", [("layer4",), ("layer3", "layer4")])
def test_methods_of_one_pass_are_each_as_alone(places, others, monkeypatch):
    monkeypatch.setattr("models.explain.needs.SCORECAM_CHANNELS", 3)
    model, _, images, features = setting("layer4")
    layers, methods = [setting(place)[1] for place in places], [m for m in LAYER_METHODS if METHODS[m].knows_text]
    cam = CLIPGradCAM(model, layers, others=others)
    together = cam.maps_of_methods(methods, images, features, TARGETS, compare=True)
    all_texts = torch.arange(3).expand(2, -1)
    for method, answer in zip(methods, together, strict=True):
        alone = CLIPGradCAM(model, layers, method=method, others=others)
        assert_close(answer.maps, alone.text_maps(images, features, TARGETS).maps, 1e-5)
        last = CLIPGradCAM(model, layers[-1], method=method, others=others)
        assert_close(answer.compared, last.text_maps(images, features, all_texts).maps, 1e-5)


@pytest.mark.parametrize("others, directions", [(None, 1), (OFF_THE_DIRECTION, 1), (OFF_THE_MAP, 2)])
@pytest.mark.parametrize("compare", [False, True])
def test_one_forward_pass_and_one_backward_pass_for_each_text(others, directions, compare, monkeypatch):
    """And one for what is taken off its map; to compare texts, all are asked once, the explained ones among them."""
    net, images, features = Pooled(channels=12), pictures(2), texts(4)
    encoder, backward = Counting(net), []
    genuine = needs.gradients_of
    monkeypatch.setattr(needs, "gradients_of", lambda *args: backward.append(1) or genuine(*args))
    methods = ["gradcam", "hirescam", "gradcam++", "layercam", "xgradcam"] + ["eigencam"] * (others is None)
    cam = CLIPGradCAM(Clip(encoder), net.conv, others=others)
    assert len(cam.maps_of_methods(methods, images, features, TARGETS, compare=compare)) == len(methods)
    assert encoder.batches == [2] and len(backward) == directions * (4 if compare else 2)


def test_the_coarsest_layer_is_compared_wherever_it_stands():
    model, _, images, features = setting("layer4")
    layers = [setting(place)[1] for place in ("layer4", "layer3")]
    cams = [CLIPGradCAM(model, order) for order in (layers, layers[::-1])]
    one, other = (cam.maps_of_methods(["gradcam"], images, features, 0, compare=True)[0] for cam in cams)
    assert one.compared.shape == (2, 3, 2, 3) and one.maps.shape == (2, 1, 4, 6)
    assert_close(one.compared, other.compared, 1e-6)


# -- names ------------------------------------------------------------------------------------


ATTENTION_METHODS = ["legrad", "attention-gradient", "legrad-attention", "grad-eclip", "rollout"]


def test_all_stands_for_the_methods_that_an_encoder_can_have():
    assert methods_for(built("resnet18"), "all") == LAYER_METHODS
    assert methods_for(built("vit"), "all") == [*LAYER_METHODS, *ATTENTION_METHODS] == list(METHODS)
    assert methods_for(Clip(Pooled()), "all") == LAYER_METHODS  # an encoder that knows of no transformer
    assert methods_for(built("resnet18"), "hirescam") == ["hirescam"]


@pytest.mark.parametrize("name, hint", [("GradCAM++ ", "gradcam++"), ("grad-cam", "gradcam"), ("legrd", "legrad")])
def test_an_unknown_method_names_the_closest_and_all(name, hint):
    net = Pooled()
    for refuse in (check_method, lambda name: CLIPGradCAM(Clip(net), net.conv, method=name)):
        with pytest.raises(InputError, match=rf"最接近的是 {hint.replace('+', '[+]')}；") as error:
            refuse(name)
        assert all(method in str(error.value) for method in METHODS) and "\n" not in str(error.value)


def test_a_method_like_no_other_names_all():
    with pytest.raises(InputError) as error:
        methods_for(Clip(Pooled()), "zzz")
    assert "最接近" not in str(error.value) and "rollout" in str(error.value)


def test_an_unknown_similarity_is_refused():
    net = Pooled()
    with pytest.raises(InputError, match="cosine.*dot.*euclid"):
        CLIPGradCAM(Clip(net), net.conv, similarity="euclid")
