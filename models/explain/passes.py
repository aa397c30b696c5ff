"""One pass of images through an image tower: what may go in, and why nothing sensible came out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import chain

import numpy as np

from ..errors import InputError, reason
from ..heavy import torch
from ..messages import Joined, Message

PIXELS = Message("像素请用 explain，或先做预处理：preprocessing_of(model)(像素)")


def model_input(images) -> torch.Tensor:
    """A tensor or an array [B, C, H, W] or [C, H, W] of floating point -> a tensor [B, C, H, W]; else InputError."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "fiub" and images.itemsize <= 8:
        images = torch.from_numpy(np.ascontiguousarray(images, images.dtype.newbyteorder("=")))
    if not isinstance(images, torch.Tensor):
        raise InputError("images 应是模型的输入 [B, 3, H, W]，收到的是 {}；{}", type(images).__name__, PIXELS)
    shape = list(images.shape)
    if not images.is_floating_point():
        raise InputError("images 应是归一化之后的浮点数，收到 {}，形状 {}；{}", images.dtype, shape, PIXELS)
    if images.ndim not in (3, 4):
        raise InputError("images 应是模型的输入 [B, 3, H, W]，收到的形状是 {}；{}", shape, PIXELS)
    if 0 in shape:
        raise InputError("images 是空的，形状 {}", shape)
    return images[None] if images.ndim == 3 else images


def placement(tower: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a tower's weights are, and their precision: of the first that autograd can compute with."""
    weights = chain(tower.parameters(), tower.buffers())
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    weight = next((w for w in weights if w.dtype in kinds), torch.empty(0, dtype=torch.float32, device="cpu"))
    return weight.device, weight.dtype


@contextlib.contextmanager
def through(tower: torch.nn.Module, images: torch.Tensor) -> Iterator[None]:
    """While images go through a tower: what it cannot take is an InputError with the cause."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        if re.search(r"out of memory|allocate", str(error)):
            raise
        raise InputError(_why_failed(tower, images, error)) from error


def check_embeddings(tower: torch.nn.Module, images: torch.Tensor, embeddings: torch.Tensor) -> None:
    """InputError, with the cause, where an embedding [B, D] of the images is not finite or has no direction."""
    if not isinstance(embeddings, torch.Tensor):
        raise InputError("图像编码器给出的是 {}，应是嵌入 [B, D] 的张量；请在编码器中取出它", type(embeddings).__name__)
    if embeddings.ndim != 2 or len(embeddings) != len(images):
        raise InputError("图像编码器给出的形状是 {}，应是嵌入 [B, D]，B = {}", list(embeddings.shape), len(images))
    lengths = embeddings.detach().float().norm(dim=-1)
    if not (torch.isfinite(lengths) & (lengths > 0)).all():
        raise InputError(_why_no_direction(tower, images, lengths))


def _why_failed(tower, images, error) -> Message:
    """Why a tower could not take the images, in one line."""
    weights = dict(tower.named_parameters()) | dict(tower.named_buffers())
    convolution = next((m for m in tower.modules() if isinstance(m, torch.nn.Conv2d)), None)
    channels = convolution and convolution.in_channels
    shape, devices = list(images.shape), {str(w.device) for w in weights.values()}
    empty = next((name for name, w in weights.items() if w.is_meta), None)
    if empty is not None:
        return Message(
            "图像编码器的权重 {} 还在 meta 设备上，没有数值；请先载入权重，例如 load_clip_checkpoint(路径)", empty
        )
    if len(devices) > 1:
        return Message(
            "图像编码器的权重在不同的设备上（{}）；请用 model.to(设备) 移到一个设备", Joined("、", sorted(devices))
        )
    if any(w.is_inference() for w in weights.values()):
        return Message("模型是在 torch.inference_mode() 之内建立的，不能求梯度；请在它之外建立或载入模型")
    reads_grey = getattr(tower, "channels", None) == 1  # of images of three channels
    if channels and channels != shape[1] and not reads_grey:
        order = Message("（形状应是 [B, C, H, W]，通道在前）") if shape[-1] == channels else ""
        return Message(
            "图像有 {} 个通道，图像编码器的第一个卷积要 {} 个{}；本工具的图像是 RGB，3 个通道",
            shape[1],
            channels,
            order,
        )
    if convolution and min(shape[2:]) < min(convolution.kernel_size):
        least = "×".join(map(str, convolution.kernel_size))
        return Message(
            "图像大小 {}×{} 小于图像编码器第一个卷积的 {}；请加大 --img-size（img_size）", shape[2], shape[3], least
        )
    precisions = {str(w.dtype) for w in weights.values() if w.is_floating_point()}
    if len(precisions) > 1 and "dtype" in str(error):
        return Message(
            "图像编码器的权重有几种精度（{}），不能一起计算；请先用 model.float()", Joined("、", sorted(precisions))
        )
    return Message(
        "图像编码器不能处理形状 {} 的输入：{}；请检查图像大小（--img-size、img_size）和模型", shape, reason(error)
    )


def _why_no_direction(tower, images, lengths) -> Message:
    """Why an embedding of a length that is zero, or no number, cannot be compared."""
    if torch.isfinite(lengths).all():
        return Message("图像的嵌入全是零，没有方向，不能与文本比较；请检查检查点的权重")
    return Message("图像的嵌入中有 NaN 或无穷大：{}", why_not_finite(tower, images))


def why_not_finite(tower: torch.nn.Module, images: torch.Tensor) -> str:
    """Where numbers that are none come from: the image, a weight by its name, or an overflow."""
    if not torch.isfinite(images).all():
        return Message("图像中就有，请检查图像的数值")
    for name, weight in (*tower.named_parameters(), *tower.named_buffers()):
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            return Message("图像编码器的权重 {} 中就有，检查点已损坏，或训练时发散；请换一个检查点", name)
    return Message("权重和图像都是有限的，计算中溢出（精度 {}）；请用 model.float() 再试", placement(tower)[1])
