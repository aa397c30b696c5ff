"""What was read off a library's model in memory agrees with what that model does, or it is an error.

A picture goes through the caller's own image processor and image tower, and through ours. So a transform, a hook, an
adapter or changed code that the reading does not see never gives the heatmap of another model.
"""

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..images.preprocessing import Preprocessing
from ..messages import Message
from ..towers.published import PretrainedCLIP, as_grey, into_patches
from ..weights.hub import as_input_error

PIXELS = 0.05  # mean difference of normalised values: libraries resize to a level or two of 255 alike
# of an embedding, as a share of its length: what rounding leaves, where one side computes in float32
EMBEDDING = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


_agreed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # library's model -> the structure that was compared


def once(network: nn.Module, preprocessing: Preprocessing, compare: Callable) -> None:
    """Call `compare`, which raises where ours computes something else, unless a model of this structure has passed.

    It costs a pass through both; other weights in the same structure need none.
    """
    structure = preprocessing, [_structure_of(module) for module in network.modules()]
    if _agreed.get(network) != structure:
        compare()
        _agreed[network] = structure


PLAIN = (bool, int, float, str, tuple, type(None))


def _structure_of(module: nn.Module) -> tuple:
    """What decides, beside weights, what a module computes: itself, its settings, its hooks and what was put on it."""
    hooks = (*module._forward_hooks, *module._forward_pre_hooks)
    settings = {name: value for name, value in vars(module).items() if type(value) in PLAIN and name != "training"}
    return id(module), type(module), hooks, sorted(vars(module)), settings


def picture() -> np.ndarray:
    """A smooth picture, twice as wide as high and alike in no two directions, uint8 [96, 192, 3]."""
    row, column = np.mgrid[0:96, 0:192]
    return np.stack([row * 255 // 95, column * 255 // 191, 255 - (row + column) * 255 // 286], -1).astype(np.uint8)


def check_pixels(model: PretrainedCLIP, prepare: Callable) -> None:
    """InputError where `prepare`, RGB uint8 [H, W, 3] -> [1, 3, h, w], does not do what was read off it.

    Of free shapes it gives [1, patches, values].
    """
    with as_input_error(Message("processor 不能处理一张 RGB 图像")):
        theirs = torch.as_tensor(prepare(picture())).float().cpu()
    ours, patches = model.preprocessing(picture()), model.preprocessing.patches
    ours = into_patches(ours, patches[0]) if patches else ours
    if theirs.shape[1:2] == (1,):
        ours = as_grey(ours)
    if theirs.shape != ours.shape or not (theirs - ours).abs().mean() <= PIXELS:
        raise InputError(
            "processor 对图像的处理与它自己写明的不同（它给出 {}，按写明的应是 {}，形状或数值不符）；"
            "请给出验证时用的预处理：缩放、居中裁剪、归一化",
            list(theirs.shape),
            list(ours.shape),
        )


def check_embedding(model: PretrainedCLIP, embed: Callable, name: str) -> None:
    """InputError where `embed`, the library's own, images [1, 3, h, w] -> [1, D], gives another embedding than ours.

    To be called with the library's model in eval mode and without gradients. `name`: of the library's model.
    """
    weight = next(model.image_encoder.parameters())
    images = model.preprocessing(picture()).to(weight.device)
    with as_input_error(Message("{} 的图像编码器不能处理它的预处理给出的输入", name)):
        theirs = embed(images)
        ours = model.image_encoder.embed(images.to(weight.dtype)).float()
    check_alike(ours, theirs, Message("{} 给出的图像嵌入", name))


def check_alike(ours: torch.Tensor, theirs: torch.Tensor, what: Message) -> None:
    """InputError where embeddings [1, D] differ by more than rounding; such as are not finite are judged later."""
    difference = ((ours - theirs.float()).norm() / theirs.float().norm()).item()
    if ours.shape != theirs.shape or difference > EMBEDDING[theirs.dtype]:
        raise InputError(
            "{}与按它的权重和结构算出的不同（相差 {:.2g}）：它的代码被改动过，或有钩子、适配器；"
            "请先合并适配器、去掉改动，或保存后用 load_clip_checkpoint 载入",
            what,
            difference,
        )


def follow(model: PretrainedCLIP, network: nn.Module) -> PretrainedCLIP:
    """The same with the scale, and the bias where there is one, of the library's model, which may train on."""
    model.logit_scale, model.logit_bias = network.logit_scale, getattr(network, "logit_bias", None)
    return model


def refuse_changed(backbone: nn.Module, source: nn.Module) -> None:
    """From now on a pass through `backbone` is an InputError where a weight of `source` was changed since."""
    weights = [weight for weight in (*source.parameters(), *source.buffers()) if not weight.is_inference()]
    versions = [weight._version for weight in weights]

    def check(module, inputs):
        if [weight._version for weight in weights] != versions:
            raise InputError("模型的权重在 living_clip 之后改变了；请对现在的权重再次调用 living_clip")

    backbone.register_forward_pre_hook(check)
