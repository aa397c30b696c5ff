"""Show which regions of an image a CLIP-style model holds against a sentence: Grad-CAM of the similarity.

    python clip_gradcam_visualization.py --model-path checkpoints/clip_model.pth \
        --image-path image.jpg --class-texts "正常假体" "假体松动" "假体周围感染"

writes a figure of four panels and the overlay alone. In Python:

    model = load_clip_checkpoint("checkpoints/clip_model.pth")
    overlay = visualize_clip_gradcam(model, "image.jpg", ["正常假体", "假体松动"], save_path="result.png")

A folder of images goes to figures and tables in one command, on one process or under torchrun.

Rooms, top to bottom: target layers, CLIPGradCAM, one image whole, many images, the command line. What comes
before them (checkpoints, texts, images) and after them (heatmaps, figures, files, tables) is in `models/`.
The heavy libraries are imported where they are used: a typo in a flag is answered at once.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import gc
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.arguments import ChineseArgumentParser
from models.batch import Ranks, chunk_size
from models.class_texts import names_and_texts, read_class_texts
from models.errors import InputError, InputWarning, print_error, reason
from models.figure import LANGUAGES
from models.files import output_paths, write_files  # noqa: F401 (of the public interface)
from models.folder_run import FolderRun, finish_run, one_thread
from models.heatmap import is_flat, show_cam_on_image, text_sensitivity, to_heatmap, two_decimals
from models.images import (
    find_images,
    is_single,
    preprocess,
    read_image,
)
from models.loading import embed_texts, evaluating, load_clip_checkpoint, load_with_text_features
from models.outputs import (
    ImageMaps,
    ImageResult,
    OutputChoice,
    OutputFiles,
    Question,
    encode_outputs,
    save_results,
)
from models.results import RunFolder, package_versions
from models.text_cache import checkpoint_fingerprint

if TYPE_CHECKING:
    import torch

DEFAULT_IMG_SIZE = 224


# ---------------------------------------------------------------------------------------------
# 1. Target layers

# The last spatial map before pooling, or the block that makes it, as a path below image_encoder.backbone;
# -1 is the last member. ViT: the patch tokens of the last block's OUTPUT no longer reach the class token.
_FAMILY_TARGET_LAYERS = {
    "layer4.-1": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "stages.-1.-1": ("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"),
    "norm": ("starnet_dual_pyramid_rcf",),
    "features.-1.-1": ("convnext-tiny", "convnext-small", "convnext-base", "convnext-large"),
    "features.-1": tuple(f"efficientnet-b{i}" for i in range(8)),
    "layers.-1.layernorm_before": ("vit",),
}
TARGET_LAYERS = {encoder: path for path, encoders in _FAMILY_TARGET_LAYERS.items() for encoder in encoders}


def _known_encoders(name) -> str:
    """The encoders closest to a name that is none of them, and all."""
    close = difflib.get_close_matches(str(name).lower(), TARGET_LAYERS, n=3, cutoff=0.5)
    return (f"最接近的是 {'、'.join(close)}；" if close else "") + f"支持：{'、'.join(TARGET_LAYERS)}"


def get_target_layer_for_clip(model, image_encoder_name: str | None = None) -> torch.nn.Module:
    """Return the module whose output Grad-CAM explains by default; ValueError for an encoder without a row."""
    name = image_encoder_name or model.image_encoder_name
    if name not in TARGET_LAYERS:
        raise InputError(f"没有图像编码器 {name!r} 的默认目标层，请用 --target-layer 指定；{_known_encoders(name)}")
    module = model.image_encoder.backbone
    for part in TARGET_LAYERS[name].split("."):
        if part == "layers" and not hasattr(module, part):
            module, part = module.encoder, "layer"  # a ViT of an older transformers
        module = module[-1] if part == "-1" else getattr(module, part)
    return module


LAYER_PREFIXES = ("", "image_encoder.", "image_encoder.backbone.")


def find_layer(model, name: str) -> torch.nn.Module:
    """Return the module at a dotted path, from the model, its image encoder or its backbone; InputError if none."""
    modules = dict(model.named_modules())
    for prefix in LAYER_PREFIXES:
        if name and prefix + name in modules:
            return modules[prefix + name]
    backbone = LAYER_PREFIXES[-1]
    candidates = [key.removeprefix(backbone) for key in modules if key.startswith(backbone)]
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.3)
    hint = f"最接近的是 {'、'.join(close)}；" if close else ""
    raise InputError(f"模型中没有层 {name!r}；{hint}--list-layers 列出全部可用的层")


def layer_name(model, layer: torch.nn.Module) -> str:
    """Dotted path of a module below the image encoder's backbone, or below the model."""
    for name, module in model.named_modules():
        if module is layer:
            return name.removeprefix(LAYER_PREFIXES[-1])
    return type(layer).__name__


def list_spatial_layers(model, img_size: int) -> list[tuple[str, tuple[int, int, int]]]:
    """(dotted path, (channels, rows, columns)) of each module of the backbone that gives a spatial map."""
    import torch

    shapes = {}
    token_grid = _token_grid(model, (img_size, img_size))

    def record(module, _, output):
        with contextlib.suppress(InputError):
            shapes[module] = tuple(_as_maps(_tensor_of(output), (img_size, img_size), token_grid).shape[1:])

    backbone = model.image_encoder.backbone
    handles = [module.register_forward_hook(record) for name, module in backbone.named_modules() if name]
    parameter = next(model.parameters())
    try:
        with evaluating(model.image_encoder), torch.no_grad():
            model.image_encoder(torch.zeros(1, 3, img_size, img_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return [(name, shapes[module]) for name, module in backbone.named_modules() if module in shapes]


# ---------------------------------------------------------------------------------------------
# 2. CLIPGradCAM: hook, gradient, heatmap


class Explanation(NamedTuple):
    """What one forward pass gives for B images, K texts and T explained texts per image; float32."""

    maps: torch.Tensor  # [B, T, h, w] at the target layer, before the ReLU
    gradient_peaks: torch.Tensor  # [B, T] largest |gradient| at the layer
    similarities: torch.Tensor  # [B, K] cosine
    targets: torch.Tensor  # [B, T] index of each explained text


class CLIPGradCAM:
    """Grad-CAM of the cosine similarity between an image and a text.

    L = [ sum_k <g_k> A_k ]+ with A the target layer's activations, g = d cos(image, text) / dA and <.> the
    spatial mean (Selvaraju et al. 2017, arXiv 1610.02391). The similarity itself is explained, never a
    softmax over texts: a softmax's gradient is zero with one text and shrinks with confidence.

    `model` needs an `image_encoder`; `target_layer` is one of its modules. With `use_cuda` the model moves
    to CUDA where there is one. Usable as a context manager; no hook outlives a call.
    """

    def __init__(self, model, target_layer: torch.nn.Module, use_cuda: bool = True):
        import torch

        self.model = model.to("cuda") if use_cuda and torch.cuda.is_available() else model
        self.target_layer = target_layer

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False

    def __call__(self, images, text_features, target_text_idx=None) -> np.ndarray:
        """Images [B, 3, H, W] (or [3, H, W]), text features [K, D] -> float32 [B, H, W] in [0, 1]; [H, W] if B is 1.

        `target_text_idx`: the text explained, one int for all images or one per image; None takes the most
        similar text of each image. A flat map comes back as zeros, with a warning that says why.
        """
        images = images[None] if images.ndim == 3 else images
        explanation = self.explain(images, text_features, target_text_idx)
        heatmaps = []
        for maps, peaks in zip(explanation.maps, explanation.gradient_peaks):
            flaw = diagnose_flat_map(self.model, maps[0], peaks[0])
            if flaw:
                warnings.warn(flaw, InputWarning, stacklevel=2)
            heatmaps.append(to_heatmap(maps[0], images.shape[-2:]))
        return heatmaps[0] if len(heatmaps) == 1 else np.stack(heatmaps)

    def explain(self, images, text_features, target_text_idx=None, contrast: float = 0.0) -> Explanation:
        """One forward pass to the maps of one or several texts per image, before ReLU, at the layer's size.

        `target_text_idx` as in the call, or [B, T]. `contrast`: gamma of `contrastive_directions`. The graph
        begins at the target layer, so frozen weights, `no_grad` and half precision make no difference, and no
        parameter's `.grad` is touched.
        """
        import torch
        from torch.nn import functional as F

        parameter = next(self.model.image_encoder.parameters())
        images = images.to(parameter.device, parameter.dtype)
        if len(images) > 1 and images.device.type == "cpu":  # a quarter faster there; one image alone is not
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model.image_encoder):
            images = images.clone() if images.is_inference() else images  # autograd saves no inference tensor
            texts = F.normalize(text_features.detach().clone().to(parameter.device).float(), dim=-1)
            activations, embeddings = self._forward_from_leaf(images)
            embeddings = F.normalize(embeddings.float(), dim=-1)
            similarities = embeddings @ texts.T  # (B, K), gradients on
            scores = embeddings @ contrastive_directions(texts, contrast).T if contrast else similarities
            targets = _target_indices(target_text_idx, similarities.detach())
            token_grid = _token_grid(self.model, images.shape[-2:])
            A = _as_maps(activations.detach(), images.shape[-2:], token_grid).float()  # (B, C, h, w)
            maps, peaks = [], []
            for column in targets.T:  # one text of each image
                gradients = _gradient(scores.gather(1, column[:, None]).sum(), activations)
                g = _as_maps(gradients, images.shape[-2:], token_grid)
                maps.append(torch.einsum("bc,bchw->bhw", g.mean((2, 3)), A))
                peaks.append(g.abs().amax((1, 2, 3)))
        maps = torch.stack(maps, 1)
        if not torch.isfinite(maps).all():
            raise InputError("热力图中出现 NaN 或无穷大：请检查检查点的权重和图像的数值是否有限")
        return Explanation(maps, torch.stack(peaks, 1), similarities.detach(), targets)

    def _forward_from_leaf(self, images):
        """(activations at the target layer, a fresh leaf; embeddings [B, D] with the graph between the two)."""
        import torch

        leaves = []

        def start_graph(module, inputs, output):
            leaf = _tensor_of(output).detach().requires_grad_()
            leaves[:] = [leaf]
            torch.set_grad_enabled(True)  # until the no_grad block of the caller ends
            copy = leaf.clone()  # what later in-place operations may overwrite
            return (copy, *output[1:]) if isinstance(output, tuple) else copy

        handle = self.target_layer.register_forward_hook(start_graph)
        try:
            embeddings = self.model.image_encoder(images)
        finally:
            handle.remove()
        if not leaves:
            raise InputError("目标层没有参与图像编码器的前向计算，请换一层（--list-layers 列出可用的层）")
        return leaves[0], embeddings


def _tensor_of(output):
    """The tensor in a layer's output: the output itself, or the first of a tuple."""
    import torch

    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise InputError(f"目标层的输出是 {type(output).__name__}，不是张量，无法计算热力图；请换一层")
    return tensor


def _token_grid(model, image_hw) -> tuple[int, int, int] | None:
    """(prefix tokens, rows, columns) that the model says its tokens have; None where it has none."""
    token_grid = getattr(model.image_encoder, "token_grid", None)
    return token_grid(*image_hw) if token_grid else None


def _as_maps(tensor, image_hw, token_grid):
    """A layer's output as [B, C, h, w]: feature maps, channels-last maps, or tokens without their prefix.

    Raises InputError where it is none of these.
    """
    if tensor.ndim == 3 and token_grid:
        prefix, rows, columns = token_grid
        if tensor.shape[1] != prefix + rows * columns:
            raise InputError(f"该层有 {tensor.shape[1]} 个词元，模型的网格是 {prefix} + {rows}×{columns} 个；请换一层")
        return tensor[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
    if tensor.ndim == 4:
        channels_first = _stretch(tensor.shape[2:], image_hw)
        channels_last = _stretch(tensor.shape[1:3], image_hw)
        if min(channels_first, channels_last) <= 2:
            return tensor if channels_first <= channels_last else tensor.permute(0, 3, 1, 2)
    raise InputError(f"该层的输出形状是 {list(tensor.shape)}，不是空间特征图，无法计算热力图；请换一层")


def _stretch(grid, image_hw) -> float:
    """How far a grid's cells are from square on the image: 1 if square, else the ratio of their sides."""
    height, width = image_hw[0] / grid[0], image_hw[1] / grid[1]
    return max(height / width, width / height)


def _target_indices(target_text_idx, similarities):
    """None, an int, one int per image, or [B, T] -> int64 [B, T]. InputError names the range."""
    import torch

    batch, texts = similarities.shape
    if target_text_idx is None:
        return similarities.argmax(dim=1, keepdim=True)
    targets = torch.as_tensor(target_text_idx, device=similarities.device)
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise InputError(f"目标文本索引应是整数，收到 {target_text_idx!r}")
    if targets.ndim == 0:
        targets = targets.expand(batch)
    targets = targets.long().reshape(targets.shape[0], -1)
    if targets.shape[0] != batch:
        raise InputError(f"目标文本索引有 {targets.shape[0]} 个，图像有 {batch} 张；请给一个整数，或每张图像一个")
    if targets.numel() and (targets.min() < 0 or targets.max() >= texts):
        raise InputError(f"目标文本索引 {target_text_idx} 超出范围：共 {texts} 个文本，可用 0 到 {texts - 1}")
    return targets


CONTRAST_GAMMA = 0.6


def contrastive_directions(texts: torch.Tensor, gamma: float = CONTRAST_GAMMA) -> torch.Tensor:
    """t_k - gamma * mean of the other texts, for unit text features [K, D].

    Their product with the image's embedding is cos(image, t_k) - gamma * mean cos(image, others): what speaks
    for this text rather than for the others (Finer-CAM, arXiv 2501.11309). InputError where K is 1.
    """
    if len(texts) < 2:
        raise InputError("对比（--contrast）至少需要两个类别文本")
    return texts - gamma * (texts.sum(0) - texts) / (len(texts) - 1)


HALF_PRECISION_SCALE = 1024.0  # keeps small gradients above the smallest float16


def _gradient(score, activations):
    """d score / d activations in float32; zeros where the score does not depend on them."""
    import torch

    if not score.requires_grad:
        return torch.zeros_like(activations, dtype=torch.float32)
    scale = HALF_PRECISION_SCALE if activations.dtype == torch.float16 else 1.0
    (gradient,) = torch.autograd.grad(score * scale, activations, retain_graph=True, allow_unused=True)
    return torch.zeros_like(activations, dtype=torch.float32) if gradient is None else gradient.float() / scale


def diagnose_flat_map(model, raw_map: torch.Tensor | np.ndarray, gradient_peak) -> str | None:
    """Why a map [h, w] (before the ReLU) shows nothing, and what to try; None for a map that shows something."""
    if not is_flat(raw_map):
        return None
    if gradient_peak == 0:
        cause = "梯度为零，相似度不依赖于该层的这些位置；请用 --target-layer 换一层（--list-layers 列出可用的层）"
    elif raw_map.max() <= 0 and math.prod(raw_map.shape) > 1:
        cause = "所有位置的加权激活都不为正，即这段文本与图像相反；请换一个文本描述或目标文本"
    else:
        cause = f"该层各处的值相同（{raw_map.shape[0]}×{raw_map.shape[1]} 网格）；请用 --target-layer 换更靠前的一层"
    untrained = "；另外，归一化层的参数全是初始值，检查点看起来未经训练" if looks_untrained(model) else ""
    return f"热力图为空：{cause}{untrained}"


def looks_untrained(model) -> bool:
    """True where every normalisation layer of the image encoder still has the scale 1 and the shift 0."""
    norms = [
        module
        for module in model.image_encoder.modules()
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
    ]
    return bool(norms) and all(bool((m.weight == 1).all()) and bool((m.bias == 0).all()) for m in norms)


# ---------------------------------------------------------------------------------------------
# 3. One image, whole


class Explainer:
    """A model, its target layer and the texts: images in, the maps of every text out, one forward pass for all."""

    def __init__(self, model, text_features, question: Question, target_layer=None, encoder: str | None = None):
        self.model, self.text_features, self.question = model, text_features, question
        self.encoder = encoder or getattr(model, "image_encoder_name", type(model).__name__)
        layer = find_layer(model, target_layer) if isinstance(target_layer, str) else target_layer
        self.layer = layer or get_target_layer_for_clip(model, self.encoder)
        self.layer_name = layer_name(model, self.layer)

    def twin(self) -> Explainer:
        """The same over the same weights, with modules of its own: hooks of two threads do not meet."""
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        layer = copy.deepcopy([self.model, self.layer], shared)
        return Explainer(layer[0], self.text_features, self.question, layer[1], self.encoder)

    def __call__(self, images: torch.Tensor) -> list[ImageMaps]:
        """Model input [B, 3, S, S] -> the maps of each image."""
        import torch

        every = torch.arange(len(self.question.texts)).expand(len(images), -1)
        cam = CLIPGradCAM(self.model, self.layer, use_cuda=False)
        explanation = cam.explain(images, self.text_features, every, self.question.contrast)
        similarities = explanation.similarities
        logits = similarities / self.model.temperature.detach().float().to(similarities.device)
        parts = (explanation.maps, explanation.gradient_peaks, similarities, logits.softmax(dim=1))
        return [ImageMaps(*image) for image in zip(*(part.cpu().numpy() for part in parts))]

    def result(self, pixels: np.ndarray, image: ImageMaps) -> ImageResult:
        """Everything that figures, files and tables say of one image; pixels uint8 [H, W, 3]."""
        targets = self.question.targets
        targets = [int(image.similarities.argmax())] if targets is None else list(targets)
        flaws = [diagnose_flat_map(self.model, image.maps[t], image.gradient_peaks[t]) for t in targets]
        return ImageResult(
            pixels=pixels,
            maps=image.maps,
            question=self.question,
            probabilities=image.probabilities,
            similarities=image.similarities,
            targets=targets,
            source=(self.encoder, self.layer_name, *image.maps.shape[1:]),
            flaws=flaws,
            sensitivities=[text_sensitivity(image.maps, target) for target in targets],
        )


def explained_texts(target_text_idx, count: int) -> list[int] | None:
    """None, "all", an int or several -> indices without repetition, None for the most similar; InputError if none."""
    if target_text_idx is None:
        return None
    if isinstance(target_text_idx, str):
        if target_text_idx != "all":
            raise InputError(f'目标文本索引应是整数、整数列表或 "all"，收到 {target_text_idx!r}')
        return list(range(count))
    targets = np.atleast_1d(np.asarray(target_text_idx))
    if targets.ndim > 1 or targets.size == 0 or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"目标文本索引应是整数，收到 {target_text_idx!r}")
    if targets.min() < 0 or targets.max() >= count:
        raise InputError(f"目标文本索引 {target_text_idx} 超出范围：共 {count} 个文本，可用 0 到 {count - 1}")
    return list(dict.fromkeys(targets.tolist()))


def explain_image(
    model,
    pixels: np.ndarray,
    class_texts: Sequence[str] | Mapping[str, str],
    target_layer=None,
    target_text_idx: int | Sequence[int] | str | None = None,
    img_size: int = DEFAULT_IMG_SIZE,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    text_features: torch.Tensor | None = None,
    contrast: bool = False,
) -> ImageResult:
    """From RGB pixels [H, W, 3] and K class texts to everything that is shown of them.

    As `visualize_clip_gradcam`, without files; `text_features` [K, D] spare embedding the texts again.
    """
    import torch

    names, texts = names_and_texts(class_texts)
    targets = explained_texts(target_text_idx, len(texts))
    question = Question(names, texts, targets, CONTRAST_GAMMA if contrast else 0.0)
    if use_cuda and torch.cuda.is_available():
        model.to("cuda")
    explainer = Explainer(model, text_features, question, target_layer, image_encoder_name)
    if text_features is None:
        explainer.text_features = embed_texts(model, texts)
    (maps,) = explainer(preprocess(pixels, img_size))
    return explainer.result(pixels, maps)


def visualize_clip_gradcam(
    model,
    image_path: str | os.PathLike,
    class_texts: Sequence[str] | Mapping[str, str],
    target_layer=None,
    target_text_idx: int | Sequence[int] | str | None = None,
    img_size: int = DEFAULT_IMG_SIZE,
    save_path: str | os.PathLike | None = None,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    contrast: bool = False,
) -> np.ndarray:
    """Explain one image against the class texts; returns the overlay, float32 RGB [H, W, 3] in [0, 1].

    `class_texts`: a list, or a dict {short name: description}. `target_text_idx`: None explains the most
    similar text; several, or "all", give overlays [T, H, W, 3] that share one colour scale. `target_layer`:
    a module or a dotted path, None for the encoder's own. `img_size` counts where the model's checkpoint
    names none. `contrast`: what speaks for a text rather than for the others. With `save_path` the figure
    and the overlays are written. Raises InputError for an image, texts or an index that cannot be used.
    """
    own_size = getattr(model, "img_size", None)
    if own_size and img_size not in (own_size, DEFAULT_IMG_SIZE):
        warnings.warn(f"img_size={img_size} 与检查点不符，按检查点的 {own_size} 处理", InputWarning, stacklevel=2)
    result = explain_image(
        model,
        read_image(image_path),
        class_texts,
        target_layer=target_layer,
        target_text_idx=target_text_idx,
        img_size=own_size or img_size,
        use_cuda=use_cuda,
        image_encoder_name=image_encoder_name,
        contrast=contrast,
    )
    for message in result.messages():
        warnings.warn(message, InputWarning, stacklevel=2)
    if save_path is not None:
        save_results(result, save_path)
    if target_text_idx is None or np.ndim(target_text_idx) == 0 and not isinstance(target_text_idx, str):
        return result.overlay
    return np.stack([show_cam_on_image(result.pixels, heatmap) for heatmap in result.heatmaps()])


# ---------------------------------------------------------------------------------------------
# 4. Many images


def run_many(args, question: Question) -> int:
    """Images of a list to files and tables, alone or as one of torchrun's ranks; returns the exit code."""
    import torch

    if not gc.isenabled():  # see the end of this file
        gc.freeze()  # what the imports have made stays; from here on there is garbage to collect
        gc.enable()
    ranks, folder, threads = Ranks(), RunFolder(args.output_dir), torch.get_num_threads()
    one_thread()
    with contextlib.ExitStack() as stack:
        if ranks.is_first:
            check_output_folder(folder.folder)
            listed = find_images(args.image_path, exclude=args.output_dir)
        else:
            warnings.simplefilter("ignore", InputWarning)  # the first rank says it
        model, text_features = load_from_arguments(args, question.texts, ranks.local_rank)
        explainer = Explainer(model, text_features, question, args.target_layer)
        run_columns = {"checkpoint": checkpoint_fingerprint(args.model_path), "packages": package_versions()}
        if ranks.is_first:
            stack.enter_context(folder.lock())
            settings = run_settings(args, explainer, listed.root, run_columns)
            folder.begin(settings, listed.images, resume=args.resume or ranks.attempt > 0)
        ranks.announce("planned")
        ranks.wait_for("planned", [0])
        plan = folder.plan()
        size = chunk_size(len(plan), explainer.text_features.device.type == "cpu", threads, ranks)
        given = {"batch": args.batch_size, "num_workers": args.num_workers}
        size = size._replace(**{name: value for name, value in given.items() if value is not None})
        folder_run = FolderRun(explainer, image_size(model), folder, output_choice(args), run_columns)
        return finish_run(folder_run, plan, size, ranks)


def run_settings(args, explainer: Explainer, root: str, run_columns: Mapping) -> dict:
    """What two runs must agree in for the second to go on where the first one stopped."""
    question = explainer.question
    return {
        "texts": list(zip(question.names, question.texts)),
        "targets": question.targets,
        "contrast": question.contrast,
        "layer": explainer.layer_name,
        "img_size": image_size(explainer.model),
        **output_choice(args)._asdict(),
        "root": root,
        **run_columns,
    }


# ---------------------------------------------------------------------------------------------
# 5. The command line

# flag, what argparse is told, help
FLAGS = (
    ("--model-path", {"metavar": "PATH"}, "模型检查点路径（必需），.pth 或 .safetensors"),
    (
        "--image-path",
        {"metavar": "PATH", "nargs": "+"},
        "图像路径（必需）：图像、文件夹（含子文件夹）或通配符，可以多个；多张图像时另写结果表",
    ),
    ("--class-texts", {"metavar": "TEXT", "nargs": "+"}, "类别文本描述列表（与 --class-texts-file 二选一）"),
    ("--class-texts-file", {"metavar": "PATH"}, "类别文本描述 JSON 文件（与 --class-texts 二选一）"),
    (
        "--target-text-idx",
        {"metavar": "INT", "type": int, "nargs": "+"},
        "目标文本索引，从 0 开始，可以多个（默认：最相似的文本）",
    ),
    ("--all-texts", {"action": "store_true"}, "解释全部文本（与 --target-text-idx 二选一）"),
    ("--contrast", {"action": "store_true"}, "对比：显示支持该文本而不支持其他文本的区域"),
    ("--image-encoder", {"metavar": "NAME"}, "图像编码器名称（如果无法从检查点获取）"),
    ("--text-encoder", {"metavar": "NAME"}, "文本编码器名称或本地文件夹（默认：bert-base-chinese）"),
    ("--embed-dim", {"metavar": "INT", "type": int}, "嵌入维度（默认：512；检查点中有则以检查点为准）"),
    ("--img-size", {"metavar": "INT", "type": int}, "图像大小（默认：224；检查点中有则以检查点为准）"),
    ("--output-dir", {"metavar": "PATH", "default": "clip_gradcam_results"}, "输出目录（默认：clip_gradcam_results）"),
    ("--output-name", {"metavar": "NAME"}, "输出文件名（默认：clip_gradcam_<图像名>.png；也可用 .pdf、.svg、.jpg）"),
    ("--target-layer", {"metavar": "NAME"}, "目标层的名称，例如 layer4.1（默认：按图像编码器自动选择）"),
    ("--list-layers", {"action": "store_true"}, "列出可作为目标层的层后退出，只需要 --model-path"),
    ("--lang", {"choices": LANGUAGES, "default": "zh"}, "图中文字的语言：zh 中文（默认），en 英文"),
    ("--save-heatmap", {"action": "store_true"}, "另存未归一化的热力图（.npy，float32）：原图大小和目标层大小各一份"),
    ("--no-figure", {"action": "store_true"}, "不写可视化图"),
    ("--overlay-only", {"action": "store_true"}, "只写叠加图像"),
    ("--resume", {"action": "store_true"}, "接着上次没有做完的运行，只做缺少的图像"),
    (
        "--batch-size",
        {"metavar": "INT", "type": int},
        "多张图像时一次前向的图像数（默认：CPU 至多 8，GPU 至多 32）",
    ),
    (
        "--num-workers",
        {"metavar": "INT", "type": int},
        "多张图像时读取图像的进程数（默认：核数的一半，至多 4；不足 4 核时为 0）",
    ),
    ("--no-text-cache", {"action": "store_true"}, "不使用文本特征缓存"),
    ("--cpu", {"action": "store_true"}, "强制使用 CPU（默认：有 CUDA 用 CUDA，其次 Apple MPS，否则 CPU）"),
    ("--help", {"action": "help"}, "显示本帮助后退出"),
)


def build_parser() -> ChineseArgumentParser:
    """The parser of the command line: every flag of the guide with its default."""
    parser = ChineseArgumentParser(
        prog="clip_gradcam_visualization.py",
        description="用 Grad-CAM 显示图像中哪些区域与一段文本最相关（CLIP 图像-文本相似度的热力图）。",
        epilog="例：python clip_gradcam_visualization.py --model-path m.pth --image-path a.jpg --class-texts 正常 异常",
        add_help=False,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("参数")
    either = {}  # one of each pair
    for pair in (("--class-texts", "--class-texts-file"), ("--target-text-idx", "--all-texts")):
        either.update(dict.fromkeys(pair, group.add_mutually_exclusive_group()))
    for flag, options, text in FLAGS:
        names = ("-h", flag) if flag == "--help" else (flag,)
        either.get(flag, group).add_argument(*names, **options, help=text)
    return parser


def check_arguments(args) -> None:
    """Complain of what argparse cannot see: what is required depends on --list-layers."""
    required = {"--model-path": args.model_path}
    if not args.list_layers:
        required["--image-path"] = args.image_path
        required["--class-texts 或 --class-texts-file"] = args.class_texts or args.class_texts_file
    missing = [flag for flag, value in required.items() if not value]
    if missing:
        raise InputError(f"缺少必需的参数：{'、'.join(missing)}（--help 显示用法）")
    if args.image_encoder is not None and args.image_encoder not in TARGET_LAYERS:
        raise InputError(f"未知的图像编码器 {args.image_encoder!r}；{_known_encoders(args.image_encoder)}")
    for flag, value, least in (
        ("--img-size", args.img_size, 16),
        ("--embed-dim", args.embed_dim, 1),
        ("--batch-size", args.batch_size, 1),
        ("--num-workers", args.num_workers, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{flag} 至少是 {least}，收到 {value}")
    if args.overlay_only and args.save_heatmap:
        raise InputError("--overlay-only 与 --save-heatmap 只能二选一；只是不要可视化图请用 --no-figure")


def check_output_folder(folder: Path) -> None:
    """Raise InputError before any work where `folder` is no folder or cannot be written. Makes nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"输出目录 {folder} 无法建立：{existing} 是文件")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"没有写入输出目录 {folder} 的权限")


def choose_device(force_cpu: bool, local_rank: int = 0) -> str:
    """CUDA where there is one (the ranks of a machine take turns at its devices), else Apple's MPS, else the CPU."""
    import torch

    if not force_cpu and torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}" if local_rank else "cuda"
    if not force_cpu and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def architecture_flags(args) -> tuple:
    """What the flags say of the model where its checkpoint does not."""
    return args.image_encoder, args.text_encoder, args.embed_dim, args.img_size


def image_size(model) -> int:
    """The side of the square that images are resized to: the checkpoint's or the flag's, else the guide's."""
    return model.img_size or DEFAULT_IMG_SIZE


def load_from_arguments(args, texts: list[str], local_rank: int = 0):
    """(model of --model-path on its device, features of `texts` [K, D])."""
    device = choose_device(args.cpu, local_rank)
    use_cache = not args.no_text_cache
    return load_with_text_features(
        args.model_path, texts, *architecture_flags(args), device=device, use_cache=use_cache
    )


def question_of(args) -> Question:
    """The texts, and which of them are explained; InputError where they do not go together."""
    names, texts = names_and_texts(
        read_class_texts(args.class_texts_file) if args.class_texts_file else args.class_texts
    )
    for index in args.target_text_idx or ():
        if not 0 <= index < len(names):
            limit = len(names) - 1
            raise InputError(f"--target-text-idx {index} 超出范围：共 {len(names)} 个文本，可用 0 到 {limit}")
    if args.contrast and len(names) < 2:
        raise InputError("--contrast 至少需要两个类别文本")
    targets = explained_texts("all" if args.all_texts else args.target_text_idx, len(names))
    return Question(names, texts, targets, CONTRAST_GAMMA if args.contrast else 0.0)


def output_choice(args) -> OutputChoice:
    return OutputChoice(not (args.no_figure or args.overlay_only), args.save_heatmap, args.lang)


def run(args) -> int:
    """One command, whole; returns the exit code. Cheap checks come first: a mistake is answered before the model."""
    check_arguments(args)
    if args.list_layers:
        print_layers(load_clip_checkpoint(args.model_path, *architecture_flags(args), text_tower=False))
        return 0
    question = question_of(args)
    if is_single(args.image_path) and not args.resume and "RANK" not in os.environ:
        run_one(args, question)
        return 0
    if args.output_name:
        raise InputError("--output-name 只用于单张图像；多张图像的输出名由各自的路径决定")
    return run_many(args, question)


def run_one(args, question: Question) -> None:
    """One image to its files, as the guide says."""
    image_path = args.image_path[0]
    save_path = Path(args.output_dir) / (args.output_name or f"clip_gradcam_{Path(image_path).stem}.png")
    check_output_folder(save_path.parent)
    pixels = read_image(image_path)
    model, text_features = load_from_arguments(args, question.texts)
    explainer = Explainer(model, text_features, question, args.target_layer)
    (maps,) = explainer(preprocess(pixels, image_size(model)))
    result = explainer.result(pixels, maps)
    for message in result.messages():
        warnings.warn(message, InputWarning, stacklevel=1)
    files = encode_outputs(result, save_path, output_choice(args))
    write_files(files.contents)
    print_result(result, files)


def print_layers(model) -> None:
    """Each layer that gives a spatial map, its size, and a mark at the default."""
    default = layer_name(model, get_target_layer_for_clip(model))
    img_size = image_size(model)
    print(f"{model.image_encoder_name} 可作为目标层的层（输入 {img_size}×{img_size}；通道×行×列）：")
    for name, (channels, rows, columns) in list_spatial_layers(model, img_size):
        if rows * columns > 1:
            print(f"  {name}  {channels}×{rows}×{columns}" + ("  （默认）" if name == default else ""))


def print_result(result: ImageResult, files: OutputFiles) -> None:
    """Prediction, explained texts, layer, and the path of each file."""
    names, best = result.question.names, int(result.probabilities.argmax())
    print(f"预测：{names[best]}（{result.probabilities[best]:.1%}）")
    for target, sensitivity in zip(result.targets, result.sensitivities):
        depends = "" if sensitivity is None else f"，文本敏感度 {two_decimals(sensitivity)}"
        print(f"目标文本：[{target}] {names[target]}（余弦相似度 {result.similarities[target]:.3f}{depends}）")
    encoder, layer, rows, columns = result.source
    print(f"图像编码器：{encoder}，目标层：{layer}（{rows}×{columns}）")
    kinds = (("可视化图", [files.figure] if files.figure else []), ("叠加图像", files.overlays))
    for kind, paths in (*kinds, ("热力图", files.heatmaps), ("目标层热力图", files.layer_heatmaps)):
        for path in paths:
            print(f"{kind}已保存：{path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0; 1 where some images of many failed; 2 where nothing could start, after one line `错误: ...` on standard
    error; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say to developers
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = lambda message, *_: print("警告:", *str(message).split(), file=sys.stderr)
            exit_code = run(build_parser().parse_args(argv))
            sys.stdout.flush()  # here, where a closed pipe is expected
            return exit_code
    except InputError as error:
        print_error(error)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not re.search(r"out of memory|allocate", str(error)) and not isinstance(error, MemoryError):
            raise
        print_error("内存或显存不足；请减小 --img-size 或 --batch-size，或加 --cpu")
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a name longer than the file system takes, say
        print_error(f"{reason(error)}：{error.filename}")
        return 2
    except KeyboardInterrupt:
        print("已中断；多张图像时加 --resume 接着做", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # One image, then the end: collecting garbage among the objects that imports make, and taking them
    # down one by one at exit, would cost as much time as importing torch.
    gc.disable()
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
