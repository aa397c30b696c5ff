"""Checkpoints of our own whose image tower reads one channel: the grey of an image, as published models of one do."""

import numpy as np
import pytest
import torch
from tiny import gradient_picture, tiny_clip

from clip_gradcam_visualization import explain
from models.clip import CLIPModel
from models.errors import CheckpointError, InputError, InputWarning
from models.images.preprocessing import preprocessing_of
from models.loading.load import load_clip_checkpoint
from models.towers.grey import GREY
from models.towers.image import FIRST_CONVOLUTIONS
from models.weights.names import BACKBONE

ENCODERS = ("resnet18", "starnet_s1", "starnet_dual_pyramid_rcf", "convnext-tiny", "efficientnet-b0", "vit")
LEVELS = {"image_mean": 0.4, "image_std": 0.3}
TEXTS = ["正常假体", "感染"]


def grey_and_colour(encoder) -> tuple[dict, dict]:
    """Weights of one channel, and those of three that read it off as GREY says."""
    grey = {key: tensor.clone() for key, tensor in tiny_clip(encoder).state_dict().items()}
    colour = dict(grey)
    for path in FIRST_CONVOLUTIONS[encoder]:
        key = f"{BACKBONE}{path}.weight"
        grey[key] = grey[key].sum(1, keepdim=True)
        colour[key] = grey[key] * torch.tensor(GREY)[:, None, None]
    return grey, colour


@pytest.fixture(scope="module")
def starnet():
    return grey_and_colour("starnet_s1")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_grey_is_the_network_of_three_channels_that_weighs_them(write_checkpoint, encoder):
    grey, colour = grey_and_colour(encoder)
    size = 224 if encoder == "vit" else 64
    config = {"img_size": size, **LEVELS}
    models = [
        load_clip_checkpoint(write_checkpoint({"state_dict": weights, "config": config}, f"{name}.pth"))
        for name, weights in (("grey", grey), ("colour", colour))
    ]
    assert [model.image_encoder.channels for model in models] == [1, 3]
    images = preprocessing_of(models[0])(gradient_picture())
    with torch.no_grad():
        own, theirs = (model.image_encoder(images) for model in models)
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    own, theirs = (explain(model, gradient_picture(), TEXTS) for model in models)
    np.testing.assert_allclose(own.maps, theirs.maps, rtol=0, atol=1e-4 * np.abs(theirs.maps).max())
    assert own.maps.std() > 0 and own.source == theirs.source


def test_timms_names_of_one_channel(write_checkpoint):
    from test_models import timm_convnext

    grey, _ = grey_and_colour("convnext-tiny")
    length = len(BACKBONE)
    theirs = {BACKBONE + timm_convnext(k[length:]) if k.startswith(BACKBONE) else k: t for k, t in grey.items()}
    assert f"{BACKBONE}stem.0.weight" in theirs
    content = {"net": theirs, "config": {"img_size": 64, **LEVELS}}
    model = load_clip_checkpoint(write_checkpoint(content))
    assert model.image_encoder.channels == 1
    assert torch.equal(model.image_encoder.backbone.features[0][0].weight, theirs[f"{BACKBONE}stem.0.weight"])


def test_its_levels_are_one_number(write_checkpoint, starnet):
    grey, _ = starnet
    path = write_checkpoint({"state_dict": grey, "img_size": 64})
    with pytest.raises(InputError, match="1 个通道.*--mean 和 --std"):
        explain(load_clip_checkpoint(path), gradient_picture(), TEXTS)
    model = load_clip_checkpoint(path, mean=[0.5], std=[0.25])
    assert preprocessing_of(model)[2:4] == ((0.5,) * 3, (0.25,) * 3)
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    path = write_checkpoint({"state_dict": grey, "config": {"img_size": 64, **imagenet}})
    with pytest.warns(InputWarning, match="1 个通道.*三个不同的数，没有采用"):
        model = load_clip_checkpoint(path, mean=[0.5], std=[0.25])
    assert preprocessing_of(model)[2:4] == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(InputError, match="--mean 和 --std"), pytest.warns(InputWarning):
        preprocessing_of(load_clip_checkpoint(path))


def test_a_living_model_becomes_what_its_checkpoint_is(starnet):
    grey, colour = starnet
    model = CLIPModel("starnet_s1", embed_dim=32, text_tower=False).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings = []
    for weights, channels in ((colour, 3), (grey, 1), (colour, 3)):
        model.load_state_dict(weights)
        assert model.image_encoder.channels == channels
        embeddings.append(model.image_encoder(images).detach())
    assert torch.equal(embeddings[0], embeddings[2])
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=0, atol=1e-5)


def test_pyramids_of_different_channels_are_no_model(write_checkpoint):
    grey, colour = grey_and_colour("starnet_dual_pyramid_rcf")
    key = f"{BACKBONE}global_pyr.stem.0.weight"
    with pytest.raises(CheckpointError, match="local.stem.0.0.weight"):
        load_clip_checkpoint(write_checkpoint({**grey, key: colour[key]}))
