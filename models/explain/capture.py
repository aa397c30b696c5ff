"""What a forward pass is asked to keep: the one owner of hooks, for layers and for attention.

A hook makes what a module gives (or is given) a fresh leaf, with gradients on from there, and the pass goes on with a
copy. So frozen weights, `no_grad` and half precision make no difference, and no parameter's `.grad` is touched.

    with torch.no_grad():
        with captured_layers(layers) as activations:
            embeddings = tower(images)
        torch.set_grad_enabled(False)        # the hooks have turned it on
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ..errors import InputError
from ..heavy import torch


@contextlib.contextmanager
def hooks() -> Iterator[list]:
    """A list for the handles of hooks, each removed in the end, whatever happens."""
    handles = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def begin_graph(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a fresh leaf, a copy of it to go on with, which later in-place operations may overwrite); gradients are on."""
    leaf = tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)
    return leaf, leaf.clone()


def half_precision_scale(tensor: torch.Tensor) -> float:
    """What a score is multiplied by, so that its small gradients stay above the smallest float16."""
    return 1024.0 if tensor.dtype == torch.float16 else 1.0


@contextlib.contextmanager
def captured_layers(layers: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What each layer gives in one forward pass under `no_grad`: a leaf, those of later layers on its graph.

    The list is filled when the block ends. InputError for a layer without part in the pass, or that gives no tensor.
    """
    activations, outputs = [], {}

    def keep(index):
        def hook(module, inputs, output):
            tensor = tensor_of(output)
            outputs[index], copy = (tensor, tensor.clone()) if tensor.requires_grad else begin_graph(tensor)
            return (copy, *output[1:]) if isinstance(output, tuple) else copy

        return hook

    with hooks() as handles:
        handles += [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
        yield activations
    if len(outputs) < len(layers):
        raise InputError("目标层没有参与图像编码器的前向计算，请换一层（--list-layers 列出可用的层）")
    activations += [outputs[index] for index in range(len(layers))]


def tensor_of(output) -> torch.Tensor:
    """The tensor in a layer's output: the output itself, or the first of a tuple."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise InputError(f"目标层的输出是 {type(output).__name__}，不是张量，无法计算热力图；请换一层")
    return tensor


def gradients_of(score: torch.Tensor, activations: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """d score / d each of the activations in float32; zeros where the score does not depend on them."""
    zeros = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in activations]
    if not score.requires_grad:
        return zeros
    scale = half_precision_scale(activations[0])
    scaled = torch.full_like(score, scale)
    gradients = torch.autograd.grad(score, activations, scaled, retain_graph=True, allow_unused=True)
    return [zero if g is None else g.float() / scale for zero, g in zip(zeros, gradients)]
