"""What every image tower says of its transformer: all that the methods of `models.explain.attention` need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..heavy import torch


class Transformer(NamedTuple):
    """What an image tower says of its transformer."""

    blocks: Sequence[torch.nn.Module]
    num_heads: int
    head: Callable  # class token [..., D] after the last block -> embedding [..., E]; with `pool` [B, N, D] -> [B, E]
    pool: torch.nn.Module | None = (
        None  # attention pooling, its `.attention` an nn.MultiheadAttention; None: a class token
    )
