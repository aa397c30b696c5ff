"""The `logit_scale` and `logit_bias` of OpenAI's and SigLIP's losses, in checkpoints of our own, as our `temperature`.

CLIP multiplies cosines by exp(logit_scale), ours are divided by a temperature: temperature = exp(-logit_scale).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

from ..errors import CheckpointError, InputWarning
from ..heavy import torch
from ..messages import Message

# Logarithms that trainings come to: they begin at log(10) or log(1 / 0.07), and most are bounded by log(100).
LEAST, MOST = 1.0, 4.8
HIGHEST_LOGARITHM = 6.0  # exp(6) = 403 is beyond all scales in use, while 6 to 100 by itself is one
LOWEST, HIGHEST = -20.0, 1e4
ALIKE = 0.01  # of a temperature: two that differ less are one


def temperature_of(settings: Mapping) -> float | None:
    """The temperature that a checkpoint's `logit_scale` stands for; None where it has none, or a `temperature` as well.

    A value that is no usual logarithm is decided by its size, with an InputWarning, as are two that differ.
    CheckpointError where it is no number, or none that a scale can be.
    """
    if "logit_scale" not in settings:
        return None
    scale = one_number(settings["logit_scale"], "logit_scale")
    if not LOWEST <= scale <= HIGHEST:
        raise CheckpointError("检查点的 logit_scale 是 {:g}，概率无法计算；请检查检查点", scale)
    temperature = math.exp(-scale) if scale <= HIGHEST_LOGARITHM else 1 / scale
    if message := _doubt(scale, temperature, settings.get("temperature")):
        warnings.warn(InputWarning(message), stacklevel=4)
    return None if "temperature" in settings else temperature


def _doubt(scale: float, temperature: float, own) -> Message | None:
    """What is to be said of a `logit_scale` that was read as `temperature`; `own`: the checkpoint's, None for none."""
    if own is not None:
        own = one_number(own, "temperature")
        agree = any(math.isclose(own, other, rel_tol=ALIKE) for other in (temperature, 1 / scale if scale else 0))
        return (
            None
            if agree
            else Message(
                "检查点的 temperature 是 {:g}，logit_scale 是 {:g}（即 temperature {:g}），二者不一致，"
                "概率按 temperature 计算（热力图不受影响）",
                own,
                scale,
                temperature,
            )
        )
    if scale > HIGHEST_LOGARITHM:
        return Message(
            "检查点的 logit_scale 是 {:g}，对数不会这样大，按已经取过指数处理：temperature 为 {:g}，请核对"
            "（热力图不受影响）",
            scale,
            temperature,
        )
    if not LEAST <= scale <= MOST:
        return Message(
            "检查点的 logit_scale 是 {:g}，不是常见的值，按对数处理：temperature 为 {:g}，请核对（热力图不受影响）",
            scale,
            temperature,
        )
    return None


def one_number(value, name: str) -> float:
    """A weight or a setting that is one finite number; CheckpointError where it is none."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 and not value.is_meta else math.nan
    if not math.isfinite(value):
        raise CheckpointError("检查点的 {} 应是一个有限的数；请检查检查点", name)
    return float(value)
