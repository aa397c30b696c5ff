"""Heatmaps of a vision transformer's attention: LeGrad, Grad-ECLIP and attention rollout.

What the formulas need is captured by hooks on the linear layers around the attention: queries, keys, values, and
what goes into the output projection, o = A v. Every library has them, whatever kernel computes the attention
itself. The gradient of a score with respect to the attention after its softmax is then exact without the
attention: ds/dA = (ds/do) v^T. Only rollout computes A, from queries and keys.

    with captured(transformer, blocks) as seen:
        embeddings = tower.embed(images)
    maps, peaks = legrad(transformer, seen, embeddings, score, prefix)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .errors import InputError

# Ends of the projections' names: in transformers' CLIP family, in its ViT since 5, in its ViT before.
PROJECTION_NAMES = {
    "query": ("q_proj", "query"),
    "key": ("k_proj", "key"),
    "value": ("v_proj", "value"),
    "output": ("out_proj", "o_proj", "attention.output.dense"),
}
LAST_LINEAR = ("mlp.fc2", "output.dense")  # of a block's MLP: in the CLIP family and ViT since 5, in ViT before
LEGRAD_BLOCKS = 2  # the last ones, as the authors' own program takes them by default


class Transformer(NamedTuple):
    """What an image tower says of its transformer."""

    blocks: Sequence[nn.Module]
    num_heads: int
    head: Callable  # class token [..., D] after the last block -> embedding [..., E]; with `pool` [B, N, D] -> [B, E]
    pool: nn.Module | None = None  # attention pooling, its `.attention` an nn.MultiheadAttention; None: a class token


class Attended(NamedTuple):
    """One attention of one forward pass: Q queries and N keys of B images, D channels in all heads together."""

    query: torch.Tensor  # [B, Q, D]
    key: torch.Tensor  # [B, N, D]
    value: torch.Tensor  # [B, N, D]
    leaf: torch.Tensor  # [B, Q, D], where the graph begins: o, or for a pool what follows the output projection
    output: nn.Linear  # the output projection
    projected: bool  # whether the leaf follows it

    def gradient(self, score: torch.Tensor) -> torch.Tensor:
        """d score / do for score [B, T]: float32 [T, B, Q, D]."""
        scale = 1024.0 if self.leaf.dtype == torch.float16 else 1.0  # small gradients stay above the smallest float16
        batch, texts = score.shape
        every = scale * torch.eye(texts, device=score.device)[:, None].expand(texts, batch, texts)
        (gradient,) = torch.autograd.grad(score, self.leaf, every, retain_graph=True, is_grads_batched=True)
        gradient = gradient.float() / scale
        return gradient @ self.output.weight.float() if self.projected else gradient


class Seen(NamedTuple):
    """What one forward pass went through, in its order."""

    blocks: list[Attended]
    outputs: list[torch.Tensor]  # [B, N, D] of each block, on the graph of its own leaf
    pools: list[Attended]  # one, or none where a class token is read


def projection(block: nn.Module, kind: str) -> nn.Linear:
    """The linear layer of a block's attention by what it makes; InputError where no known library's name fits."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(PROJECTION_NAMES[kind]):
            return module
    raise InputError(f"在 {type(block).__name__} 中找不到注意力的 {kind} 投影，该方法不支持这种模型；请换一个 --method")


@contextlib.contextmanager
def captured(transformer: Transformer, blocks: Sequence[nn.Module], graph: str = "whole") -> Iterator[Seen]:
    """Record the attention of `blocks` and of the pool while a forward pass runs under `no_grad`.

    `graph`: from each attention's leaf to the end ("whole"), to the mean token at the end of its block ("block"),
    or "none". Hooks are removed whatever happens.
    """
    seen, handles = Seen([], [], []), []
    try:
        for block in blocks:
            handles += _watch_block(block, seen, graph)
        if transformer.pool is not None:
            hook = _pool_hook(seen, graph)
            handles.append(transformer.pool.attention.register_forward_hook(hook, with_kwargs=True))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _watch_block(block: nn.Module, seen: Seen, graph: str) -> list:
    """Hooks on one block: what it attends to, and its output."""
    found = {}

    def keep(kind):
        return lambda module, inputs, output: found.__setitem__(kind, output.detach())

    def begin_graph(module, inputs):
        leaf, mixed = _leaf(inputs[0], graph)
        seen.blocks.append(Attended(found["query"], found["key"], found["value"], leaf, module, projected=False))
        return (mixed, *inputs[1:])

    def end_block(module, inputs, output):
        tokens = output[0] if isinstance(output, tuple) else output
        seen.outputs.append(tokens)
        if graph != "block":
            return None
        torch.set_grad_enabled(False)
        return (tokens.detach(), *output[1:]) if isinstance(output, tuple) else tokens.detach()

    hooks = [projection(block, kind).register_forward_hook(keep(kind)) for kind in ("query", "key", "value")]
    hooks.append(projection(block, "output").register_forward_pre_hook(begin_graph))
    if graph == "block":
        hooks += [m.register_forward_hook(_mean_gradient) for name, m in block.named_modules() if name in LAST_LINEAR]
    return [*hooks, block.register_forward_hook(end_block)]


def _mean_gradient(linear, inputs, output):
    """The same output; but the gradient of its mean over tokens goes by one token, the mean of the inputs.

    Exact, for the mean of a linear layer's outputs is its output for the mean, and nearly half the cost of LeGrad.
    """
    mean = F.linear(inputs[0].mean(1, keepdim=True), linear.weight, linear.bias)
    return output.detach() + (mean - mean.detach())


def _leaf(tensor: torch.Tensor, graph: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(a fresh leaf, a copy of it for the forward pass to go on with); gradients are on from here."""
    if graph == "none":
        return tensor, tensor
    leaf = tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)  # until the block ends, or the no_grad block of the caller
    return leaf, leaf.clone()


def _pool_hook(seen: Seen, graph: str) -> Callable:
    """A hook on an nn.MultiheadAttention that is called with (query, key, value) of batches first."""

    def keep(module, args, kwargs, output):
        given = [*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        parts = zip(given, module.in_proj_weight.chunk(3), biases)
        query, key, value = (F.linear(tokens, weight, bias).detach() for tokens, weight, bias in parts)
        leaf, pooled = _leaf(output[0], graph)
        seen.pools.append(Attended(query, key, value, leaf, module.out_proj, projected=True))
        return (pooled, *output[1:])

    return keep


def _by_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """[..., N, D] -> [..., heads, N, D / heads], float32."""
    return tokens.float().unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attention(attended: Attended, heads: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)), [B, heads, Q, N] float32."""
    query, key = _by_heads(attended.query, heads), _by_heads(attended.key, heads)
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)


# ---------------------------------------------------------------------------------------------
# The formulas: (transformer, what was seen, embeddings [B, E], score: embedding [B, E] -> [B, T], prefix tokens) ->
# maps [B, T, patches] float32, and the largest |gradient| behind each, [B, T]


def legrad(transformer, seen, embeddings, score, prefix):
    """mean over blocks, heads and queries of [ds/dA]+, s the score of the block's mean token.

    With attention pooling s is the score of what the pool makes of the block's tokens, and A the pool's attention
    (Bousselham et al. 2024, arXiv 2404.03214). The map's smallest value is taken off, as the authors do.
    """
    total, peaks = 0.0, []
    for attended, tokens in zip(seen.blocks, seen.outputs):
        with torch.enable_grad():
            if transformer.pool is None:
                scores = score(transformer.head(tokens.mean(1)))
            else:
                with captured(transformer, ()) as pooled:
                    scores = score(transformer.head(tokens.detach()))
                (attended,) = pooled.pools
        gradients = attended.gradient(scores)  # (T, B, Q, D)
        value = _by_heads(attended.value, transformer.num_heads).transpose(-1, -2)  # (B, heads, d, N)
        # one text after the other: heads x Q x N numbers each
        maps = [(_by_heads(g, transformer.num_heads) @ value).relu_().mean((1, 2)) for g in gradients]
        total = total + torch.stack(maps, 1)[..., prefix:] / len(seen.outputs)
        peaks.append(gradients.abs().amax((2, 3)).T)
    return total - total.amin(-1, keepdim=True), torch.stack(peaks).amax(0)


def grad_eclip(transformer, seen, embeddings, score, prefix):
    """L_i = [ sum_c d_c v_ic lambda_i ]+ of the last attention, whose one query the embedding is made of.

    d = ds/do of the class token (or of the pool's probe), lambda_i = minmax_i cos(W_o q + b_o, W_o k_i + b_o)
    over the patches (Zhao et al. 2024, arXiv 2502.18816).
    """
    attended = (seen.pools or seen.blocks)[0]
    with torch.enable_grad():
        gradients = attended.gradient(score(embeddings))[:, :, 0]  # (T, B, D)
    dtype = attended.output.weight.dtype
    query, key = (attended.output(part.to(dtype)) for part in (attended.query[:, :1], attended.key[:, prefix:]))
    likeness = F.cosine_similarity(query.float(), key.float(), dim=-1)  # (B, patches)
    low, high = likeness.amin(-1, keepdim=True), likeness.amax(-1, keepdim=True)
    weights = (likeness - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    maps = torch.einsum("tbd,bnd->btn", gradients, attended.value[:, prefix:].float())
    return (maps * weights[:, None]).relu(), gradients.abs().amax(2).T


def rollout(transformer, seen, embeddings, score, prefix):
    """The class row of A^L ... A^1 with A^l = rownorm(mean over heads of the attention + I). Knows no text.

    With attention pooling the pool's row takes the class row's place (Abnar & Zuidema 2020, arXiv 2005.00928). The
    map's smallest value is taken off.
    """
    joint = None
    for attended in seen.blocks:
        mixing = _attention(attended, transformer.num_heads).mean(1)  # (B, N, N)
        mixing = (mixing + torch.eye(mixing.shape[-1], device=mixing.device)) / 2  # each row of an attention sums to 1
        joint = mixing if joint is None else mixing @ joint
    row = joint[:, :1]
    if seen.pools:
        row = _attention(seen.pools[0], transformer.num_heads).mean(1) @ joint
    row = row[..., prefix:]  # (B, 1, patches)
    texts = score(embeddings).shape[1]
    return (row - row.amin(-1, keepdim=True)).expand(-1, texts, -1), row.amax(-1).expand(-1, texts)


class AttentionMethod(NamedTuple):
    formula: Callable
    first_block: int | None  # the attention of the blocks from this one on is captured
    graph: str  # see `captured`


METHODS = {
    "legrad": AttentionMethod(legrad, -LEGRAD_BLOCKS, "block"),
    "grad-eclip": AttentionMethod(grad_eclip, -1, "whole"),
    "rollout": AttentionMethod(rollout, None, "none"),
}


def transformer_of(tower: nn.Module, method: str) -> Transformer:
    """The transformer of an image tower; InputError where it has none."""
    transformer = tower.transformer() if hasattr(tower, "transformer") else None
    if transformer is None:
        raise InputError(f"方法 {method} 需要视觉 Transformer（ViT），这个图像编码器没有注意力；请换一个 --method")
    return transformer


def chosen_blocks(transformer: Transformer, method: AttentionMethod, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The blocks whose attention a method captures: its own, or for LeGrad `layers`; InputError for others."""
    if layers:
        if method.formula is not legrad:
            raise InputError("grad-eclip 和 rollout 不使用目标层；请去掉 --target-layer 或 --layers")
        if any(layer not in list(transformer.blocks) for layer in layers):
            raise InputError("LeGrad 的层必须是整个 Transformer 块；用 --layers 给出块的名称，或不给（取最后几块）")
        return list(layers)
    if method.formula is grad_eclip and transformer.pool is not None:
        return []
    return list(transformer.blocks)[method.first_block :]
