"""What a forward pass is asked to keep: the one owner of hooks, for layers and for attention.

A hook makes what a module gives (or is given) a fresh leaf, with gradients on from there, and the pass goes on with a
copy. So frozen weights, `no_grad` and half precision make no difference, and no parameter's `.grad` is touched.

    with undisturbed(tower):
        with captured_layers(layers) as activations:
            embeddings = tower(images)
        torch.set_grad_enabled(False)        # the hooks have turned it on

One model may be shared by threads: passes that are explained take turns (`undisturbed`), and a hook lets every pass of
another thread go by.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import InputError
from ..heavy import torch
from ..messages import Message
from ..weights.modules import evaluating
from .passes import placement
from .subject import SCRIPTED

_one_at_a_time = threading.Lock()  # for what follows, and while a hook takes its number
_turns: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # image tower's network -> whose turn it is
_eager = []  # the compiler's stance before the first of the blocks that are `uncompiled`, None of the others


@contextlib.contextmanager
def undisturbed(tower: torch.nn.Module) -> Iterator[None]:
    """What is computed of `tower` here is plain: in eval mode, without gradients, in its own precision, and uncompiled.

    Whatever surrounds the call (autocast, inference mode, `torch.compile`) or runs beside it: one thread has the tower
    at a time.
    """
    backbone = tower._modules.get("backbone")  # which several towers may share
    with _one_at_a_time:
        turn = _turns.setdefault(tower if backbone is None else backbone, threading.RLock())
    with contextlib.ExitStack() as stack:
        stack.enter_context(turn)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(tower))
        for kind in {"cpu", placement(tower)[0].type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes long to import
            stack.enter_context(_uncompiled())
        yield


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """What was given to `torch.compile` runs as it was written, for a compiled one passes by the hooks.

    The compiler has one stance for all threads: the first block sets it, and the last one to end puts it back.
    InputError where the caller itself is compiled.
    """
    with _one_at_a_time:
        try:
            _eager.append(None if _eager else torch.compiler.set_stance("force_eager"))
        except RuntimeError as error:
            raise InputError(
                "不能在 torch.compile 编译的函数之内求热力图；请在它之外调用（模型本身可以是编译过的）"
            ) from error
    try:
        yield
    finally:
        with _one_at_a_time:
            stance = _eager.pop()
            if stance is not None:
                stance.__exit__(None, None, None)


class Hook:
    """A hook that acts on the passes of the thread it was made in; those of others go by as if there were none."""

    def __init__(self, act: Callable):
        self.act, self.thread = act, threading.get_ident()

    def __call__(self, module, *arguments):
        return self.act(module, *arguments) if threading.get_ident() == self.thread else None


class Hooks:
    """Hooks on modules, each removed in the end, whatever happens."""

    def __init__(self):
        self.handles = []

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *exception) -> None:
        with _one_at_a_time:
            for handle in self.handles:
                handle.remove()

    def before(self, module: torch.nn.Module, act: Callable, **options) -> None:
        """Call act(module, inputs) before a module, to read or to replace what it is given."""
        self._keep(module, "register_forward_pre_hook", act, options)

    def after(self, module: torch.nn.Module, act: Callable, **options) -> None:
        """Call act(module, inputs, output) after a module, to read or to replace what it gives."""
        self._keep(module, "register_forward_hook", act, options)

    def _keep(self, module, register, act, options) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(SCRIPTED, Message("层 {}", type(module).__name__))
        with _one_at_a_time:
            self.handles.append(getattr(module, register)(Hook(act), **options))


def begin_graph(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a fresh leaf, a copy of it to go on with, which later in-place operations may overwrite); gradients are on.

    InputError where they cannot be: in a pass that turns on inference mode itself.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "图像编码器在自己的 forward 中用了 torch.inference_mode()，其中没有梯度；请去掉它，或改用 torch.no_grad()"
        )
    leaf = tensor.detach().requires_grad_()
    torch.set_grad_enabled(True)
    return leaf, leaf.clone()


def half_precision_scale(tensor: torch.Tensor) -> float:
    """What a score is multiplied by, so that its small gradients stay above the smallest float16."""
    return 1024.0 if tensor.dtype == torch.float16 else 1.0


@contextlib.contextmanager
def captured_layers(layers: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What each layer gives in one forward pass under `no_grad`: a leaf, those of later layers on its graph.

    Of a layer that runs several times (an activation that a block shares) it is what it gives last. The list is filled
    when the block ends. InputError for a layer without part in the pass, or that gives no tensor, or reads none.
    """
    activations, outputs = [], {}

    def keep(index):
        def act(module, args, kwargs, output):
            check_reads(module, args, kwargs)
            tensor = tensor_of(output)
            outputs[index], copy = (tensor, tensor.clone()) if tensor.requires_grad else begin_graph(tensor)
            return with_tensor(output, copy)

        return act

    with Hooks() as hooks:
        for index, layer in enumerate(layers):
            hooks.after(layer, keep(index), with_kwargs=True)
        yield activations
    if len(outputs) < len(layers):
        raise InputError("目标层没有参与图像编码器的前向计算，请换一层（--list-layers 列出可用的层）")
    activations += [outputs[index] for index in range(len(layers))]


def check_reads(layer: torch.nn.Module, args: Sequence, kwargs: Mapping) -> None:
    """InputError for a layer that is given nothing or mere indices: position codes, which may look like a map."""
    read = (*args, *kwargs.values())
    if all(isinstance(value, torch.Tensor) and not value.is_floating_point() for value in read):
        raise InputError("目标层 {} 不读取图像，无法计算热力图；请换一层", type(layer).__name__)


def tensor_of(output) -> torch.Tensor:
    """The tensor in a layer's output: the output itself, or the first of a tuple."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise InputError("目标层的输出是 {}，不是张量，无法计算热力图；请换一层", type(output).__name__)
    return tensor


def with_tensor(output, tensor: torch.Tensor):
    """A layer's output with another tensor in the place of `tensor_of`; a named tuple stays one."""
    if not isinstance(output, tuple):
        return tensor
    return output._replace(**{output._fields[0]: tensor}) if hasattr(output, "_fields") else (tensor, *output[1:])


def gradients_of(score: torch.Tensor, activations: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """d score / d each of the activations in float32; zeros where the score does not depend on them."""
    gradients, scale = [None] * len(activations), half_precision_scale(activations[0])
    if score.requires_grad:
        scaled = torch.full_like(score, scale)
        gradients = torch.autograd.grad(score, activations, scaled, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(tensor, dtype=torch.float32) if g is None else g.float() if scale == 1 else g.float() / scale
        for tensor, g in zip(activations, gradients)
    ]
