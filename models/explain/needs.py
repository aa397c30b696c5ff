"""What a method needs of a forward pass, and how its formula makes maps of that: the general paths of all methods.

Each kind says whether an image tower has it (`suits`), whether all of it can be derived (`check_gradients`) and which
modules it comes from (`modules`), captures it on the way (`captured`), and makes of each of several formulas maps
[B, T, h, w] before the ReLU with the largest |gradient| behind each, [B, T] (`maps`). `last_of` narrows a pass to where
the maps of many texts cost little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..towers.transformer import Transformer
from ..weights.modules import all_modules
from .attention import captured_attention
from .capture import captured_layers, gradients_of
from .layers import as_maps, fuse_layers, token_grids_of, without_rounding

QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


class Maps(NamedTuple):
    """What a formula makes of a pass."""

    maps: torch.Tensor  # [B, T, h, w] before the ReLU
    peaks: torch.Tensor  # [B, T] the largest |gradient| behind each


class ForwardPass(NamedTuple):
    """One pass of B images through an image tower, with what was captured on the way."""

    tower: torch.nn.Module
    images: torch.Tensor  # [B, 3, H, W]
    captured: object  # the layers' activations, or a Trace
    embeddings: torch.Tensor  # [B, D], on the graph that begins at what was captured
    embed: Callable  # images [n, 3, H, W] -> embeddings [n, D], for further passes

    def to_maps(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a layer gave, or its gradient, as [B, C, h, w]."""
        size = self.images.shape[-2:]
        return as_maps(tensor, size, token_grids_of(self.tower, size), len(self.images))


class Gradients:
    """The activations of layers and the gradients of the score, formula(A, g) -> maps [B, h, w]; the layers fused."""

    @staticmethod
    def suits(tower: torch.nn.Module) -> bool:
        return True

    needs_gradients = True

    def check_gradients(self, tower: torch.nn.Module, method: str) -> None:
        """InputError where a part of the network has no gradient: what would be left of it is the rest's alone."""
        if not self.needs_gradients:
            return
        kind = next((type(m) for m in all_modules(tower) if type(m).__module__.startswith(QUANTISED)), None)
        if kind is not None:
            raise InputError(
                "图像编码器中有量化的层（{}.{}），没有梯度，{} 无法计算；请用量化之前的模型，"
                "或用不需要梯度的方法 eigencam、rollout",
                kind.__module__,
                kind.__name__,
                method,
            )

    @staticmethod
    def modules(tower: torch.nn.Module, method: str, layers: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
        return list(layers)

    @staticmethod
    def captured(tower: torch.nn.Module, method: str, modules: Sequence[torch.nn.Module]):
        return captured_layers(modules)

    @staticmethod
    def last_of(forward: ForwardPass) -> ForwardPass:
        """The pass with the coarsest of its layers alone, the last of several; itself where there is one."""
        if len(forward.captured) == 1:
            return forward
        sizes = [math.prod(forward.to_maps(tensor).shape[2:]) for tensor in forward.captured]
        last = max(range(len(sizes)), key=lambda index: (-sizes[index], index))
        return forward._replace(captured=[forward.captured[last]])

    def maps(self, formulas: Sequence[Callable], forward: ForwardPass, score: Callable) -> list[Maps]:
        activations = [forward.to_maps(tensor.detach()).float() for tensor in forward.captured]
        with torch.enable_grad():
            totals = score(forward.embeddings).sum(0).unbind()  # over the images, whose gradients do not meet
        weights, by_formula = self.weights(forward, score, activations, totals), [[] for _ in formulas]
        for text, total in enumerate(totals):  # one after the other: all texts' gradients at once may be large
            gradients = self.gradients(forward, total)
            activations = [_ordered_as(g, A) for g, A in zip(gradients, activations)]
            for formula, maps in zip(formulas, by_formula):
                maps.append(self._fused(formula, activations, weights[text] if weights else gradients, gradients))
        return [Maps(*(torch.stack(part, 1) for part in zip(*maps))) for maps in by_formula]

    @staticmethod
    def _fused(formula, activations, weights, gradients) -> tuple[torch.Tensor, torch.Tensor]:
        """One text's maps [B, h, w] of all layers, fused, and the largest |gradient| [B] behind them."""
        layer_maps = [formula(A, w) for A, w in zip(activations, weights)]
        checked = [without_rounding(*layer) for layer in zip(layer_maps, activations, gradients)]
        return fuse_layers([layer_map for layer_map, _ in checked]), torch.stack([peak for _, peak in checked]).amax(0)

    @staticmethod
    def gradients(forward: ForwardPass, total: torch.Tensor) -> list[torch.Tensor]:
        """d total / d each layer's activations, [B, C, h, w] float32."""
        return [forward.to_maps(g) for g in gradients_of(total, forward.captured)]

    def weights(self, forward, score, activations, totals) -> list[list[torch.Tensor]] | None:
        """What the formula takes in place of the gradients, for each text and layer; None for the gradients."""
        return None


def _ordered_as(gradient: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """The activation in its gradient's order of memory: a product of two orders takes five times as long."""
    if activation.stride() == gradient.stride():
        return activation
    return torch.empty_like(gradient).copy_(activation)


SCORECAM_CHANNELS, SCORECAM_BATCH = 300, 16


class MaskedImages(Gradients):
    """The scores of the image under each channel of a layer, formula(A, scores [B, C]) -> maps [B, h, w].

    Only the SCORECAM_CHANNELS with the largest mean gradient are tried (gScoreCAM), each in a pass of its own.
    """

    def weights(self, forward, score, activations, totals) -> list[list[torch.Tensor]]:
        means = zip(*([g.mean((2, 3)) for g in self.gradients(forward, total)] for total in totals))
        layer_scores = [
            self._masked_scores(forward, score, A, torch.stack(w, 1)) for A, w in zip(activations, means, strict=True)
        ]
        return [[scores[:, text] for scores in layer_scores] for text in range(len(totals))]

    @staticmethod
    def _masked_scores(forward, score, A, means) -> torch.Tensor:
        """y of the image under each channel that a text asks for: [B, T, C], -inf elsewhere.

        `means` [B, T, C]: <g_k> of each text. A channel that several texts ask for is run once.
        """
        count = min(SCORECAM_CHANNELS, A.shape[1])
        chosen = torch.zeros_like(means, dtype=torch.bool).scatter_(2, means.topk(count, dim=2).indices, True)
        masked = torch.full_like(means, -torch.inf)
        for b, image in enumerate(forward.images):
            for channels in chosen[b].any(0).nonzero()[:, 0].split(SCORECAM_BATCH):
                masks = F.interpolate(A[b, channels, None], image.shape[1:], mode="bilinear", align_corners=False)
                low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
                masks = (masks - low) / (high - low).clamp_min(torch.finfo(masks.dtype).tiny)
                masked[b, :, channels] = score(forward.embed(image * masks), b).T
        return masked.where(chosen, -torch.inf)


class Activations(Gradients):
    """The activations of layers alone, formula(A) -> maps [B, h, w]: the same for every text."""

    needs_gradients = False

    def maps(self, formulas, forward, score):
        activations = [forward.to_maps(tensor.detach()).float() for tensor in forward.captured]
        texts = score(forward.embeddings).shape[1]
        fused = [fuse_layers([formula(A) for A in activations]) for formula in formulas]
        return [Maps(maps[:, None].expand(-1, texts, -1, -1), maps.new_ones(len(maps), texts)) for maps in fused]


TEXTS_AT_ONCE = 32  # whose gradients are taken together: B x tokens x D numbers each, of a block


class Attention:
    """The attention of the last blocks, formula(transformer, trace, embeddings, score, prefix) -> maps [B, T, patches].

    `blocks`: how many of the last ones, None for all; `graph`: see `captured_attention`; `takes_layers`: whether the
    user may name other blocks; `pool_alone`: whether a model with attention pooling is read at its pool only.
    """

    check_gradients = Gradients.check_gradients

    def __init__(self, blocks: int | None, graph: str, takes_layers: bool = False, pool_alone: bool = False):
        self.blocks, self.graph, self.takes_layers, self.pool_alone = blocks, graph, takes_layers, pool_alone
        self.needs_gradients = graph != "none"

    @staticmethod
    def suits(tower):
        return getattr(tower, "transformer", lambda: None)() is not None

    def modules(self, tower, method, layers):
        """The blocks whose attention is captured; InputError for layers that the method cannot use."""
        transformer = transformer_of(tower, method)
        if layers:
            if not self.takes_layers:
                raise InputError("{} 不使用目标层；请去掉 --target-layer 或 --layers", method)
            if any(layer not in list(transformer.blocks) for layer in layers):
                raise InputError(
                    "{} 的层必须是整个 Transformer 块；用 --layers 给出块的名称，或不给（取最后几块）", method
                )
            return list(dict.fromkeys(layers))
        if self.pool_alone and transformer.pool is not None:
            return []
        return list(transformer.blocks)[-(self.blocks or len(transformer.blocks)) :]

    def captured(self, tower, method, modules):
        return captured_attention(transformer_of(tower, method), modules, self.graph)

    @staticmethod
    def last_of(forward):
        return forward

    def maps(self, formulas, forward, score):
        prefix, rows, columns = forward.tower.token_grid(*forward.images.shape[-2:])
        transformer = forward.tower.transformer()
        captured, by_formula = (transformer, forward.captured, forward.embeddings), []
        for formula in formulas:
            parts = [formula(*captured, some, prefix) for some in score.parts(TEXTS_AT_ONCE)]
            maps, peaks = (torch.cat(part, 1) for part in zip(*parts))
            by_formula.append(Maps(maps.unflatten(2, (rows, columns)), peaks))
        return by_formula


def transformer_of(tower: torch.nn.Module, method: str) -> Transformer:
    """The transformer of an image tower; InputError where it has none."""
    transformer = tower.transformer() if hasattr(tower, "transformer") else None
    if transformer is None and hasattr(tower, "token_grids"):
        raise InputError("方法 {} 需要整张图像上的注意力，Swin 的注意力只在窗口之内；请换一个 --method", method)
    if transformer is None:
        raise InputError("方法 {} 需要视觉 Transformer（ViT），这个图像编码器没有注意力；请换一个 --method", method)
    return transformer
