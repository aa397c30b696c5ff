"""The methods: one row of METHODS each. To add one, write its formula and its row; nothing else. A name is
of lower-case letters, digits, + and -, where a letter follows each -: `images.naming` knows results by it.

A formula makes maps [B, h, w] before the ReLU from a layer's activations A and gradients g = dy/dA, both [B, C, h, w];
<.> is the mean over positions. Those of attention stand in `models.explain.attention`; what a row
needs, in `models.explain.needs`.
"""

from collections.abc import Callable
from typing import NamedTuple

from ..errors import InputError, closest_hint
from ..heavy import torch
from .attention import grad_eclip, legrad, rollout
from .needs import Activations, Attention, Gradients, MaskedImages


def gradcam(A, g):
    """sum_k <g_k> A_k (Selvaraju et al. 2017, arXiv 1610.02391)."""
    return _weighted(g.mean((2, 3)), A)


def hirescam(A, g):
    """sum_k g_k A_k, position by position (Draelos & Carin 2020, arXiv 2011.08891)."""
    return (g * A).sum(1)


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


METHODS = {
    "gradcam": Method("Grad-CAM", gradcam, Gradients()),
    "hirescam": Method("HiResCAM", hirescam, Gradients()),
    "gradcam++": Method("Grad-CAM++", gradcam_plus_plus, Gradients()),
    "layercam": Method("LayerCAM", layercam, Gradients()),
    "xgradcam": Method("XGrad-CAM", xgradcam, Gradients()),
    "eigencam": Method("Eigen-CAM", eigencam, Activations(), knows_text=False),
    "scorecam": Method("Score-CAM", scorecam, MaskedImages()),
    "legrad": Method("LeGrad", legrad, Attention(2, "block", takes_layers=True)),  # 2: as the authors' own program
    "grad-eclip": Method("Grad-ECLIP", grad_eclip, Attention(1, "whole", pool_alone=True)),
    "rollout": Method("Attention Rollout", rollout, Attention(None, "none"), knows_text=False),
}
SIMILARITIES = ("cosine", "dot")


def methods_for(model, method: str) -> list[str]:
    """The methods that a name or "all" stands for; of "all" those that the model's image encoder can have."""
    if method == "all":
        return [name for name, row in METHODS.items() if row.needs.suits(model.image_encoder)]
    return [check_method(method)]


def check_method(method: str) -> str:
    """Return `method`; InputError with the closest and all names where it is none."""
    if method not in METHODS:
        raise InputError(f"没有方法 {method!r}；{closest_hint(method, METHODS)}可用：{'、'.join(METHODS)}、all")
    return method


def check_similarity(similarity: str) -> str:
    """Return `similarity`; InputError where it is none of SIMILARITIES."""
    if similarity not in SIMILARITIES:
        raise InputError(f"相似度应是 {' 或 '.join(SIMILARITIES)}，收到 {similarity!r}")
    return similarity
