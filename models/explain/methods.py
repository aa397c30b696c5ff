"""The methods: one row of METHODS each. To add one, write its formula and its row; nothing else. A name is
of lower-case letters, digits, + and -, where a letter follows each -: `images.naming` knows results by it.

A formula makes maps [B, h, w] before the ReLU from a layer's activations A and gradients g = dy/dA, both [B, C, h, w];
<.> is the mean over positions. Those of attention stand in `models.explain.attention`; what a row
needs, in `models.explain.needs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import InputError, closest_hint
from ..heavy import functional as F
from ..heavy import torch
from ..messages import Joined
from .attention import attention_gradient, grad_eclip, legrad, legrad_attention, rollout
from .needs import Activations, Attention, Gradients, MaskedImages


def gradcam(A, g):
    """sum_k <g_k> A_k (Selvaraju et al. 2017, arXiv 1610.02391)."""
    return _weighted(g.mean((2, 3)), A)


def hirescam(A, g):
    """sum_k g_k A_k, position by position (Draelos & Carin 2020, arXiv 2011.08891)."""
    return (g * A).sum(1)


LOCAL_SPREAD = 1 / 6  # of the map's shorter side: the standard deviation of `local_gradcam`'s mean


def local_gradcam(A, g):
    """sum_k <g_k>_i A_k, the mean of Grad-CAM weighted by a Gaussian around each position i.

    Between Grad-CAM, whose mean is over the whole map and loses what a finding has at its place alone, and HiResCAM,
    which has no mean and follows the noise of the gradient. At a last layer before global pooling all three are one.
    """
    spread = LOCAL_SPREAD * min(A.shape[2:])
    rows, columns = (_gaussian_means(length, spread, A) for length in A.shape[2:])
    if A.shape[2:].numel() > 256:
        over_columns = F.linear(g, columns).transpose(2, 3).contiguous()  # one product each, not one a channel
        return hirescam(A, F.linear(over_columns, rows).transpose(2, 3))
    means, positions = torch.kron(rows, columns), g.flatten(2)  # a small map costs a sixth in one product
    if g.is_contiguous():
        return hirescam(A, F.linear(positions, means).view_as(g))
    return hirescam(A, (means @ positions.transpose(1, 2)).transpose(1, 2).unflatten(2, g.shape[2:]))  # channels last


def _gaussian_means(length: int, spread: float, like) -> torch.Tensor:
    """[length, length]: row i weighs the positions around i, and sums to 1."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    return (-((places[:, None] - places) ** 2) / (2 * spread**2)).softmax(1)


def gradcam_plus_plus(A, g):
    """sum_k w_k A_k, w_k = sum_ij a_k [g_k]+, a_k = g^2 / (2 g^2 + S_k g^3) = 1 / (2 + S_k g), S_k = sum_ij A_k.

    Chattopadhyay et al. 2018, arXiv 1710.11063. Written in the second form: in the first g^3 is nothing in float32.
    """
    denominator = 2 + A.sum((2, 3), keepdim=True) * g
    alpha = denominator.where(denominator != 0, denominator.new_tensor(float("inf"))).reciprocal()
    return _weighted((alpha * g.relu()).sum((2, 3)), A)


def layercam(A, g):
    """sum_k [g_k]+ A_k, position by position (Jiang et al. 2021, IEEE TIP 30)."""
    return (g.relu() * A).sum(1)


def xgradcam(A, g):
    """sum_k w_k A_k, w_k = sum_ij g_k A_k / sum_ij A_k (Fu et al. 2020, arXiv 2008.02312)."""
    total = A.sum((2, 3))
    return _weighted((g * A).sum((2, 3)) / total.where(total != 0, total.new_tensor(float("inf"))), A)


def eigencam(A):
    """X v, X the positions x channels of A, each channel centred, v its first right singular vector. Knows no text.

    The sign of v is arbitrary: turned so that the largest value is positive (Muhammad & Yeasin 2020, arXiv 2008.00299).
    """
    positions = A.flatten(2).transpose(1, 2)  # (B, h w, C)
    positions = positions - positions.mean(1, keepdim=True)
    left, singular, _ = torch.linalg.svd(positions, full_matrices=False)
    maps = (left[..., 0] * singular[:, :1]).unflatten(1, A.shape[2:])
    return maps * maps.flatten(1).gather(1, maps.flatten(1).abs().argmax(1, keepdim=True)).sign()[..., None]


def scorecam(A, scores):
    """sum_k softmax_k(y(M_k)) A_k, M_k the image under the channel k; `scores` [B, C] is y(M_k), -inf where not asked.

    Wang et al. 2020, arXiv 1910.01279; only the SCORECAM_CHANNELS of the largest <g_k>, as in gScoreCAM.
    """
    return _weighted(scores.softmax(1), A)


def _weighted(weights, A):
    """sum_k w_k A_k: weights [B, C], activations [B, C, h, w] -> [B, h, w]."""
    return torch.einsum("bc,bchw->bhw", weights, A)


class Method(NamedTuple):
    """One row of METHODS."""

    label: str
    formula: Callable
    needs: Gradients | Attention  # what is captured of a forward pass, and how the formula is applied to it
    knows_text: bool = True  # whether the map depends on what is asked
    compared_by: str | None = None  # a method of the same needs, by which texts are compared where it costs much less


GRADIENTS = Gradients()  # one for all, so that methods share what it computes
METHODS = {
    "gradcam": Method("Grad-CAM", gradcam, GRADIENTS),
    "hirescam": Method("HiResCAM", hirescam, GRADIENTS),
    "local-gradcam": Method("Local Grad-CAM", local_gradcam, GRADIENTS),
    "gradcam++": Method("Grad-CAM++", gradcam_plus_plus, GRADIENTS),
    "layercam": Method("LayerCAM", layercam, GRADIENTS),
    "xgradcam": Method("XGrad-CAM", xgradcam, GRADIENTS),
    "eigencam": Method("Eigen-CAM", eigencam, Activations(), knows_text=False),
    "scorecam": Method("Score-CAM", scorecam, MaskedImages()),
    "legrad": Method("LeGrad", legrad, Attention(2, "block", takes_layers=True)),  # 2: as the authors' own program
    "attention-gradient": Method("Attention × Gradient", attention_gradient, Attention(1, "block")),
    "legrad-attention": Method(
        "LeGrad + Attention",
        legrad_attention,
        Attention(2, "block", takes_layers=True),
        compared_by="attention-gradient",
    ),
    "grad-eclip": Method("Grad-ECLIP", grad_eclip, Attention(1, "whole", pool_alone=True)),
    "rollout": Method("Attention Rollout", rollout, Attention(None, "none"), knows_text=False),
}
SIMILARITIES = ("cosine", "dot")


def methods_for(model, method: str) -> list[str]:
    """The methods that a name or "all" stands for; of "all" those that the model's image encoder can have."""
    if method == "all":
        return [name for name, row in METHODS.items() if row.needs.suits(model.image_encoder)]
    return [check_method(method)]


def reads_attention(method: str) -> bool:
    """Whether a method looks at a transformer's blocks, and not at the output of layers."""
    return isinstance(METHODS[method].needs, Attention)


def check_method(method: str) -> str:
    """Return `method`; InputError with the closest and all names where it is none."""
    if method not in METHODS:
        raise InputError("没有方法 {!r}；{}可用：{}、all", method, closest_hint(method, METHODS), Joined("、", METHODS))
    return method


def check_similarity(similarity: str) -> str:
    """Return `similarity`; InputError where it is none of SIMILARITIES."""
    if similarity not in SIMILARITIES:
        raise InputError("相似度应是 {}，收到 {!r}", Joined(" 或 ", SIMILARITIES), similarity)
    return similarity
