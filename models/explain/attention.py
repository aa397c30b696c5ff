"""Heatmaps of a vision transformer's attention: LeGrad, attention x gradient, Grad-ECLIP and attention rollout.

What the formulas need is captured by hooks on the linear layers around the attention: queries, keys, values, and
what goes into the output projection, o = A v. Every library has them, whatever kernel computes the attention
itself. What such a layer gives is asked of the layer, never made of its `weight`: it may have an adapter (LoRA), a
parametrisation or somebody's hook. The gradient of a score with respect to the attention after its softmax is then
exact without the attention: ds/dA = (ds/do) v^T. Only rollout computes A, from queries and keys.

    with captured_attention(transformer, blocks) as trace:
        embeddings = tower.embed(images)
    maps, peaks = legrad(transformer, trace, embeddings, score, prefix)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..towers.transformer import Transformer
from .capture import Hook, Hooks, begin_graph, half_precision_scale, with_tensor
from .layers import mean_of_shares

# Ends of the projections' names: in transformers' CLIP family, in its ViT since 5, in its ViT before.
PROJECTION_NAMES = {
    "query": ("q_proj", "query"),
    "key": ("k_proj", "key"),
    "value": ("v_proj", "value"),
    "output": ("out_proj", "o_proj", "attention.output.dense"),
}
# Of a block's MLP: in the CLIP family, DINOv2 and ViT since 5, in ViT before, in DINOv2's gated one, and before.
LAST_LINEAR = ("mlp.fc2", "output.dense", "mlp.down_proj", "mlp.weights_out")


class Attended(NamedTuple):
    """One attention of one forward pass: Q queries and N keys of B images, D channels in all heads together."""

    query: torch.Tensor  # [B, Q, D]
    key: torch.Tensor  # [B, N, D]
    value: torch.Tensor  # [B, N, D]
    leaf: torch.Tensor  # [B, Q, D], where the graph begins: o, or for a pool what follows the output projection
    output: Callable  # the output projection
    weight: torch.Tensor | None = None  # of the output projection, where the leaf follows it

    def gradient(self, score: torch.Tensor) -> torch.Tensor:
        """d score / do for score [B, T]: float32 [T, B, Q, D]."""
        scale, (batch, texts) = half_precision_scale(self.leaf), score.shape
        one_by_one = scale * torch.eye(texts, device=score.device, dtype=score.dtype)
        one_by_one = one_by_one[:, None].expand(texts, batch, texts)
        (gradient,) = torch.autograd.grad(score, self.leaf, one_by_one, retain_graph=True, is_grads_batched=True)
        gradient = gradient.float() / scale
        return gradient if self.weight is None else gradient @ self.weight.float()


class _Call(NamedTuple):
    """A block that can be run once more on its first token, from the output of its attention on."""

    block: torch.nn.Module
    call: Callable  # tokens [B, 1, D] -> the block's output
    tokens: torch.Tensor  # [B, 1, D] that came in

    def after(self, attended: Attended) -> tuple[torch.Tensor, torch.Tensor]:
        """(a leaf o [B, 1, D] in place of what the attention gives, the block's output [B, 1, D] on its graph).

        Nothing but the attention mixes tokens: the first alone costs next to nothing, forward and backward.
        """
        leaf = attended.leaf.detach()[:, :1].requires_grad_()
        with Hooks() as hooks:
            hooks.before(projection(self.block, "output"), lambda module, inputs: (leaf, *inputs[1:]), prepend=True)
            output = self.call(self.tokens)
        return leaf, output[0] if isinstance(output, tuple) else output


class Trace(NamedTuple):
    """The attention that one forward pass went through, in its order."""

    blocks: list[Attended]
    calls: list[_Call | None]  # of each block; None of one that is not plain: what runs in it runs once
    outputs: list[torch.Tensor]  # [B, N, D] of each block, on the graph of its own leaf
    pools: list[Attended]  # one, or none where a class token is read


def projection(block: torch.nn.Module, kind: str) -> torch.nn.Module:
    """The layer of a block's attention by what it makes, whole where it wraps another (LoRA).

    InputError where no known library's name fits.
    """
    for name, module in block.named_modules():
        if f".{name}".endswith(tuple(f".{ending}" for ending in PROJECTION_NAMES[kind])):
            return module
    raise InputError(
        "在 {} 中找不到注意力的 {} 投影，该方法不支持这种模型；请换一个 --method", type(block).__name__, kind
    )


@contextlib.contextmanager
def captured_attention(
    transformer: Transformer, blocks: Sequence[torch.nn.Module], graph: str = "whole"
) -> Iterator[Trace]:
    """Record the attention of `blocks` and of the pool while a forward pass runs under `no_grad`.

    `graph`: from each attention's leaf to the end ("whole"), to the mean token at the end of its block ("block"),
    or "none". InputError where a block has no part in the pass, or several.
    """
    trace = Trace([], [], [], [])
    with Hooks() as hooks:
        for block in blocks:
            _watch_block(block, trace, graph, hooks)
        if transformer.pool is not None:
            hooks.after(_pooling(transformer.pool), _pool_hook(trace, graph), with_kwargs=True, prepend=True)
        yield trace
    pools = 0 if transformer.pool is None else 1
    if (len(trace.blocks), len(trace.outputs), len(trace.pools)) != (len(blocks), len(blocks), pools):
        raise InputError("这些 Transformer 块不是各在前向计算中运行一次，无法取得它们的注意力；请换一个 --method")


def _watch_block(block: torch.nn.Module, trace: Trace, graph: str, hooks: Hooks) -> None:
    """Hooks on one block: what it attends to, and its output."""
    projected, is_plain = {}, _is_plain(block)

    def keep_call(module, args, kwargs):
        if args:
            tokens, call = args[0], lambda first: module(first, *args[1:], **kwargs)
        else:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            tokens, call = kwargs["hidden_states"], lambda first: module(hidden_states=first, **rest)
        trace.calls.append(_Call(block, call, tokens.detach()[:, :1]) if is_plain else None)

    def keep(kind):
        return lambda module, inputs, output: projected.__setitem__(kind, output.detach())

    def before_output(module, inputs):
        leaf, mixed = (inputs[0], inputs[0]) if graph == "none" else begin_graph(inputs[0])
        trace.blocks.append(Attended(**projected, leaf=leaf, output=module))
        return (mixed, *inputs[1:])

    def end_block(module, inputs, output):
        tokens = output[0] if isinstance(output, tuple) else output
        trace.outputs.append(tokens)
        if graph != "block":
            return None
        torch.set_grad_enabled(False)
        return with_tensor(output, tokens.detach())

    hooks.before(block, keep_call, with_kwargs=True)
    for kind in ("query", "key", "value"):
        hooks.after(projection(block, kind), keep(kind))
    hooks.before(projection(block, "output"), before_output, prepend=True)  # o itself, before anybody changes it
    if graph == "block" and is_plain:
        for name, module in block.named_modules():
            if name in LAST_LINEAR:
                hooks.after(module, _mean_gradient)
    hooks.after(block, end_block)


def _is_plain(block: torch.nn.Module) -> bool:
    """Whether a block computes what its library wrote: none of its modules is of another kind, or hooked or patched."""
    return not _hooks_on_all_modules() and all(
        type(module).__module__.startswith(("torch.nn.modules.", "transformers."))
        and "forward" not in vars(module)
        and all(type(hook) is Hook for hook in _hooks_of(module))
        for module in block.modules()
    )


def _hooks_of(module: torch.nn.Module) -> Iterator[Callable]:
    """All hooks of a module, those of its backward pass too."""
    lists = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return chain.from_iterable(list(hooks.values()) for hooks in lists if hooks)


def _hooks_on_all_modules() -> bool:
    """Whether somebody watches, or changes, what modules of all kinds give."""
    module = torch.nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks or module._global_backward_hooks)


def _mean_gradient(linear, inputs, output):
    """The same output; but the gradient of its mean over tokens goes by one token, the mean of the inputs.

    Exact where nothing but a sum, or a scale of each channel (DINOv2), follows in the block (`_is_plain`), for the mean
    of a linear layer's outputs is its output for the mean; and nearly half the cost of LeGrad.
    """
    mean = F.linear(inputs[0].mean(1, keepdim=True), linear.weight, linear.bias)
    return output.detach() + (mean - mean.detach())


def _pooling(pool: torch.nn.Module) -> torch.nn.MultiheadAttention:
    """The attention of a pool, the one inside where it is wrapped (LoRA); InputError where it is of another kind."""
    for module in pool.attention.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            return module
    raise InputError("注意力池化 {} 不是 nn.MultiheadAttention；请换一个 --method", type(pool.attention).__name__)


def _pool_hook(trace: Trace, graph: str) -> Callable:
    """A hook on an nn.MultiheadAttention that is called with (query, key, value) of batches first.

    Its weights are read while it runs, when an adapter has merged into them what it adds.
    """

    def keep(module, args, kwargs, output):
        tokens = [*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        parts = zip(tokens, module.in_proj_weight.chunk(3), biases)
        query, key, value = (F.linear(part, weight, bias).detach() for part, weight, bias in parts)
        leaf, pooled = (output[0], output[0]) if graph == "none" else begin_graph(output[0])
        weight, bias = module.out_proj.weight.detach(), module.out_proj.bias
        trace.pools.append(Attended(query, key, value, leaf, partial(F.linear, weight=weight, bias=bias), weight))
        return with_tensor(output, pooled)

    return keep


def _by_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """[..., N, D] -> [..., heads, N, D / heads], float32."""
    return tokens.float().unflatten(-1, (heads, -1)).transpose(-3, -2)


def _attention(attended: Attended, heads: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)), [B, heads, Q, N] float32."""
    query, key = _by_heads(attended.query, heads), _by_heads(attended.key, heads)
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)


# ---------------------------------------------------------------------------------------------
# The formulas: (transformer, trace, embeddings [B, E], score: embedding [B, E] -> [B, T], prefix tokens) ->
# maps [B, T, patches] float32, and the largest |gradient| behind each, [B, T]


def legrad(transformer, trace, embeddings, score, prefix):
    """mean over blocks, heads and queries of [ds/dA]+, s the score of the block's mean token.

    With attention pooling s is the score of what the pool makes of the block's tokens, and A the pool's attention
    (Bousselham et al. 2024, arXiv 2404.03214). The map's smallest value is taken off, as the authors do.
    """
    maps, peaks = [], []
    for _, value, gradients in _of_blocks(transformer, trace, score):
        maps.append(_legrad_map(gradients, value))
        peaks.append(_peaks(gradients))
    return _without_least(_mean(maps), prefix), torch.stack(peaks).amax(0)


def legrad_attention(transformer, trace, embeddings, score, prefix):
    """The mean of LeGrad and of the same with A * ds/dA in place of ds/dA, each over its maximum.

    ds/dA says where more attention would speak for the text, and is spread wide; A * ds/dA where the attention that
    there is does. Times the mean of the two maxima, so that the texts' maps stay comparable.
    """
    plain, weighted, peaks = [], [], []
    for attention, value, gradients in _of_blocks(transformer, trace, score):
        plain.append(_legrad_map(gradients, value))
        weighted.append(_legrad_map(gradients, value, attention()))
        peaks.append(_peaks(gradients))
    parts = _without_least(_mean(plain), prefix), _mean(weighted)[..., prefix:]
    return mean_of_shares(parts), torch.stack(peaks).amax(0)


def _of_blocks(transformer, trace, score) -> Iterator[tuple[Callable, torch.Tensor, torch.Tensor]]:
    """Of each block: its attention when called, the values [B, heads, d, N], ds/do by heads [T, B, heads, Q, d]."""
    for attended, tokens in zip(trace.blocks, trace.outputs):
        with torch.enable_grad():
            if transformer.pool is None:
                scores = score(transformer.head(tokens.mean(1)))
            else:
                with captured_attention(transformer, ()) as pooled:
                    scores = score(transformer.head(tokens.detach()))
                (attended,) = pooled.pools
        heads = transformer.num_heads
        gradients, value = attended.gradient(scores), _by_heads(attended.value, heads).transpose(-1, -2)
        yield partial(_attention, attended, heads), value, _by_heads(gradients, heads)


def _legrad_map(gradients, value, attention=None) -> torch.Tensor:
    """Mean over heads and queries of [ds/dA]+, or of [A * ds/dA]+: [B, T, N]."""
    maps = []
    for of_text in gradients:  # one text after the other: heads x Q x N numbers each
        of_attention = of_text @ value
        maps.append((of_attention if attention is None else of_attention.mul_(attention)).relu_().mean((1, 2)))
    return torch.stack(maps, 1)


def _mean(maps) -> torch.Tensor:
    return torch.stack(maps).mean(0)


def _without_least(maps, prefix) -> torch.Tensor:
    patches = maps[..., prefix:]
    return patches - patches.amin(-1, keepdim=True)


def _peaks(gradients) -> torch.Tensor:
    """The largest |gradient| of a block, [B, T], of [T, B, heads, Q, d]."""
    return gradients.abs().amax((2, 3, 4)).T


def attention_gradient(transformer, trace, embeddings, score, prefix):
    """sum_h a_hi (d_h . v_hi): what patch i gives to the score through the last attention, of which one query is read.

    a the attention of the class token (or of the pool's probe), v the values, d = ds/do in each head h; over all tokens
    it sums to d . o. (Attention x gradient: Barkan et al. 2021, arXiv 2204.11073; here the heads are summed before
    the ReLU.)
    """
    with torch.enable_grad():
        attended, own = _last_query(transformer, trace, embeddings)
        gradients = attended.gradient(score(own))[:, :, :1]  # (T, B, 1, D)
    heads = transformer.num_heads
    through = _by_heads(gradients, heads) @ _by_heads(attended.value, heads).transpose(-1, -2)  # (T, B, heads, 1, N)
    weights = _attention(attended._replace(query=attended.query[:, :1]), heads)  # (B, heads, 1, N)
    maps = (weights * through).sum((2, 3)).transpose(0, 1)
    return maps[..., prefix:], gradients.abs().amax((2, 3)).T


def _last_query(transformer, trace, embeddings) -> tuple[Attended, torch.Tensor]:
    """The attention that makes the embedding, and embeddings [B, D] on the graph of what its one query is given."""
    if trace.pools:
        return trace.pools[0], embeddings
    attended, call = trace.blocks[-1], trace.calls[-1]
    if call is None:
        return attended, transformer.head(trace.outputs[-1][:, 0])
    leaf, tokens = call.after(attended)
    return attended._replace(leaf=leaf), transformer.head(tokens[:, 0])


def grad_eclip(transformer, trace, embeddings, score, prefix):
    """L_i = [ sum_c d_c v_ic lambda_i ]+ of the last attention, whose one query the embedding is made of.

    d = ds/do of the class token (or of the pool's probe), lambda_i = minmax_i cos(W_o q + b_o, W_o k_i + b_o)
    over the patches (Zhao et al. 2024, arXiv 2502.18816).
    """
    attended = (trace.pools or trace.blocks)[0]
    with torch.enable_grad():
        gradients = attended.gradient(score(embeddings))[:, :, 0]  # (T, B, D)
    query, key = (attended.output(part) for part in (attended.query[:, :1], attended.key[:, prefix:]))
    likeness = F.cosine_similarity(query.float(), key.float(), dim=-1)  # (B, patches)
    low, high = likeness.amin(-1, keepdim=True), likeness.amax(-1, keepdim=True)
    weights = (likeness - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    maps = torch.einsum("tbd,bnd->btn", gradients, attended.value[:, prefix:].float())
    return (maps * weights[:, None]).relu(), gradients.abs().amax(2).T


def rollout(transformer, trace, embeddings, score, prefix):
    """The class row of A^L ... A^1 with A^l = rownorm(mean over heads of the attention + I). Knows no text.

    With attention pooling the pool's row takes the class row's place (Abnar & Zuidema 2020, arXiv 2005.00928). The
    map's smallest value is taken off.
    """
    joint = None
    for attended in trace.blocks:
        mixing = _attention(attended, transformer.num_heads).mean(1)  # (B, N, N)
        mixing = (
            mixing + torch.eye(mixing.shape[-1], device=mixing.device, dtype=mixing.dtype)
        ) / 2  # each row of an attention sums to 1
        joint = mixing if joint is None else mixing @ joint
    row = joint[:, :1]
    if trace.pools:
        row = _attention(trace.pools[0], transformer.num_heads).mean(1) @ joint
    row = row[..., prefix:]  # (B, 1, patches)
    texts = score(embeddings).shape[1]
    return (row - row.amin(-1, keepdim=True)).expand(-1, texts, -1), row.amax(-1).expand(-1, texts)
