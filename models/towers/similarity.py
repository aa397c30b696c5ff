"""How images and texts are compared."""

from __future__ import annotations

from ..heavy import functional as F
from ..heavy import torch


def cosines(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """[B, D] and [K, D] -> cosine similarities [B, K]."""
    return F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T


def softmax_probabilities(similarities: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Cosines [..., K] -> probabilities [..., K] in float32: softmax over the texts of cosine / temperature."""
    return (similarities.float() / temperature.detach().float().to(similarities.device)).softmax(dim=-1)
