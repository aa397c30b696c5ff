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
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.arguments import FLAGS, build_parser  # noqa: F401 (FLAGS: of the public interface)
from models.batch import Ranks, chunk_size
from models.class_texts import names_and_texts, read_class_texts
from models.errors import InputError, InputWarning, print_error, reason
from models.files import check_output_folder, output_paths, write_files  # noqa: F401 (output_paths likewise)
from models.folder_run import FolderRun, finish_run, one_thread
from models.heatmap import diagnose_flat_map, show_cam_on_image, text_sensitivity, to_heatmap
from models.images import find_images, is_single, read_image, to_pixels
from models.layer_maps import (
    as_maps,
    find_layer,
    fuse_layers,
    layer_name,
    layers_name,
    list_spatial_layers,
    tensor_of,
    token_grid_of,
    without_rounding,
)
from models.loading import (
    choose_device,
    embed_texts,
    evaluating,
    fingerprint,
    load_clip_checkpoint,
    load_with_text_features,
)
from models.outputs import (
    ImageMaps,
    ImageResult,
    OutputChoice,
    Question,
    Results,
    encode_outputs,
    explained_texts,
    save_results,
    summary,
)
from models.preprocessing import Preprocessing, Region, preprocess, square  # noqa: F401 (preprocess likewise)
from models.results import RunFolder, package_versions

if TYPE_CHECKING:
    import torch

DEFAULT_IMG_SIZE = 224


# ---------------------------------------------------------------------------------------------
# 1. Target layers

# The last spatial map before pooling, or the block that makes it, as a path below image_encoder.backbone; -1 is
# the last member, -2 the one before. ViT: the patch tokens of the last block's OUTPUT no longer reach the class token.
_FAMILY_TARGET_LAYERS = {
    "layer4.-1": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "stages.-1.-1": ("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"),
    "norm": ("starnet_dual_pyramid_rcf",),
    "features.-1.-1": ("convnext-tiny", "convnext-small", "convnext-base", "convnext-large"),
    "features.-1": tuple(f"efficientnet-b{i}" for i in range(8)),
    "layers.-1.layernorm_before": ("vit",),
}
TARGET_LAYERS = {encoder: path for path, encoders in _FAMILY_TARGET_LAYERS.items() for encoder in encoders}
# The image towers of models.pretrained. SigLIP pools all tokens: those that the pool reads have a gradient.
PRETRAINED_TARGET_LAYERS = {
    "clip-vit": "encoder.layers.-1.layer_norm1",
    "siglip-vit": "post_layernorm",
    "siglip2-vit": "post_layernorm",
    "clip-resnet": "layer4.-1",
}


class Default(NamedTuple):
    """What is explained where nothing is asked for; `--method gradcam` is always the guide's Grad-CAM."""

    method: str = "gradcam"
    similarity: str = "cosine"
    layers: tuple[str, ...] = ()  # paths as above, their maps fused; none: the target layer, or the method's blocks


# Chosen by `tests/evaluate.py --choose` on validation phantoms; families that were not measured have no row.
DEFAULTS = {
    **dict.fromkeys(
        ("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"), Default(layers=("stages.-2.-1", "stages.-1.-1"))
    ),
    **dict.fromkeys(("vit", "clip-vit"), Default("layercam")),
}


def _known_encoders(name) -> str:
    """The encoders closest to a name that is none of them, and all."""
    close = difflib.get_close_matches(str(name).lower(), TARGET_LAYERS, n=3, cutoff=0.5)
    return (f"最接近的是 {'、'.join(close)}；" if close else "") + f"支持：{'、'.join(TARGET_LAYERS)}"


def get_target_layer_for_clip(model, image_encoder_name: str | None = None) -> torch.nn.Module:
    """Return the module whose output Grad-CAM explains by default; ValueError for an encoder without a row."""
    name = image_encoder_name or model.image_encoder_name
    path = TARGET_LAYERS.get(name) or PRETRAINED_TARGET_LAYERS.get(name)
    if path is None:
        raise InputError(f"没有图像编码器 {name!r} 的默认目标层，请用 --target-layer 指定；{_known_encoders(name)}")
    return _module_at(model, path)


def _module_at(model, path: str) -> torch.nn.Module:
    """The module at a path of the tables, from the image encoder's backbone on."""
    module = model.image_encoder.backbone
    for part in path.split("."):
        if part == "layers" and not hasattr(module, part):
            module, part = module.encoder, "layer"  # a ViT of an older transformers
        module = module[int(part)] if part.startswith("-") else getattr(module, part)
    return module


# ---------------------------------------------------------------------------------------------
# 2. The methods: from activations A and gradients g = dy/dA of a layer, both [B, C, h, w], to maps [B, h, w] before
# the ReLU. <.> is the mean over positions.


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


def eigencam(A, g=None):
    """X v, X the positions x channels of A, each channel centred, v its first right singular vector. Knows no text.

    The sign of v is arbitrary: turned so that the largest value is positive (Muhammad & Yeasin 2020, arXiv 2008.00299).
    """
    import torch

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
    import torch

    return torch.einsum("bc,bchw->bhw", weights, A)


class Method(NamedTuple):
    """One row of METHODS."""

    formula: Callable | None  # of a layer's activations and gradients; None: of the attention, see models.attention
    knows_text: bool = True


METHODS = {
    "gradcam": Method(gradcam),
    "hirescam": Method(hirescam),
    "gradcam++": Method(gradcam_plus_plus),
    "layercam": Method(layercam),
    "xgradcam": Method(xgradcam),
    "eigencam": Method(eigencam, knows_text=False),
    "scorecam": Method(scorecam),
    "legrad": Method(None),
    "grad-eclip": Method(None),
    "rollout": Method(None, knows_text=False),
}
SCORECAM_CHANNELS, SCORECAM_BATCH = 300, 16
SIMILARITIES = ("cosine", "dot")


def methods_for(model, method: str) -> list[str]:
    """The methods that a name or "all" stands for; of "all" those that the model's image encoder can have."""
    if method == "all":
        transformer = getattr(model.image_encoder, "transformer", lambda: None)()
        return [name for name, row in METHODS.items() if row.formula or transformer is not None]
    return [check_method(method)]


def check_method(method: str) -> str:
    """Return `method`; InputError with the closest and all names where it is none."""
    if method not in METHODS:
        close = difflib.get_close_matches(str(method).lower(), METHODS, n=1)
        hint = f"最接近的是 {close[0]}；" if close else ""
        raise InputError(f"没有方法 {method!r}；{hint}可用：{'、'.join(METHODS)}、all")
    return method


# ---------------------------------------------------------------------------------------------
# 3. CLIPGradCAM: hook, gradient, heatmap


class Explanation(NamedTuple):
    """What one forward pass gives for B images, K texts and T explained texts per image; float32."""

    maps: torch.Tensor  # [B, T, h, w] at the target layer, before the ReLU
    gradient_peaks: torch.Tensor  # [B, T] largest |gradient| behind the map
    similarities: torch.Tensor  # [B, K] cosine
    targets: torch.Tensor  # [B, T] index of each explained text


class Asked(NamedTuple):
    """The texts that are explained."""

    scores: Callable  # (embeddings [n, D], directions [K, D]) -> [n, K]
    directions: torch.Tensor
    targets: torch.Tensor  # [B, T]

    def __call__(self, embeddings, image: int | None = None):
        """Embeddings [B, D] -> y of each explained text [B, T]; [n, D], all of variants of one image -> [n, T]."""
        targets = self.targets if image is None else self.targets[image].expand(len(embeddings), -1)
        return self.scores(embeddings, self.directions).gather(1, targets)


class CLIPGradCAM:
    """Grad-CAM of the cosine similarity between an image and a text, or another of METHODS.

    L = [ sum_k <g_k> A_k ]+ with A the target layer's activations, g = d cos(image, text) / dA and <.> the
    spatial mean (Selvaraju et al. 2017, arXiv 1610.02391). The similarity itself is explained, never a
    softmax over texts: a softmax's gradient is zero with one text and shrinks with confidence.

    `model` needs an `image_encoder`; `target_layer` is one of its modules, or several whose maps are fused; for
    LeGrad blocks, None for the last ones. `similarity`: "cosine", or "dot", the product of the unit text vector
    with the image's embedding before its normalisation. With `use_cuda` the model moves to CUDA where there is
    one. Usable as a context manager; no hook outlives a call.
    """

    def __init__(self, model, target_layer, use_cuda: bool = True, method: str = "gradcam", similarity: str = "cosine"):
        import torch

        self.model = model.to("cuda") if use_cuda and torch.cuda.is_available() else model
        given = target_layer if isinstance(target_layer, (list, tuple)) else [target_layer]
        self.layers = [layer for layer in given if layer is not None]
        self.method = check_method(method)
        self.similarity = similarity
        if similarity not in SIMILARITIES:
            raise InputError(f"相似度应是 {' 或 '.join(SIMILARITIES)}，收到 {similarity!r}")

    @property
    def target_layer(self) -> torch.nn.Module:
        return self.layers[0]

    def explained(self) -> list[torch.nn.Module]:
        """The modules that the maps come from: the layers, or the blocks whose attention is captured."""
        if METHODS[self.method].formula:
            return self.layers
        from models import attention

        transformer = attention.transformer_of(self.model.image_encoder, self.method)
        return attention.chosen_blocks(transformer, attention.METHODS[self.method], self.layers)

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
        parameter's `.grad` is touched. Score-CAM alone runs the model again, once per channel.
        """
        import torch

        images = self._to_model(images)
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.model.image_encoder):
            images = images.clone() if images.is_inference() else images  # autograd saves no inference tensor
            texts = self._unit_texts(text_features)
            maps_of = self._from_layers if METHODS[self.method].formula else self._from_attention
            embeddings, find_maps = maps_of(images)
            torch.set_grad_enabled(False)  # the hooks have turned it on
            similarities = self._unit(embeddings) @ texts.T
            targets = _target_indices(target_text_idx, similarities)
            directions = contrastive_directions(texts, contrast) if contrast else texts
            maps, peaks = find_maps(embeddings, Asked(self._scores, directions, targets))
        if not torch.isfinite(maps).all():
            raise InputError("热力图中出现 NaN 或无穷大：请检查检查点的权重和图像的数值是否有限")
        return Explanation(maps, peaks, similarities, targets)

    def score(self, images, text_features, contrast: float = 0.0):
        """What is explained, of images [n, 3, h, w] against K texts -> [n, K] float32, without a heatmap."""
        import torch

        with torch.no_grad(), evaluating(self.model.image_encoder):
            texts = self._unit_texts(text_features)
            directions = contrastive_directions(texts, contrast) if contrast else texts
            return self._scores(self._embed(self._to_model(images)), directions)

    def _to_model(self, images):
        """Images on the model's device, in its precision and, where that is quicker, its order of memory."""
        import torch

        parameter = next(self.model.image_encoder.parameters())
        images = images.to(parameter.device, parameter.dtype)
        if len(images) > 1 and images.device.type == "cpu":  # a quarter faster there; one image alone is not
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _unit_texts(self, text_features):
        device = next(self.model.image_encoder.parameters()).device
        return self._unit(text_features.detach().clone().to(device))

    @staticmethod
    def _unit(vectors):
        from torch.nn import functional as F

        return F.normalize(vectors.float(), dim=-1)

    def _embed(self, images):
        """[B, 3, H, W] -> embeddings [B, D], for the dot product those before the normalisation."""
        tower = self.model.image_encoder
        if self.similarity == "cosine":
            return tower(images)
        if not hasattr(tower, "embed"):
            raise InputError("该图像编码器不给出归一化之前的嵌入（没有 embed 方法），不能用点积解释")
        return tower.embed(images)

    def _scores(self, embeddings, directions):
        """Embeddings [B, D], directions [K, D] -> what is explained [B, K] float32."""
        embeddings = self._unit(embeddings) if self.similarity == "cosine" else embeddings.float()
        return embeddings @ directions.T

    # -- from the layers' activations and gradients

    def _from_layers(self, images):
        """(embeddings on a graph that begins at the layers, how the maps come of them)."""
        kept, embeddings = self._forward_from_leaves(images)
        token_grid = token_grid_of(self.model, images.shape[-2:])

        def to_maps(tensor):
            return as_maps(tensor, images.shape[-2:], token_grid)

        return embeddings, lambda z, score: self._layer_maps(kept, to_maps, z, score, images)

    def _layer_maps(self, kept, to_maps, embeddings, score, images):
        """(maps [B, T, h, w], peaks [B, T]) by the method's formula, the layers fused."""
        import torch

        activations = [to_maps(tensor.detach()).float() for tensor in kept]
        with torch.enable_grad():
            scores = score(embeddings)
            totals = scores.sum(0).unbind()  # over the images, whose gradients do not meet
        method, (batch, texts) = METHODS[self.method], scores.shape
        if not method.knows_text:
            maps = fuse_layers([method.formula(A) for A in activations])
            return maps[:, None].expand(-1, texts, -1, -1), maps.new_ones(batch, texts)

        def gradients_of(total):
            return [to_maps(g) for g in _gradients(total, kept)]

        masked = None
        if method.formula is scorecam:
            weights = zip(*([g.mean((2, 3)) for g in gradients_of(total)] for total in totals))
            masked = [self._masked_scores(A, torch.stack(w, 1), score, images) for A, w in zip(activations, weights)]
        maps, peaks = [], []
        for text, total in enumerate(totals):  # one after the other: all texts' gradients at once may be large
            gradients = gradients_of(total)
            values = [scores[:, text] for scores in masked] if masked else gradients
            of_layers = [method.formula(A, value) for A, value in zip(activations, values)]
            checked = [without_rounding(*layer) for layer in zip(of_layers, activations, gradients)]
            maps.append(fuse_layers([layer_map for layer_map, _ in checked]))
            peaks.append(torch.stack([peak for _, peak in checked]).amax(0))
        return torch.stack(maps, 1), torch.stack(peaks, 1)

    def _masked_scores(self, A, weights, score, images):
        """y of the image under each channel that a text asks for: [B, T, C], -inf elsewhere.

        `weights` [B, T, C]: <g_k> of each text. A channel that several texts ask for is run once.
        """
        import torch
        from torch.nn import functional as F

        count = min(SCORECAM_CHANNELS, A.shape[1])
        asked = torch.zeros_like(weights, dtype=torch.bool).scatter_(2, weights.topk(count, dim=2).indices, True)
        masked = torch.full_like(weights, -torch.inf)
        for b, image in enumerate(images):
            for channels in asked[b].any(0).nonzero()[:, 0].split(SCORECAM_BATCH):
                masks = F.interpolate(A[b, channels, None], image.shape[1:], mode="bilinear", align_corners=False)
                low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
                masks = (masks - low) / (high - low).clamp_min(torch.finfo(masks.dtype).tiny)
                masked[b, :, channels] = score(self._embed(self._to_model(image * masks)), b).T
        return masked.where(asked, -torch.inf)

    def _forward_from_leaves(self, images):
        """(what each layer gave, the first a fresh leaf; embeddings [B, D] with the graph between them)."""
        import torch

        kept = {}

        def start_graph(index):
            def hook(module, inputs, output):
                tensor = tensor_of(output)
                kept[index] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
                torch.set_grad_enabled(True)  # until the no_grad block of the caller ends
                copy = kept[index].clone()  # what later in-place operations may overwrite
                return (copy, *output[1:]) if isinstance(output, tuple) else copy

            return hook

        handles = [layer.register_forward_hook(start_graph(index)) for index, layer in enumerate(self.layers)]
        try:
            embeddings = self._embed(images)
        finally:
            for handle in handles:
                handle.remove()
        if len(kept) < len(self.layers):
            raise InputError("目标层没有参与图像编码器的前向计算，请换一层（--list-layers 列出可用的层）")
        return [kept[index] for index in range(len(self.layers))], embeddings

    # -- from the attention

    def _from_attention(self, images):
        """(embeddings, how the maps come of them), with the attention captured on the way."""
        from models import attention

        tower, method = self.model.image_encoder, attention.METHODS[self.method]
        transformer = attention.transformer_of(tower, self.method)
        with attention.captured(transformer, self.explained(), method.graph) as seen:
            embeddings = self._embed(images)
        prefix, rows, columns = tower.token_grid(*images.shape[-2:])

        def find_maps(embeddings, score):
            maps, peaks = method.formula(transformer, seen, embeddings, score, prefix)
            return maps.unflatten(2, (rows, columns)), peaks

        return embeddings, find_maps


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


def _gradients(score, activations):
    """d score / d each of the activations in float32; zeros where the score does not depend on them."""
    import torch

    nothing = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in activations]
    if not score.requires_grad:
        return nothing
    scale = HALF_PRECISION_SCALE if activations[0].dtype == torch.float16 else 1.0
    scaled = torch.full_like(score, scale)
    found = torch.autograd.grad(score, activations, scaled, retain_graph=True, allow_unused=True)
    return [zeros if g is None else g.float() / scale for zeros, g in zip(nothing, found)]


# ---------------------------------------------------------------------------------------------
# 3. One image, whole


def preprocessing_of(model, img_size: int | None = None) -> Preprocessing:
    """The model's own preprocessing, else a square of the checkpoint's side, of `img_size`, or the guide's."""
    own = getattr(model, "preprocessing", None)
    return own or square(getattr(model, "img_size", None) or img_size or DEFAULT_IMG_SIZE)


class Explainer:
    """A model, its target layer and the texts: images in, the maps of every text out, one forward pass for all."""

    def __init__(self, model, text_features, question: Question, target_layer=None, encoder: str | None = None):
        self.model, self.text_features, self.question = model, text_features, question
        self.encoder = encoder or getattr(model, "image_encoder_name", type(model).__name__)
        given = target_layer if isinstance(target_layer, (list, tuple)) else [target_layer]
        layers = [find_layer(model, layer) if isinstance(layer, str) else layer for layer in given]
        self.layers = [layer for layer in layers if layer is not None]
        self.cams = {
            method: CLIPGradCAM(model, self._layers_of(method), False, method, question.similarity)
            for method in methods_for(model, question.method)
        }
        self.layer_names = {method: layers_name(model, cam.explained()) for method, cam in self.cams.items()}

    def _layers_of(self, method: str) -> list:
        """The layers that a method is told: those asked for, else the encoder's own or, for attention, none."""
        if METHODS[method].formula:
            return self.layers or [get_target_layer_for_clip(self.model, self.encoder)]
        return self.layers if self.question.method != "all" else []

    def twin(self) -> Explainer:
        """The same over the same weights, with modules of its own: hooks of two threads do not meet."""
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        model, layers = copy.deepcopy([self.model, self.layers], shared)
        return Explainer(model, self.text_features, self.question, layers, self.encoder)

    def __call__(self, images: torch.Tensor) -> list[list[ImageMaps]]:
        """Model input [B, 3, h, w] -> for each image the maps of each method."""
        import torch

        every = torch.arange(len(self.question.texts)).expand(len(images), -1)
        of_methods = [self._explain(cam, images, every) for cam in self.cams.values()]
        of_images = [list(maps) for maps in zip(*of_methods)]
        if self.question.faithfulness:
            return [self._measured(image[None], maps) for image, maps in zip(images, of_images)]
        return of_images

    def _explain(self, cam: CLIPGradCAM, images, every) -> list[ImageMaps]:
        explanation = cam.explain(images, self.text_features, every, self.question.contrast)
        similarities = explanation.similarities
        probabilities = probabilities_of(self.model, similarities)
        parts = (explanation.maps, explanation.gradient_peaks, similarities, probabilities)
        return [ImageMaps(*image) for image in zip(*(part.cpu().numpy() for part in parts))]

    def _measured(self, image, maps: list[ImageMaps]) -> list[ImageMaps]:
        """The maps of one image, each explained text's tested by deletion and insertion."""
        from models.faithfulness import measure_faithfulness

        cam, targets = next(iter(self.cams.values())), self.question.targets_of(maps[0])

        def score(images):
            return cam.score(images, self.text_features, self.question.contrast)

        raw_maps = np.concatenate([of_method.maps[targets] for of_method in maps])
        seed = zlib.crc32(image.cpu().numpy().tobytes())  # each image has random maps of its own, the same each time
        measured = measure_faithfulness(score, image, raw_maps, targets * len(maps), seed=seed)
        parts = [measured[i : i + len(targets)] for i in range(0, len(measured), len(targets))]
        return [of_method._replace(faithfulness=part) for of_method, part in zip(maps, parts)]

    def result(self, pixels: np.ndarray, maps: list[ImageMaps]) -> Results:
        """Everything that figures, files and tables say of one image; pixels uint8 [H, W, 3]."""
        return Results(self._result(pixels, of, method) for method, of in zip(self.cams, maps))

    def _result(self, pixels, image: ImageMaps, method: str) -> ImageResult:
        targets = self.question.targets_of(image)
        flaws = [diagnose_flat_map(self.model, image.maps[t], image.gradient_peaks[t]) for t in targets]
        return ImageResult(
            pixels=pixels,
            maps=image.maps,
            question=self.question,
            probabilities=image.probabilities,
            similarities=image.similarities,
            targets=targets,
            source=(self.encoder, self.layer_names[method], *image.maps.shape[1:]),
            flaws=flaws,
            sensitivities=[text_sensitivity(image.maps, target) for target in targets],
            method=method,
            region=self._region(pixels.shape[:2], image.maps.shape[1:]),
            faithfulness=image.faithfulness,
            independent=getattr(self.model, "independent_probabilities", False),
        )

    def _region(self, size, grid) -> Region | None:
        """The part of an image that a map of this grid lies on, None for the whole image."""
        prepare = preprocessing_of(self.model, self.question.img_size)
        region = prepare.region(*size)
        patch = getattr(self.model.image_encoder, "patch_size", None)
        if patch is not None:  # what is left over of the input on the right and below is no patch's
            height, width = prepare.input_size(*size)
            region = region.corner(min(1.0, grid[0] * patch / height), min(1.0, grid[1] * patch / width))
        return None if region.is_whole(*size) else region


def probabilities_of(model, similarities):
    """Cosines [B, K] -> probabilities [B, K] by the model's own rule, else a softmax over cosine / temperature."""
    if hasattr(model, "probabilities"):
        return model.probabilities(similarities)
    return (similarities / model.temperature.detach().float().to(similarities.device)).softmax(dim=1)


def explain(
    model,
    image,
    class_texts: Sequence[str] | Mapping[str, str],
    target_layer=None,
    target_text_idx: int | Sequence[int] | str | None = None,
    img_size: int = DEFAULT_IMG_SIZE,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    contrast: bool = False,
    method: str | None = None,
    similarity: str | None = None,
    faithfulness: bool = False,
    text_features: torch.Tensor | None = None,
) -> ImageResult | Results:
    """Explain one image against K class texts; the result is frozen, and shows its figure in a notebook.

    `image`: a path, a PIL image, or an array [H, W] or [H, W, 3] (see `to_pixels`). `class_texts`: a list, or a dict
    {short name: description}. `target_text_idx`: None explains the most similar text, several or "all" more than
    one. `target_layer`: a module or a dotted path, or a list of them to fuse; None for the encoder's own.
    `img_size` counts where the model names none. `method`, `similarity`: of METHODS and SIMILARITIES, None for the
    encoder's default; method "all" gives Results, a tuple of one result per method. `contrast`: what speaks for
    a text rather than for the others. `faithfulness`: test each heatmap by deletion and insertion.
    `text_features` [K, D] spare embedding the texts again. Raises InputError for what cannot be used.
    """
    import torch

    own_size = getattr(model, "img_size", None)
    if own_size and img_size not in (own_size, DEFAULT_IMG_SIZE):
        warnings.warn(f"img_size={img_size} 与检查点不符，按检查点的 {own_size} 处理", InputWarning, stacklevel=2)
    names, texts = names_and_texts(class_texts)
    targets = explained_texts(target_text_idx, len(texts))
    encoder = image_encoder_name or getattr(model, "image_encoder_name", "")
    method, similarity, target_layer = with_defaults(model, encoder, method, similarity, target_layer)
    gamma = CONTRAST_GAMMA if contrast else 0.0
    question = Question(names, texts, targets, gamma, method, similarity, faithfulness, img_size)
    check_question(question)
    pixels = to_pixels(image)
    if use_cuda and torch.cuda.is_available():
        model.to("cuda")
    explainer = Explainer(model, text_features, question, target_layer, image_encoder_name)
    if text_features is None:
        explainer.text_features = embed_texts(model, texts)
    (maps,) = explainer(preprocessing_of(model, img_size)(pixels))
    results = explainer.result(pixels, maps)
    return results if method == "all" else results[0]


def with_defaults(model, encoder: str, method: str | None, similarity: str | None, target_layer=None) -> tuple:
    """(method, similarity, layers): as asked for, else of the encoder's row in DEFAULTS.

    The row's layers belong to its method: they count where neither a method nor a layer was asked for.
    """
    default = DEFAULTS.get(encoder, Default())
    if method is None and not target_layer:
        target_layer = [_module_at(model, path) for path in default.layers]
    return method or default.method, similarity or default.similarity, target_layer


def check_question(question: Question) -> None:
    """InputError where a method, a similarity and several texts do not go together."""
    if question.method != "all":
        check_method(question.method)
    elif question.targets is not None and len(question.targets) > 1:
        raise InputError("method=all（--method all）一次只比较一个文本；请给出一个目标文本索引")
    if question.similarity not in SIMILARITIES:
        raise InputError(f"相似度应是 {' 或 '.join(SIMILARITIES)}，收到 {question.similarity!r}")


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
    **options,
) -> np.ndarray:
    """Explain one image against the class texts; returns the overlay, float32 RGB [H, W, 3] in [0, 1].

    Everything as for `explain`, whose `method`, `similarity`, `faithfulness` and `text_features` may follow. Several
    texts, or "all", give overlays [T, H, W, 3] that share one colour scale; method "all" overlays [M, H, W, 3],
    each on its own. With `save_path` the figure and the overlays are written.
    """
    found = explain(
        model,
        image_path,
        class_texts,
        target_layer=target_layer,
        target_text_idx=target_text_idx,
        img_size=img_size,
        use_cuda=use_cuda,
        image_encoder_name=image_encoder_name,
        contrast=contrast,
        **options,
    )
    results = found if isinstance(found, Results) else Results([found])
    for message in results.messages():
        warnings.warn(message, InputWarning, stacklevel=2)
    if save_path is not None:
        save_results(results, save_path)
    if len(results) == 1 and np.ndim(target_text_idx) == 0 and not isinstance(target_text_idx, str):
        return results[0].overlay
    return np.stack([show_cam_on_image(r.pixels, heatmap) for r in results for heatmap in r.heatmaps()])


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
        explainer = explainer_of(args, model, text_features, question)
        run_columns = {"checkpoint": fingerprint(args.model_path), "packages": package_versions()}
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
        prepare = preprocessing_of(model, args.img_size)
        folder_run = FolderRun(explainer, prepare, folder, output_choice(args), run_columns)
        return finish_run(folder_run, plan, size, ranks)


def run_settings(args, explainer: Explainer, root: str, run_columns: Mapping) -> dict:
    """What two runs must agree in for the second to go on where the first one stopped."""
    question = explainer.question
    return {
        "texts": list(zip(question.names, question.texts)),
        "targets": question.targets,
        "contrast": question.contrast,
        "similarity": question.similarity,
        "faithfulness": question.faithfulness,
        "layers": explainer.layer_names,
        "preprocessing": preprocessing_of(explainer.model, question.img_size),
        **output_choice(args)._asdict(),
        "root": root,
        **run_columns,
    }


# ---------------------------------------------------------------------------------------------
# 5. The command line


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


def architecture_flags(args) -> tuple:
    """What the flags say of the model where its checkpoint does not."""
    return args.image_encoder, args.text_encoder, args.embed_dim, args.img_size


def explainer_of(args, model, text_features, question: Question) -> Explainer:
    """The Explainer of the flags; a method that was not asked for is the encoder's default."""
    asked = args.method, args.similarity, args.layers or args.target_layer
    method, similarity, layers = with_defaults(model, model.image_encoder_name, *asked)
    return Explainer(model, text_features, question._replace(method=method, similarity=similarity), layers)


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
    gamma = CONTRAST_GAMMA if args.contrast else 0.0
    given = {name: value for name in ("method", "similarity") if (value := getattr(args, name))}
    question = Question(names, texts, targets, gamma, faithfulness=args.faithfulness, img_size=args.img_size, **given)
    check_question(question)
    return question


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
    explainer = explainer_of(args, model, text_features, question)
    (maps,) = explainer(preprocessing_of(model, args.img_size)(pixels))
    results = explainer.result(pixels, maps)
    for message in results.messages():
        warnings.warn(message, InputWarning, stacklevel=1)
    files = encode_outputs(results, save_path, output_choice(args))
    write_files(files.contents)
    print(*summary(results, files), sep="\n")


def print_layers(model) -> None:
    """Each layer that gives a spatial map, its size, and a mark at the default."""
    fused = [_module_at(model, path) for path in DEFAULTS.get(model.image_encoder_name, Default()).layers]
    defaults = [layer_name(model, layer) for layer in fused or [get_target_layer_for_clip(model)]]
    img_size = getattr(model, "img_size", None) or DEFAULT_IMG_SIZE
    print(f"{model.image_encoder_name} 可作为目标层的层（输入 {img_size}×{img_size}；通道×行×列）：")
    for name, (channels, rows, columns) in list_spatial_layers(model, img_size):
        if rows * columns > 1:
            print(f"  {name}  {channels}×{rows}×{columns}" + ("  （默认）" if name in defaults else ""))


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
