"""The layer that Grad-CAM explains."""

import pytest
import torch
from test_models import ALL_ENCODERS, on_meta
from tiny import Clip, PooledNet, tiny_clip, vit_blocks

from clip_gradcam_visualization import CLIPGradCAM, get_target_layer_for_clip
from models.errors import InputError
from models.explain.defaults import OWN_ENCODERS
from models.explain.layers import find_layer, layer_name, list_spatial_layers

# encoder -> (path of the layer below the backbone, its channels)
EXPECTED = {
    "resnet18": ("layer4.1", 512),
    "resnet34": ("layer4.2", 512),
    "resnet50": ("layer4.2", 2048),
    "resnet101": ("layer4.2", 2048),
    "resnet152": ("layer4.2", 2048),
    "starnet_s1": ("stages.3.3", 192),
    "starnet_s2": ("stages.3.2", 256),
    "starnet_s3": ("stages.3.4", 256),
    "starnet_s4": ("stages.3.5", 256),
    "starnet_dual_pyramid_rcf": ("norm", 192),
    "convnext-tiny": ("features.7.2", 768),
    "convnext-small": ("features.7.2", 768),
    "convnext-base": ("features.7.2", 1024),
    "convnext-large": ("features.7.2", 1536),
    "efficientnet-b0": ("features.8", 1280),
    "efficientnet-b1": ("features.8", 1280),
    "efficientnet-b2": ("features.8", 1408),
    "efficientnet-b3": ("features.8", 1536),
    "efficientnet-b4": ("features.8", 1792),
    "efficientnet-b5": ("features.8", 2048),
    "efficientnet-b6": ("features.8", 2304),
    "efficientnet-b7": ("features.8", 2560),
    "vit": ("layers.11.layernorm_before", 768),
}


@pytest.mark.parametrize("encoder", ALL_ENCODERS)
def test_the_default_layer_is_the_last_spatial_map(encoder):
    model = on_meta(encoder)
    path, channels = EXPECTED[encoder]
    if encoder == "vit" and not hasattr(model.image_encoder.backbone, "layers"):
        path = path.replace("layers", "encoder.layer")  # transformers 4
    layer = get_target_layer_for_clip(model, encoder)
    assert layer is get_target_layer_for_clip(model)
    assert layer is model.image_encoder.backbone.get_submodule(path)
    assert layer_name(model, layer) == path
    shapes = dict(list_spatial_layers(model, 224))
    assert shapes[path] == ((channels, 14, 14) if encoder == "vit" else (channels, 7, 7))


def test_every_encoder_has_a_row():
    assert list(OWN_ENCODERS) == list(ALL_ENCODERS)


@pytest.mark.parametrize(
    "encoder", ["resnet34", "starnet_s2", "starnet_dual_pyramid_rcf", "convnext-tiny", "efficientnet-b1"]
)
def test_the_default_layer_gives_a_map_that_shows_something(encoder):
    model = tiny_clip(encoder)
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    explanation = CLIPGradCAM(model, get_target_layer_for_clip(model)).text_maps(images, features)
    assert explanation.maps.shape == (1, 1, 3, 2)
    assert explanation.maps.std() > 0 and explanation.gradient_peaks.item() > 0


@pytest.mark.parametrize("name, close", [("resnet51", "resnet5"), ("convnext_tiny", "convnext-tiny"), ("mixer", None)])
def test_an_encoder_without_a_row_is_answered_with_the_closest(clip, name, close):
    with pytest.raises(ValueError) as caught:
        get_target_layer_for_clip(clip, name)
    message = str(caught.value)
    assert "--target-layer" in message and all(encoder in message for encoder in OWN_ENCODERS)
    hint = message.split("支持：")[0]
    assert close in hint if close else "最接近" not in hint


@pytest.mark.parametrize(
    "name", ["stages.3.1", "backbone.stages.3.1", "image_encoder.backbone.stages.3.1"], ids=["net", "tower", "model"]
)
def test_a_layer_by_its_path_from_the_net_the_tower_or_the_model(clip, name):
    assert find_layer(clip, name) is clip.image_encoder.backbone.stages[3][1]
    assert layer_name(clip, find_layer(clip, name)) == "stages.3.1"


@pytest.mark.parametrize("name, close", [("stages.3.11", "stages.3.1"), ("stage.2.1", "stages.2.1"), ("nrom", "norm")])
def test_a_path_that_is_not_there_names_the_closest(clip, name, close):
    with pytest.raises(InputError, match=f"{name}.*{close}.*--list-layers"):
        find_layer(clip, name)


@pytest.mark.parametrize("name", ["", "髋", "@@@@"])
def test_a_path_unlike_any_is_still_a_sentence(clip, name):
    with pytest.raises(InputError, match="--list-layers") as caught:
        find_layer(clip, name)
    assert "最接近的是 ；" not in str(caught.value)


def test_a_layer_of_a_foreign_model_has_a_name():
    net = PooledNet()
    assert layer_name(Clip(net), net.conv) == "image_encoder.conv"
    assert layer_name(Clip(net), torch.nn.ReLU()) == "ReLU"


def test_listed_layers_are_those_that_give_a_map(clip):
    layers = list_spatial_layers(clip, 64)
    names = [name for name, _ in layers]
    assert len(names) == len(set(names)) and {"stem", "stages.0", "stages.3.3", "norm"} <= set(names)
    shapes = dict(layers)
    assert shapes["stem"] == (32, 32, 32) and shapes["stages.1"] == (48, 8, 8) and shapes["norm"] == (192, 2, 2)
    images, features = torch.randn(1, 3, 64, 64), torch.randn(1, 32)
    for name, (_, rows, columns) in layers[:: len(layers) // 6]:
        assert CLIPGradCAM(clip, find_layer(clip, name)).text_maps(images, features).maps.shape[-2:] == (rows, columns)


def test_listing_leaves_no_hook_and_no_mode_behind():
    model = tiny_clip().train()
    list_spatial_layers(model, 64)
    assert model.image_encoder.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    statistics = model.image_encoder.backbone.norm.running_mean.clone()
    list_spatial_layers(model, 64)
    assert torch.equal(model.image_encoder.backbone.norm.running_mean, statistics)


def test_convnext_and_vit_list_maps_in_either_order():
    shapes = dict(list_spatial_layers(on_meta("convnext-tiny"), 224))
    assert shapes["features.1.0"] == (96, 56, 56)
    assert shapes["features.1.0.block.2"] == (96, 56, 56)  # channels last
    model = on_meta("vit")
    shapes = dict(list_spatial_layers(model, 224))
    blocks = [layer_name(model, block) for block in vit_blocks(model)]
    assert len(blocks) == 12 and all(shapes[block] == (768, 14, 14) for block in blocks)
    assert (3072, 14, 14) in shapes.values()
