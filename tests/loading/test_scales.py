"""What a checkpoint of our own says of its scale: a temperature, a logit_scale, a logit_bias."""

import math
import warnings

import pytest
import torch
from tiny import gradient_picture

from clip_gradcam_visualization import explain
from models.errors import CheckpointError, InputWarning
from models.loading.load import load_clip_checkpoint


def without_temperature(clip) -> dict:
    return {key: tensor for key, tensor in clip.state_dict().items() if key != "temperature"}


SCALES_AT = {
    "among the weights": lambda weights, scale: {**weights, "logit_scale": torch.tensor([scale])},
    "below a prefix": lambda w, scale: {f"model.{k}": t for k, t in {**w, "logit_scale": torch.tensor(scale)}.items()},
    "beside the weights": lambda weights, scale: {"state_dict": weights, "logit_scale": torch.tensor(scale)},
    "in the config": lambda weights, scale: {"net": weights, "config": {"logit_scale": scale}},
    "before the config": lambda w, scale: {
        "net": {**w, "logit_scale": torch.tensor(scale)},
        "config": {"temperature": 0.5, "logit_scale": 1},
    },
}


@pytest.mark.parametrize("place", SCALES_AT)
def test_a_logit_scale_is_a_temperature(clip, write_checkpoint, place):
    content = SCALES_AT[place](without_temperature(clip), 3.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_clip_checkpoint(write_checkpoint(content))
    assert float(model.temperature) == pytest.approx(math.exp(-3.25), rel=1e-6)


@pytest.mark.parametrize(
    "scale, temperature, message",
    [
        (100.0, 0.01, "已经取过指数.*0.01"),
        (1 / 0.07, 0.07, "已经取过指数.*0.07"),
        (8.0, 0.125, "已经取过指数"),
        (5.5, math.exp(-5.5), "不是常见的值"),
        (0.07, math.exp(-0.07), "不是常见的值"),
        (-2.0, math.exp(2.0), "不是常见的值"),
    ],
)
def test_an_unusual_logit_scale_is_told(clip, write_checkpoint, scale, temperature, message):
    with pytest.warns(InputWarning, match=f"logit_scale.*{message}") as caught:
        content = {**without_temperature(clip), "logit_scale": torch.tensor(scale)}
        model = load_clip_checkpoint(write_checkpoint(content))
    assert float(model.temperature) == pytest.approx(temperature, rel=1e-5) and len(caught) == 1


@pytest.mark.parametrize("scale", [torch.tensor(math.nan), torch.tensor(1e9), torch.tensor(-100.0), torch.ones(3)])
def test_a_logit_scale_that_is_none_is_refused(clip, write_checkpoint, scale):
    with pytest.raises(CheckpointError, match="logit_scale"):
        load_clip_checkpoint(write_checkpoint({**without_temperature(clip), "logit_scale": scale}))


def test_a_temperature_beside_a_logit_scale(clip, write_checkpoint):
    for scale in (-math.log(0.07), 1 / 0.07):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_clip_checkpoint(write_checkpoint({**clip.state_dict(), "logit_scale": torch.tensor(scale)}))
    with pytest.warns(InputWarning, match=r"temperature 是 0.07，logit_scale 是 2（即 temperature 0.135.*不一致"):
        model = load_clip_checkpoint(write_checkpoint({**clip.state_dict(), "logit_scale": torch.tensor(2.0)}))
    assert float(model.temperature) == pytest.approx(0.07)


@pytest.mark.parametrize("beside", [False, True])
def test_a_logit_bias_makes_each_probability_its_own(clip, write_checkpoint, beside):
    scales = {"logit_scale": torch.tensor(2.3), "logit_bias": torch.tensor([-1.5])}
    weights = without_temperature(clip)
    model = load_clip_checkpoint(write_checkpoint({"state_dict": weights, **scales} if beside else weights | scales))
    similarities = torch.tensor([[0.3, -0.2, 0.9]])
    expected = torch.sigmoid(math.exp(2.3) * similarities - 1.5)
    torch.testing.assert_close(model.probabilities(similarities), expected)
    torch.testing.assert_close(model.logits(similarities).sigmoid(), expected)
    result = explain(model, gradient_picture(), ["正常假体", "感染"])
    assert result.independent and model.independent_probabilities
    again = load_clip_checkpoint(write_checkpoint(model.state_dict(), "again.pth"))
    assert torch.equal(again.probabilities(similarities), model.probabilities(similarities))
    again.load_state_dict(clip.state_dict())  # another checkpoint, without one
    assert not again.independent_probabilities
