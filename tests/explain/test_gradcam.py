"""CLIPGradCAM: the heatmap is the Grad-CAM of the cosine, and a call leaves nothing behind."""

import gc
import re
import warnings

import numpy as np
import pytest
import torch
from reference.reference_weights import reference_image, reference_text_feature
from tiny import Clip, PooledNet, assert_same_map, tiny_clip, vit_blocks
from torch import nn
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM, Explainer, get_target_layer_for_clip
from models.errors import InputError
from models.explain.heatmap import diagnose_flat_map, flatness, resize_map, text_specificity, to_heatmap
from models.explain.question import Others, Question
from models.loading.load import load_clip_checkpoint


def pictures(batch=2, height=32, width=32, seed=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def texts(count=3, embed_dim=5, seed=2):
    return F.normalize(torch.randn(count, embed_dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain_gradient(encoder, layer, images, text):
    """(A, dy/dA) with y the cosine, by retain_grad and a backward pass through the whole net."""
    kept = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output) or output.retain_grad())
    (F.normalize(encoder(images), dim=-1) @ F.normalize(text, dim=-1)).sum().backward()
    handle.remove()
    encoder.zero_grad()
    return kept[0].detach(), kept[0].grad


# -- identities and oracles -------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.ReLU(inplace=True)], ids=["none", "gelu", "relu_"])
def test_equals_finite_differences(activation):
    """<g_k> HW is the derivative of y as channel k rises everywhere at once."""
    net = PooledNet(activation=activation).double()
    images, text = pictures(1).double(), texts().double()[1]
    with torch.no_grad():
        A = net.conv(images)

        def cosine(activations):
            z = net.projection(net.activation(activations.clone()).mean((2, 3)))[0]
            return z @ text / z.norm()

        step, expected = 1e-6, torch.zeros_like(A[0, 0])
        for k in range(A.shape[1]):
            rise = torch.zeros_like(A)
            rise[:, k] = step
            weight = (cosine(A + rise) - cosine(A - rise)) / (2 * step) / A[0, 0].numel()
            expected += weight * A[0, k]
    maps = CLIPGradCAM(Clip(net), net.conv).text_maps(images, text[None], 0).maps[0, 0]
    torch.testing.assert_close(maps, expected.float(), rtol=1e-3, atol=1e-6)


def test_vit_gradient_stops_at_the_class_token():
    """Patch tokens of the last block's output have zero gradient; its first norm, the default, has not."""
    model = tiny_vit()
    images, features = pictures(1, 64, 96), texts(1, 32)
    blocks = vit_blocks(model)
    with pytest.warns(UserWarning, match="梯度为零.*--target-layer"):
        heatmap = CLIPGradCAM(model, blocks[-1])(images, features)
    assert heatmap.shape == (64, 96) and not heatmap.any()
    explanation = CLIPGradCAM(model, get_target_layer_for_clip(model)).text_maps(images, features)
    assert explanation.maps.shape == (1, 1, 4, 6) and explanation.gradient_peaks.min() > 0


def tiny_vit():
    """The ViT tower cut to its last two blocks."""
    model = tiny_clip("vit")
    del vit_blocks(model)[:-2]
    return model


@pytest.mark.parametrize("height, width", [(64, 96), (96, 48), (224, 224)])
def test_vit_grid_is_the_models_and_the_class_token_is_dropped(height, width):
    model, features = tiny_vit(), texts(1, 32)
    images = pictures(1, height, width)
    layer = get_target_layer_for_clip(model)
    maps = CLIPGradCAM(model, layer).text_maps(images, features, 0).maps[0, 0]
    A, g = plain_gradient(model.image_encoder, layer, images, features[0])
    rows, columns = height // 16, width // 16
    assert A.shape[1] == 1 + rows * columns
    expected = (A[0, 1:] @ g[0, 1:].mean(0)).reshape(rows, columns)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


# -- the reference layouts --------------------------------------------------------------------


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_every_layout_gives_its_embedding_and_its_map(layout, tmp_path):
    state_dict, record = layout
    path = tmp_path / "checkpoint.pth"
    torch.save({"model_state_dict": state_dict}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clip_checkpoint(path)  # no flag: the encoder is told by its weights
    path.unlink()
    assert model.image_encoder_name == record["image_encoder"]
    image, text = reference_image(224), reference_text_feature(len(record["embedding"]))
    with torch.no_grad():
        embedding = model.image_encoder(image)[0].numpy()
    np.testing.assert_allclose(embedding, record["embedding"], rtol=0, atol=1e-4)
    explanation = CLIPGradCAM(model, get_target_layer_for_clip(model)).text_maps(image, text)
    assert explanation.similarities.item() == pytest.approx(record["score"], abs=1e-4)
    maps, expected = explanation.maps[0, 0].numpy(), np.array(record["cam_before_relu"])
    assert maps.shape == expected.shape
    assert correlation(maps, expected) >= 0.999
    np.testing.assert_allclose(maps / np.abs(maps).max(), expected / np.abs(expected).max(), rtol=0, atol=2e-3)


# -- the call ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, shape", [(1, (24, 32)), (2, (2, 24, 32)), (5, (5, 24, 32))])
def test_shape_range_and_type(batch, shape):
    net = PooledNet()
    heatmap = CLIPGradCAM(Clip(net), net.conv)(pictures(batch, 24, 32), texts())
    assert isinstance(heatmap, np.ndarray) and heatmap.dtype == np.float32 and heatmap.shape == shape
    assert heatmap.min() >= 0
    assert np.all(heatmap.reshape(batch, -1).max(1) == 1)


def test_one_image_without_a_batch_axis():
    net, images = PooledNet(), pictures(1)
    cam = CLIPGradCAM(Clip(net), net.conv)
    assert_same_map(cam(images[0], texts()), cam(images, texts()))


def test_none_is_the_most_similar_text_of_each_image():
    net, images, features = PooledNet(), pictures(6), texts(4)
    cam = CLIPGradCAM(Clip(net), net.conv)
    with torch.no_grad():
        best = (net(images) @ features.T).argmax(1)
    assert len(set(best.tolist())) > 1
    explanation = cam.text_maps(images, features)
    assert explanation.targets[:, 0].tolist() == best.tolist()
    assert_same_map(cam(images, features), cam(images, features, best.tolist()))


@pytest.mark.parametrize("target", [1, [1, 1], (1, 1), np.int64(1), np.array([1, 1]), torch.tensor([1, 1])], ids=repr)
def test_targets_in_every_form(target):
    net, images, features = PooledNet(), pictures(2), texts()
    cam = CLIPGradCAM(Clip(net), net.conv)
    assert_same_map(cam(images, features, target), np.stack([cam(i[None], features, 1) for i in images]))


@pytest.mark.parametrize(
    "target, message",
    [
        (3, "可用 0 到 2"),
        (-1, "可用 0 到 2"),
        ([0, 7], "可用 0 到 2"),
        ([0, 1, 2], "3 个.*2 张"),
        (0.5, "整数"),
        (True, "整数"),
    ],
)
def test_a_target_that_cannot_be_is_refused(target, message):
    net = PooledNet()
    with pytest.raises(InputError, match=message):
        CLIPGradCAM(Clip(net), net.conv)(pictures(2), texts(), target)


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_the_length_of_a_text_vector_does_not_matter(factor):
    net, images = PooledNet(), pictures(1)
    cam = CLIPGradCAM(Clip(net), net.conv)
    one, other = (cam.text_maps(images, features, 0) for features in (texts(), factor * texts()))
    torch.testing.assert_close(one.similarities, other.similarities)
    torch.testing.assert_close(one.maps, other.maps)


def test_the_map_of_a_text_knows_nothing_of_the_other_texts():
    """The similarity is explained, not a softmax: one text alone gives the same map as among nine."""
    net, images, features = PooledNet(), pictures(1), texts(9)
    cam = CLIPGradCAM(Clip(net), net.conv)
    torch.testing.assert_close(cam.text_maps(images, features, 4).maps, cam.text_maps(images, features[4:5], 0).maps)


def test_channels_last_maps_are_read_as_such():
    """torchvision's ConvNeXt keeps [B, h, w, C] inside its blocks."""
    net = PooledNet(channels=6)

    class ChannelsLast(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    class Back(nn.Module):
        def forward(self, x):
            return x.permute(0, 3, 1, 2)

    net.activation = nn.Sequential(ChannelsLast(), Back())
    images = pictures(1, 128, 96)  # a grid of 32 x 24: no mistaking 6 channels for a side
    expected = CLIPGradCAM(Clip(net), net.conv).text_maps(images, texts(), 0).maps
    torch.testing.assert_close(CLIPGradCAM(Clip(net), net.activation[0]).text_maps(images, texts(), 0).maps, expected)


@pytest.mark.parametrize("layer, message", [("projection", "空间特征图"), ("unused", "没有参与")])
def test_a_layer_without_a_map_is_refused(layer, message):
    net = PooledNet()
    net.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match=message):
        CLIPGradCAM(Clip(net), getattr(net, layer))(pictures(), texts())


def test_tokens_that_do_not_fit_the_grid_are_refused_with_both_numbers():
    model = tiny_vit()
    model.image_encoder.token_grid = lambda height, width: (1, 3, 5)
    with pytest.raises(InputError, match="17 .*1 \\+ 3×5"):
        CLIPGradCAM(model, get_target_layer_for_clip(model))(pictures(1, 64, 64), texts(1, 32))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(poison):
    net = PooledNet()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = poison
    with pytest.raises(InputError, match="NaN"):
        CLIPGradCAM(Clip(net), net.conv)(pictures(), texts())


# -- the call leaves nothing behind -----------------------------------------------------------


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def state_of(model):
    return (
        [(name, p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()],
        [module.training for module in model.modules()],
        hook_count(model),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    for (name, flag, grad), (same_name, same_flag, same_grad) in zip(before[0], after[0], strict=True):
        assert (name, flag) == (same_name, same_flag)
        assert (grad is None) == (same_grad is None)
        assert grad is None or torch.equal(grad, same_grad)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_weights_and_grad_modes_make_no_difference(resnet_clip, surrounding, frozen):
    images, features = pictures(2, 64, 64), texts(3, 32)
    cam = CLIPGradCAM(resnet_clip, get_target_layer_for_clip(resnet_clip))
    expected = cam(images, features)
    try:
        resnet_clip.requires_grad_(not frozen)
        before = state_of(resnet_clip)
        with surrounding():
            inside = surrounding is torch.inference_mode
            fresh = images.clone() if inside else images  # tensors made in inference mode are of their own kind
            result = cam(fresh, features.clone())
            assert torch.is_inference_mode_enabled() == inside
        assert_same_state(before, state_of(resnet_clip))
    finally:
        resnet_clip.requires_grad_(True)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_inference_mode_where_a_branch_reads_the_image_after_the_layer():
    """The dual pyramid's local branch starts from the image once its global branch is through."""
    model = tiny_clip("starnet_dual_pyramid_rcf")
    cam = CLIPGradCAM(model, model.image_encoder.backbone.global_pyr.stages[1])
    images, features = pictures(1, 64, 64), texts(1, 32)
    expected = cam(images, features)
    with torch.inference_mode():
        np.testing.assert_allclose(cam(images.clone(), features), expected, atol=1e-5)


def test_gradients_flags_and_modes_of_the_caller_stay():
    net = PooledNet(activation=nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5)))
    model = Clip(net).train()
    net.activation[0].eval()  # a frozen norm in a model that trains
    net.projection.requires_grad_(False)
    net(pictures()).sum().backward()
    images, features = pictures().requires_grad_(), texts().requires_grad_()
    statistics = net.activation[0].running_mean.clone()
    before = state_of(model)
    first = CLIPGradCAM(model, net.conv)(images, features)
    assert_same_state(before, state_of(model))
    assert images.grad is None and features.grad is None
    assert torch.equal(statistics, net.activation[0].running_mean)
    assert_same_map(first, CLIPGradCAM(model, net.conv)(images, features))  # no dropout inside


@pytest.mark.parametrize("dtype, least", [(torch.float16, 0.99), (torch.bfloat16, 0.97), (torch.float64, 0.9999)])
def test_other_precisions(dtype, least):
    net, images, features = PooledNet(activation=nn.GELU()), pictures(), texts()
    expected = CLIPGradCAM(Clip(net), net.conv).text_maps(images, features, 0)
    explanation = CLIPGradCAM(Clip(net.to(dtype)), net.conv).text_maps(images, features, 0)
    assert explanation.maps.dtype == torch.float32 and explanation.gradient_peaks.dtype == torch.float32
    for mine, theirs in zip(explanation.maps, expected.maps, strict=True):
        assert correlation(mine, theirs) > least


def test_gradients_below_the_smallest_float16_are_kept():
    """A large grid divides the gradient of the mean by its cells: 3e-8 and less is nothing in float16."""
    net, images, features = PooledNet(), pictures(1, 1024, 1024), texts()
    with torch.no_grad():
        for parameter in net.conv.parameters():
            parameter *= 500  # a long vector before it is normalised
    expected = CLIPGradCAM(Clip(net), net.conv).text_maps(images, features, 0)
    assert expected.gradient_peaks.item() < 2e-7  # float16 has steps of 6e-8 there
    explanation = CLIPGradCAM(Clip(net.half()), net.conv).text_maps(images, features, 0)
    assert correlation(explanation.maps, expected.maps) > 0.99


def test_an_exception_inside_leaves_no_hook():
    class Fails(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("inside")

    net = PooledNet(activation=Fails())
    model = Clip(net).train()
    before = state_of(model)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        CLIPGradCAM(model, net.conv)(pictures(), texts())
    with pytest.raises(ZeroDivisionError), CLIPGradCAM(model, net.conv) as cam:
        cam(pictures(), texts())
    assert_same_state(before, state_of(model))
    net.activation = nn.Identity()
    with pytest.raises(InputError):
        CLIPGradCAM(model, net.conv)(pictures(), texts(), 99)
    assert hook_count(model) == 0


def test_other_peoples_hooks_stay_and_run():
    net, seen = PooledNet(), []
    handle = net.conv.register_forward_hook(lambda module, inputs, output: seen.append(1) and None)
    CLIPGradCAM(Clip(net), net.conv)(pictures(), texts())
    assert seen == [1] and hook_count(net) == 1
    handle.remove()


def test_context_manager_gives_the_same_map():
    net, images, features = PooledNet(), pictures(), texts()
    with CLIPGradCAM(Clip(net), net.conv) as cam:
        inside = cam(images, features)
    assert_same_map(inside, CLIPGradCAM(Clip(net), net.conv)(images, features))
    assert hook_count(net) == 0


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_thousand_calls_leave_no_tensor_and_no_hook():
    net, images, features = PooledNet(activation=nn.ReLU(inplace=True)), pictures(1, 8, 8), texts()
    model = Clip(net)
    cam = CLIPGradCAM(model, net.conv)
    kept = cam.text_maps(images, features)
    assert kept.maps.grad_fn is None and kept.similarities.grad_fn is None
    before = live_tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1000):
            cam(images, features)
    assert live_tensors() == before
    assert hook_count(model) == 0


def test_the_graph_is_gone_when_the_call_returns():
    alive = set()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # the tensor itself would keep its own graph alive
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    packed = []
    net = PooledNet(activation=nn.GELU())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or Saved(t), lambda saved: saved.tensor):
        explanation = CLIPGradCAM(Clip(net), net.conv).text_maps(pictures(), texts())
    assert packed and explanation.maps.shape[0] == 2
    gc.collect()
    assert not alive


# -- from map to heatmap ----------------------------------------------------------------------


def test_resized_with_pixel_centres_on_half_integers():
    heatmap = to_heatmap(torch.tensor([[4.0, 0.0], [-3.0, 0.0]]), (4, 4))
    row = np.array([1, 0.75, 0.25, 0])
    np.testing.assert_allclose(heatmap, np.outer(row, row), atol=1e-6)


@pytest.mark.parametrize("size", [(7, 7), (50, 31), (224, 224), (3, 5)])
def test_maximum_is_one_at_every_size(size):
    heatmap = to_heatmap(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)) * 1e-9, size)
    assert heatmap.shape == size and heatmap.dtype == np.float32
    assert heatmap.max() == 1 and heatmap.min() >= 0


@pytest.mark.parametrize("level", [-2.0, 0.0, 3.0])
def test_a_flat_map_is_zeros_and_never_nan(level):
    assert not to_heatmap(torch.full((7, 7), level), (14, 14)).any()


class WithNorm(Clip):
    def __init__(self, trained):
        super().__init__(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
        nn.init.constant_(self.image_encoder[1].weight, 0.9 if trained else 1.0)


FLAT = {
    "gradient": (torch.zeros(2, 2), 0.0, "梯度为零.*--target-layer"),
    "negative": (torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), 1.0, "不为正.*文本"),
    "constant": (torch.ones(3, 3), 1.0, "各处的值相同（3×3 网格）.*--target-layer"),
    "one cell": (-torch.ones(1, 1), 1.0, "各处的值相同（1×1 网格）.*--target-layer"),
}


@pytest.mark.parametrize("cause", FLAT)
@pytest.mark.parametrize("trained", [True, False])
def test_why_a_map_is_flat(cause, trained):
    raw_map, peak, message = FLAT[cause]
    flaw = str(diagnose_flat_map(WithNorm(trained), raw_map, torch.tensor(peak)))
    assert re.search(message, flaw)
    assert ("未经训练" in flaw) == (not trained)
    assert "\n" not in flaw
    assert sum(words in flaw for words in ("梯度为零", "不为正", "各处的值相同")) == 1


@pytest.mark.parametrize(
    "cause, message",
    [
        ("gradient", "梯度为零"),
        ("negative", "没有一处比其他文本"),
        ("constant", "各处的值相同"),
        ("one cell", "没有一处"),
    ],
)
def test_why_a_map_is_flat_where_the_other_texts_were_taken_off(cause, message):
    """Nothing is left: the others are held more everywhere, which does not make the text the image's opposite."""
    raw_map, peak, _ = FLAT[cause]
    flaw = str(diagnose_flat_map(WithNorm(True), raw_map, torch.tensor(peak), others_subtracted=True))
    assert re.search(f"热力图为空：.*{message}", flaw) and "不为正" not in flaw
    assert ("请看概率" in flaw) == ("没有一处" in message)
    assert diagnose_flat_map(WithNorm(True), torch.tensor([[-1.0, 0.5]]), 1.0, others_subtracted=True) is None


def test_a_text_that_another_is_held_for_more_everywhere_has_an_empty_map():
    """Own = 0.2 F, others = F where the fifth number of an embedding is always zero: 0.2 F - 0.3 F < 0 where F > 0."""
    net = PooledNet()
    net.embed = lambda images: net.projection(net.conv(images).mean((2, 3)))
    with torch.no_grad():
        net.projection.weight[4] = 0
    features = torch.tensor([[0.2, 0, 0, 0, 0.96**0.5], [1.0, 0, 0, 0, 0]])
    cam = CLIPGradCAM(Clip(net), net.conv, similarity="dot", others=Others(0.3, of_maps=True))
    with pytest.warns(UserWarning, match="没有一处比其他文本更支持这段文本"):
        assert not cam(pictures(1), features, 0).any()
    plain = CLIPGradCAM(Clip(net), net.conv, similarity="dot")
    assert_same_map(cam(pictures(1), features, 1), plain(pictures(1), features, 1))  # F - 0.06 F


def test_a_map_that_shows_something_has_no_flaw():
    assert diagnose_flat_map(WithNorm(False), torch.tensor([[-1.0, 0.5]]), torch.tensor(1.0)) is None


def test_a_flat_image_of_a_batch_is_warned_about_and_the_rest_is_drawn():
    net = PooledNet()
    with torch.no_grad():
        net.conv.bias.fill_(0.3)
    images = pictures(2)
    images[0] = 0  # every cell alike: A is the bias everywhere
    with pytest.warns(UserWarning, match="热力图为空"):
        heatmaps = CLIPGradCAM(Clip(net), net.conv)(images, texts())
    assert not heatmaps[0].any() and heatmaps[1].max() == 1


# -- contrast ---------------------------------------------------------------------------------


def test_contrast_of_grad_cam_is_the_difference_of_the_maps(clip):
    """Grad-CAM before the ReLU is linear in what is explained."""
    cam = CLIPGradCAM(clip, get_target_layer_for_clip(clip))
    images, features = pictures(2, 64, 64), texts(3, 32)
    all_texts = torch.arange(3).expand(2, 3)
    plain, contrast = (cam.text_maps(images, features, all_texts, contrast=gamma) for gamma in (0.0, 0.6))
    expected = torch.stack([plain.maps[:, k] - 0.3 * (plain.maps.sum(1) - plain.maps[:, k]) for k in range(3)], 1)
    torch.testing.assert_close(contrast.maps, expected, rtol=1e-3, atol=1e-6 * float(plain.maps.abs().max()))
    torch.testing.assert_close(contrast.similarities, plain.similarities, rtol=0, atol=0)


def test_contrast_needs_another_text():
    net = PooledNet()
    with pytest.raises(InputError, match="至少需要两个"):
        CLIPGradCAM(Clip(net), net.conv).text_maps(pictures(1), texts(1), 0, contrast=0.6)


# -- several texts: specificity, one scale ----------------------------------------------------


def test_text_specificity_is_1_less_the_mean_correlation_with_the_other_maps():
    maps = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    positive = np.maximum(maps, 0).reshape(4, -1)
    for target in range(4):
        r = np.mean([np.corrcoef(positive[target], positive[i])[0, 1] for i in range(4) if i != target])
        assert text_specificity(maps, target) == pytest.approx(1 - r, abs=1e-6)


@pytest.mark.parametrize(
    "maps, expected",
    [
        ([[[1, 2]], [[2, 4]]], 0.0),
        ([[[1, 2]], [[2, 1]]], 2.0),
        ([[[1, 2, 1, 2]], [[1, 1, 2, 2]]], 1.0),
        ([[[1, 2]]], None),
        ([[[1, 2]], [[3, 3]]], 1.0),
        ([[[-1, -2]], [[1, 2]]], None),
        ([[[1, 2]], [[-1, -1]], [[1, 3]]], 0.5),
    ],
)
def test_text_specificity_at_its_ends_and_without_another_map(maps, expected):
    value = text_specificity(np.array(maps, np.float32), 0)
    assert value is None if expected is None else value == pytest.approx(expected)


def test_no_map_of_equal_ones_has_a_specificity_below_0():
    """A minus zero would stand in the table."""
    maps = np.random.default_rng(0).normal(size=(500, 1, 5, 6)).astype(np.float32)
    values = [text_specificity(np.repeat(one, 3, axis=0), 1) for one in maps]
    assert not np.signbit(values).any() and max(values) < 1e-12


@pytest.mark.parametrize("level, expected", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_one_colour_is_flat(level, expected):
    assert flatness(np.full((3, 4), level, np.float32)) == expected


def test_flatness_is_lowest_by_highest_after_the_relu():
    assert flatness(np.array([[1.0, 4.0]])) == 0.25 and flatness(np.array([[-1.0, 4.0]])) == 0


def test_heatmaps_on_a_scale_of_their_own_and_on_one_given():
    raw = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    resized = resize_map(raw, (20, 30))
    assert resized.dtype == np.float32 and resized.max() == pytest.approx(4)
    np.testing.assert_allclose(to_heatmap(raw, (20, 30)), resized / resized.max(), rtol=1e-6)
    np.testing.assert_allclose(to_heatmap(raw, (20, 30), scale=8), resized / 8, rtol=1e-6)
    assert (resize_map(-raw, (4, 4)) == 0).all()


def test_a_twin_gives_the_same_bits_over_the_same_weights(clip):
    question = Question(["甲", "乙", "丙"], ["甲", "乙", "丙"])
    explainer = Explainer(clip, texts(3, 32), question)
    twin = explainer.twin()
    (layer,), (twins,) = (e.cams[0].layers for e in (explainer, twin))
    assert layer is not twins and twin.layer_names == explainer.layer_names
    ours, theirs = explainer.model.image_encoder, twin.model.image_encoder
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(ours.parameters(), theirs.parameters()))
    images = pictures(3, 64, 64)
    for (one,), (other,) in zip(explainer(images), twin(images)):
        assert all(np.array_equal(a, b) for a, b in zip(one[:6], other[:6]))


@pytest.mark.parametrize("encoder", ["resnet18", "starnet_s1", "efficientnet-b0"])
def test_an_image_has_the_same_bits_whatever_fills_the_rest_of_its_chunk(encoder):
    """What makes a resumed run equal to an undisturbed one: images already done are zeros in the chunk."""
    model = tiny_clip(encoder)
    explainer = Explainer(model, texts(3, 32), Question(["甲", "乙", "丙"], ["甲", "乙", "丙"]))
    images = pictures(5, 64, 64)
    alone = torch.zeros_like(images)
    alone[3] = images[3]
    (one,), (other,) = explainer(images)[3], explainer(alone)[3]
    for part, same in zip(one[:6], other[:6]):
        np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("scale, untrained", [(1.0, True), (0.9, False)])
def test_norms_without_a_shift_tell_of_training_too(scale, untrained):
    net = PooledNet(activation=nn.GroupNorm(1, 6))
    net.norm = nn.LayerNorm(4, bias=False)
    with torch.no_grad():
        net.norm.weight.fill_(scale)
    flaw = str(diagnose_flat_map(Clip(net), torch.zeros(2, 2), 0.0))
    assert ("未经训练" in flaw) == untrained
