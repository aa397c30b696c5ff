"""Vision transformers of transformers as image towers. The library's own forward pass is the oracle."""

import pytest
import torch
import transformers
from tiny_pretrained import IMAGE, VISION, randomise
from torch import nn

from models.errors import InputError
from models.towers.published import VisionTransformerTower, recognise_vision


def vit(kind="ViT", pooled=True, seed=0, **sizes):
    """A tiny random vision transformer of a kind, in eval mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**VISION, **IMAGE, **sizes)
    return randomise(getattr(transformers, f"{kind}Model")(config, add_pooling_layer=pooled), seed)


@pytest.mark.parametrize("kind, prefix", [("ViT", 1), ("DeiT", 2)])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("side", [32, 48])
def test_a_plain_vit_is_embedded_as_the_library_does(kind, prefix, pooled, side):
    """What is projected is what it pools, else its class token after the last norm; the codes are interpolated."""
    backbone, images = vit(kind, pooled), torch.randn(2, 3, side, side)
    tower = VisionTransformerTower(backbone, nn.Linear(32, 20, bias=False)).eval()
    assert tower.family == recognise_vision(backbone) == "plain-vit" and tower.patch_size == 8
    assert tower.token_grid(side, side) == (prefix, side // 8, side // 8) and tower.positions == 16 + prefix
    transformer, last = tower.transformer(), []
    handle = transformer.blocks[-1].register_forward_hook(lambda *hook: last.append(hook[2]))
    with torch.no_grad():
        output = backbone(images, interpolate_pos_encoding=True)
        expected = tower.projection(output.pooler_output if pooled else output.last_hidden_state[:, 0])
        torch.testing.assert_close(tower.embed(images), expected, rtol=0, atol=1e-6)
        tokens = last[0] if isinstance(last[0], torch.Tensor) else last[0][0]
        assert tokens.shape[1] == prefix + (side // 8) ** 2
        torch.testing.assert_close(transformer.head(tokens[:, 0]), expected, rtol=0, atol=1e-5)
    handle.remove()
    assert transformer.pool is None and len(transformer.blocks) == 3 and transformer.num_heads == 4


def test_a_plain_vit_of_one_channel_sees_the_grey_picture():
    backbone, images = vit(num_channels=1), torch.randn(1, 3, 32, 32)
    tower = VisionTransformerTower(backbone, nn.Identity())
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    with torch.no_grad():
        expected = backbone((images * weights).sum(1, keepdim=True)).pooler_output
        torch.testing.assert_close(tower.embed(images), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="4 个通道"):
        VisionTransformerTower(vit(num_channels=4), nn.Identity())
