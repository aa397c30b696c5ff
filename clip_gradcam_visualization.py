"""Show which regions of an image a CLIP-style model holds against a sentence: Grad-CAM of the similarity.

    python clip_gradcam_visualization.py --model-path checkpoints/clip_model.pth \
        --image-path image.jpg --class-texts "正常假体" "假体松动" "假体周围感染"

writes a figure of four panels and the overlay alone. In Python:

    model = load_clip_checkpoint("checkpoints/clip_model.pth")
    overlay = visualize_clip_gradcam(model, "image.jpg", ["正常假体", "假体松动"], save_path="result.png")

Rooms, top to bottom: loading, target layers, CLIPGradCAM, drawing, one image whole, the command line.
The heavy libraries are imported where they are used: a typo in a flag is answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import io
import json
import os
import pickle
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.errors import InputError, InputWarning
from models.figure import LANGUAGES, FigureContent, draw_figure, import_cv2

if TYPE_CHECKING:
    import torch

DEFAULT_IMG_SIZE = 224


# ---------------------------------------------------------------------------------------------
# 1. Loading: checkpoint, class texts, image


def read_checkpoint_file(path: str | os.PathLike) -> Mapping:
    """Read a `.pth` or `.safetensors` file, memory-mapped; nothing in it is executed.

    Raises InputError where the file is missing, cut short, no checkpoint, or holds objects beyond
    tensors and plain data.
    """
    from models.checkpoint_layouts import read_safetensors, read_torch_file

    path = Path(path)
    if not path.is_file():
        raise InputError(f"找不到检查点文件：{path}")
    try:
        return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except InputError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, ... on a bad file
        known = isinstance(error, pickle.UnpicklingError)  # its text speaks of torch.load's own options
        reason = "不是 PyTorch 保存的文件" if known else re.split(r"[.:\n] ?", str(error).strip())[0][:80]
        raise InputError(f"无法读取检查点 {path}：文件不完整、已损坏或不是检查点（{reason}）") from error


def load_clip_checkpoint(
    path: str | os.PathLike,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    embed_dim: int | None = None,
    img_size: int | None = None,
):
    """Build the CLIPModel whose weights stand in `path`, in eval mode, on the CPU.

    What the checkpoint says of itself counts; the arguments fill in what it leaves open, and one that
    contradicts it is warned about and loses. Every form in `models.checkpoint_layouts` is read.
    """
    from models.checkpoint_layouts import translate_checkpoint
    from models.clip import build_on_meta, give_buffers_values

    checkpoint = translate_checkpoint(read_checkpoint_file(path))
    flags = {"image_encoder": image_encoder, "text_encoder": text_encoder, "embed_dim": embed_dim, "img_size": img_size}
    model = build_on_meta(_model_config(checkpoint, flags))
    model.load_state_dict(checkpoint, assign=True)
    give_buffers_values(model)
    del checkpoint  # imports keep this frame alive until the next garbage collection
    return model.eval()


def _model_config(checkpoint, flags: Mapping) -> dict:
    """What to build: read off the weights first, then off the checkpoint's config, then from the flags."""
    from models.checkpoint_layouts import read_text_config

    config = dict(checkpoint.metadata)
    recognised = checkpoint.image_encoder_name
    if recognised and config.setdefault("image_encoder", recognised) != recognised:
        message = f"检查点的配置写着图像编码器 {config['image_encoder']}，权重却是 {recognised} 的，按权重处理"
        warnings.warn(message, InputWarning, stacklevel=3)
        config["image_encoder"] = recognised
    projection = checkpoint.state_dict.get("image_encoder.projection.weight")
    if projection is not None:
        config["embed_dim"] = int(projection.shape[0])
    config["text_config"] = {**(config.get("text_config") or {}), **read_text_config(checkpoint.state_dict)}
    for name, value in flags.items():
        if value is None:
            continue
        if name == "text_encoder" and Path(value).is_dir():
            config[name] = value  # not another encoder, but where its files are
        if config.setdefault(name, value) != value:
            flag = "--" + name.replace("_", "-")
            warnings.warn(f"{flag} {value} 与检查点不符，按检查点的 {config[name]} 处理", InputWarning, stacklevel=3)
    if "image_encoder" not in config:
        raise InputError("无法从检查点识别图像编码器，请用 --image-encoder 指定")
    return config


def _object_of_strings(path):
    """A hook for json.load: an object as a dict, InputError where a key stands twice."""

    def build(pairs):
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InputError(f"类别文本文件 {path} 中类别 {twice!r} 出现了两次")
        return dict(pairs)

    return build


def read_class_texts(path: str | os.PathLike) -> dict[str, str]:
    """Read {short name: description} from a JSON file (UTF-8, with or without BOM).

    Raises InputError where the file is missing, no JSON (with line and column), no object of strings,
    empty, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        texts = json.loads(text, object_pairs_hook=_object_of_strings(path))
    except UnicodeDecodeError as error:
        raise InputError(f"类别文本文件 {path} 不是 UTF-8 编码，请另存为 UTF-8") from error
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"无法读取类别文本文件 {path}：{_reason(error)}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"类别文本文件 {path} 不是合法的 JSON：第 {error.lineno} 行第 {error.colno} 列，{error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise InputError(f"类别文本文件 {path} 不是合法的 JSON：{_reason(error)}") from error
    if not isinstance(texts, dict):
        raise InputError(f'类别文本文件 {path} 应是 {{"类别": "描述"}} 形式的对象，读到的是 {type(texts).__name__}')
    if not texts:
        raise InputError(f"类别文本文件 {path} 中没有类别")
    for name, description in texts.items():
        if not isinstance(description, str) or not description.strip():
            raise InputError(f"类别文本文件 {path} 中 {name!r} 的描述应是非空的字符串，读到的是 {description!r}")
    return texts


def _names_and_texts(class_texts: Mapping[str, str] | Sequence[str]) -> tuple[list[str], list[str]]:
    """(short names, texts for the model) of a list of texts or of the JSON file's dict."""
    if isinstance(class_texts, str):
        class_texts = [class_texts]
    pairs = class_texts.items() if isinstance(class_texts, Mapping) else [(text, text) for text in class_texts]
    names, texts = zip(*pairs) if pairs else ((), ())
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError("类别文本不能为空：请给出至少一个非空的文本")
    broken = next((text for text in (*names, *texts) if re.search("[\ud800-\udfff]", text)), None)
    if broken is not None:
        raise InputError(f"类别文本 {broken!r} 含有无效的字符（残缺的编码），请检查终端或文件的编码")
    return list(names), list(texts)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as RGB, uint8 [H, W, 3], turned as its EXIF data says.

    Grey levels of 16 or 32 bits are scaled over the image's own range. Raises InputError where the file
    is missing, damaged or no image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode == "F" or image.mode.startswith("I"):
                return _grey_to_rgb(np.asarray(image, dtype=np.float64))
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"找不到图像文件：{path}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"无法读取图像 {path}：不是支持的图像格式，或文件已损坏（{_reason(error)}）") from error


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Grey levels [H, W] of any range -> uint8 [H, W, 3]; levels that are not finite count as the darkest."""
    finite = np.isfinite(grey)
    if not finite.any():
        raise ValueError("没有有限的像素值")
    low, high = grey[finite].min(), grey[finite].max()
    scaled = np.where(finite, grey - low, 0) * (255.0 / (high - low) if high > low else 0.0)
    return np.repeat(np.rint(scaled).astype(np.uint8)[..., None], 3, axis=2)


def preprocess(pixels: np.ndarray, img_size: int) -> torch.Tensor:
    """RGB uint8 [H, W, 3] -> model input [1, 3, img_size, img_size], as in training: resized, normalised."""
    import torch
    from PIL import Image

    from models.clip import IMAGENET_MEAN, IMAGENET_STD

    resized = Image.fromarray(pixels).resize((img_size, img_size), Image.Resampling.BILINEAR)
    normalised = (np.asarray(resized, dtype=np.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(normalised.astype(np.float32).transpose(2, 0, 1)[None].copy())


def _reason(error: Exception) -> str:
    """What an exception says, on one line."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).split("\n")[0]


# ---------------------------------------------------------------------------------------------
# 2. Target layers

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
        with _evaluating(model.image_encoder), torch.no_grad():
            model.image_encoder(torch.zeros(1, 3, img_size, img_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return [(name, shapes[module]) for name, module in backbone.named_modules() if module in shapes]


# ---------------------------------------------------------------------------------------------
# 3. CLIPGradCAM: hook, gradient, heatmap


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

    def explain(self, images, text_features, target_text_idx=None) -> Explanation:
        """One forward pass to the maps of one or several texts per image, before ReLU, at the layer's size.

        `target_text_idx` as in the call, or [B, T]. The graph begins at the target layer, so frozen weights,
        `no_grad` and half precision make no difference, and no parameter's `.grad` is touched.
        """
        import torch
        from torch.nn import functional as F

        parameter = next(self.model.image_encoder.parameters())
        images = images.to(parameter.device, parameter.dtype)
        if len(images) > 1 and images.device.type == "cpu":  # a quarter faster there; one image alone is not
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(False), torch.no_grad(), _evaluating(self.model.image_encoder):
            images = images.clone() if images.is_inference() else images  # autograd saves no inference tensor
            texts = F.normalize(text_features.detach().clone().to(parameter.device).float(), dim=-1)
            activations, embeddings = self._forward_from_leaf(images)
            similarities = F.normalize(embeddings.float(), dim=-1) @ texts.T  # (B, K), gradients on
            targets = _target_indices(target_text_idx, similarities.detach())
            token_grid = _token_grid(self.model, images.shape[-2:])
            A = _as_maps(activations.detach(), images.shape[-2:], token_grid).float()  # (B, C, h, w)
            maps, peaks = [], []
            for column in targets.T:  # one text of each image
                gradients = _gradient(similarities.gather(1, column[:, None]).sum(), activations)
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


@contextlib.contextmanager
def _evaluating(module):
    """Put a module and all below it in eval mode; afterwards each is in the mode it was in."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


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


HALF_PRECISION_SCALE = 1024.0  # keeps small gradients above the smallest float16


def _gradient(score, activations):
    """d score / d activations in float32; zeros where the score does not depend on them."""
    import torch

    if not score.requires_grad:
        return torch.zeros_like(activations, dtype=torch.float32)
    scale = HALF_PRECISION_SCALE if activations.dtype == torch.float16 else 1.0
    (gradient,) = torch.autograd.grad(score * scale, activations, retain_graph=True, allow_unused=True)
    return torch.zeros_like(activations, dtype=torch.float32) if gradient is None else gradient.float() / scale


FLATNESS = 1e-6  # a map whose range is below this share of its maximum is one colour


def to_heatmap(raw_map: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Map [h, w] before the ReLU -> heatmap float32 [H, W] in [0, 1], its maximum 1; zeros if it is flat.

    Resized bilinearly with pixel centres on half integers: each cell lies on the pixels it was made of.
    """
    import torch

    positive = raw_map.detach().float().relu()
    if _is_flat(positive):
        return np.zeros(tuple(size), dtype=np.float32)
    resized = torch.nn.functional.interpolate(positive[None, None], tuple(size), mode="bilinear", align_corners=False)
    return (resized / resized.max())[0, 0].cpu().numpy()


def _is_flat(positive) -> bool:
    return bool(positive.max() - positive.min() <= FLATNESS * positive.max())


def diagnose_flat_map(model, raw_map: torch.Tensor, gradient_peak: torch.Tensor) -> str | None:
    """Why a map [h, w] (before the ReLU) shows nothing, and what to try; None for a map that shows something."""
    if not _is_flat(raw_map.relu()):
        return None
    if gradient_peak == 0:
        cause = "梯度为零，相似度不依赖于该层的这些位置；请用 --target-layer 换一层（--list-layers 列出可用的层）"
    elif raw_map.max() <= 0 and raw_map.numel() > 1:
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
# 4. Drawing: overlay, figure, fonts, saving

COLORMAP_JET = 2  # cv2.COLORMAP_JET, by value: `import cv2` waits until something is drawn


def show_cam_on_image(
    img: np.ndarray, mask: np.ndarray, colormap: int = COLORMAP_JET, alpha: float = 0.4
) -> np.ndarray:
    """Lay a heatmap over an image: alpha * colour + (1 - alpha) * image.

    `img`: RGB [H, W, 3], 0-255 integers or 0-1 floats (a float above 1 counts as 0-255). `mask`: [h, w] in
    [0, 1], resized where it is of another size. `colormap`: one of OpenCV's. Returns float32 RGB in [0, 1].
    """
    cv2 = import_cv2()
    pixels = np.asarray(img)
    scale = 255.0 if np.issubdtype(pixels.dtype, np.integer) or pixels.max(initial=0) > 1 else 1.0
    pixels = pixels.astype(np.float32) / np.float32(scale)
    mask = np.asarray(mask, dtype=np.float32)
    if mask.shape != pixels.shape[:2]:
        mask = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    levels = np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, colormap)[..., ::-1].astype(np.float32) / np.float32(255)
    return np.clip(alpha * colours + (1 - alpha) * pixels, 0, 1).astype(np.float32)


RASTER_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
VECTOR_FORMATS = {".pdf": "pdf", ".svg": "svg"}


def output_paths(figure_path: str | os.PathLike) -> tuple[Path, Path]:
    """(figure, overlay) paths: `.png` added where there is no suffix we write; a vector figure's overlay is PNG."""
    figure = Path(figure_path)
    if figure.suffix.lower() not in {**RASTER_FORMATS, **VECTOR_FORMATS}:
        figure = figure.with_name(figure.name + ".png")
    suffix = figure.suffix if figure.suffix.lower() in RASTER_FORMATS else ".png"
    return figure, figure.with_name(f"{figure.stem}_overlay{suffix}")


def encode_figure(figure, suffix: str) -> bytes:
    """A matplotlib Figure as a file's bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    kind = {**RASTER_FORMATS, **VECTOR_FORMATS}[suffix.lower()]
    options = {"pil_kwargs": {"compress_level": 4}} if kind == "png" else {}
    with rc_context({"svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def encode_image(pixels: np.ndarray, suffix: str) -> bytes:
    """RGB uint8 [H, W, 3] as a file's bytes."""
    from PIL import Image

    options = {"jpeg": {"quality": 95}, "png": {"compress_level": 4}, "webp": {"lossless": True}}
    kind = RASTER_FORMATS[suffix.lower()]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options.get(kind, {}))
    return buffer.getvalue()


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files whole, or none of them: each beside its place first, then all moved into place.

    Raises InputError where a folder cannot be made or written, or its disk is full.
    """
    staged: list[tuple[str, Path]] = []
    moved: list[Path] = []  # where nothing stood before
    folders = {parent for path in files for parent in path.absolute().parents if not parent.exists()}
    try:
        for path, data in files.items():
            if path.is_dir():
                raise IsADirectoryError(0, "同名的文件夹已存在", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".clip_gradcam_", suffix=".tmp", dir=path.parent)
            staged.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private; results are the user's to share
        for temporary, path in staged:
            new = not path.exists()
            os.replace(temporary, path)
            moved += [path] if new else []
    except BaseException as error:
        for leftover in [*(temporary for temporary, _ in staged), *moved, *sorted(folders, reverse=True)]:
            with contextlib.suppress(OSError):
                os.rmdir(leftover) if os.path.isdir(leftover) else os.unlink(leftover)
        if not isinstance(error, OSError):
            raise
        raise InputError(f"无法写入 {error.filename or next(iter(files)).parent}：{_reason(error)}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------------------
# 5. One image, whole


def embed_texts(model, texts: list[str]) -> torch.Tensor:
    """Embed texts with the model's text encoder in eval mode: [K, D], no gradients."""
    import torch

    with torch.no_grad(), _evaluating(model.text_encoder):
        return model.text_encoder(texts=texts)


def explain_image(
    model,
    pixels: np.ndarray,
    class_texts: Sequence[str] | Mapping[str, str],
    target_layer=None,
    target_text_idx: int | None = None,
    img_size: int = DEFAULT_IMG_SIZE,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
    text_features: torch.Tensor | None = None,
) -> FigureContent:
    """From RGB pixels [H, W, 3] and K class texts to everything that the figure shows.

    As `visualize_clip_gradcam`, without files; `text_features` [K, D] spare embedding the texts again.
    """
    names, texts = _names_and_texts(class_texts)
    encoder = image_encoder_name or getattr(model, "image_encoder_name", type(model).__name__)
    if isinstance(target_layer, str):
        target_layer = find_layer(model, target_layer)
    layer = target_layer or get_target_layer_for_clip(model, encoder)
    cam = CLIPGradCAM(model, layer, use_cuda)
    if text_features is None:
        text_features = embed_texts(model, texts)
    images = preprocess(pixels, img_size)
    explanation = cam.explain(images, text_features, target_text_idx)
    raw_map = explanation.maps[0, 0]
    heatmap = to_heatmap(raw_map, pixels.shape[:2])
    similarities = explanation.similarities[0]
    probabilities = (similarities / model.temperature.detach().float().to(similarities.device)).softmax(dim=0)
    return FigureContent(
        pixels=pixels,
        heatmap=heatmap,
        overlay=show_cam_on_image(pixels, heatmap),
        names=names,
        texts=texts,
        probabilities=probabilities.cpu().numpy(),
        similarities=similarities.cpu().numpy(),
        target=int(explanation.targets[0, 0]),
        source=(encoder, layer_name(model, layer), *raw_map.shape),
        warning=diagnose_flat_map(model, raw_map, explanation.gradient_peaks[0, 0]),
    )


def save_results(content: FigureContent, save_path: str | os.PathLike, lang: str = "zh") -> tuple[Path, Path]:
    """Write the figure at `save_path` and the overlay beside it; returns both paths."""
    figure_path, overlay_path = output_paths(save_path)
    overlay = np.rint(content.overlay * 255).astype(np.uint8)
    write_files(
        {
            figure_path: encode_figure(draw_figure(content, lang), figure_path.suffix),
            overlay_path: encode_image(overlay, overlay_path.suffix),
        }
    )
    return figure_path, overlay_path


def visualize_clip_gradcam(
    model,
    image_path: str | os.PathLike,
    class_texts: Sequence[str] | Mapping[str, str],
    target_layer=None,
    target_text_idx: int | None = None,
    img_size: int = DEFAULT_IMG_SIZE,
    save_path: str | os.PathLike | None = None,
    use_cuda: bool = True,
    image_encoder_name: str | None = None,
) -> np.ndarray:
    """Explain one image against one of the class texts; returns the overlay, float32 RGB [H, W, 3] in [0, 1].

    `class_texts`: a list, or a dict {short name: description}. `target_text_idx`: None explains the most
    similar text. `target_layer`: a module or a dotted path, None for the encoder's own. `img_size` counts
    where the model's checkpoint names none. With `save_path` the figure and the overlay are written.
    Raises InputError for an image, texts or an index that cannot be used.
    """
    own_size = getattr(model, "img_size", None)
    if own_size and img_size not in (own_size, DEFAULT_IMG_SIZE):
        warnings.warn(f"img_size={img_size} 与检查点不符，按检查点的 {own_size} 处理", InputWarning, stacklevel=2)
    content = explain_image(
        model,
        read_image(image_path),
        class_texts,
        target_layer=target_layer,
        target_text_idx=target_text_idx,
        img_size=own_size or img_size,
        use_cuda=use_cuda,
        image_encoder_name=image_encoder_name,
    )
    if content.warning:
        warnings.warn(content.warning, InputWarning, stacklevel=2)
    if save_path is not None:
        save_results(content, save_path)
    return content.overlay


# ---------------------------------------------------------------------------------------------
# 6. The command line

ARGPARSE_IN_CHINESE = (
    (r"the following arguments are required: (.*)", r"缺少必需的参数：\1"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 与 \2 只能二选一"),
    (r"argument (\S+): expected one argument", r"\1 后面需要一个值"),
    (r"argument (\S+): expected at least one argument", r"\1 后面至少需要一个值"),
    (r"argument (\S+): invalid int value: (.*)", r"\1 应是整数，收到 \2"),
    (r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)", r"\1 不能是 \2，可选：\3"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1 不带值，收到 \2"),
    (r"argument (\S+): (.*)", r"\1：\2"),
)


class ChineseArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are one line in Chinese, with the closest flag for one that does not exist."""

    def error(self, message):
        for pattern, chinese in ARGPARSE_IN_CHINESE:
            message, replaced = re.subn(f"^{pattern}$", chinese, message, flags=re.DOTALL)
            if replaced:
                break
        raise InputError(message)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            raise InputError(f"无法识别的参数 {unknown[0]}" + (f"，是否想用 {close[0]}？" if close else ""))
        return parsed

    def format_help(self):
        return super().format_help().replace("usage:", "用法：", 1)


# flag, what argparse is told, help
FLAGS = (
    ("--model-path", {"metavar": "PATH"}, "模型检查点路径（必需），.pth 或 .safetensors"),
    ("--image-path", {"metavar": "PATH"}, "图像路径（必需）"),
    ("--class-texts", {"metavar": "TEXT", "nargs": "+"}, "类别文本描述列表（与 --class-texts-file 二选一）"),
    ("--class-texts-file", {"metavar": "PATH"}, "类别文本描述 JSON 文件（与 --class-texts 二选一）"),
    ("--target-text-idx", {"metavar": "INT", "type": int}, "目标文本索引，从 0 开始（默认：最相似的文本）"),
    ("--image-encoder", {"metavar": "NAME"}, "图像编码器名称（如果无法从检查点获取）"),
    ("--text-encoder", {"metavar": "NAME"}, "文本编码器名称或本地文件夹（默认：bert-base-chinese）"),
    ("--embed-dim", {"metavar": "INT", "type": int}, "嵌入维度（默认：512；检查点中有则以检查点为准）"),
    ("--img-size", {"metavar": "INT", "type": int}, "图像大小（默认：224；检查点中有则以检查点为准）"),
    ("--output-dir", {"metavar": "PATH", "default": "clip_gradcam_results"}, "输出目录（默认：clip_gradcam_results）"),
    ("--output-name", {"metavar": "NAME"}, "输出文件名（默认：clip_gradcam_<图像名>.png；也可用 .pdf、.svg、.jpg）"),
    ("--target-layer", {"metavar": "NAME"}, "目标层的名称，例如 layer4.1（默认：按图像编码器自动选择）"),
    ("--list-layers", {"action": "store_true"}, "列出可作为目标层的层后退出，只需要 --model-path"),
    ("--lang", {"choices": LANGUAGES, "default": "zh"}, "图中文字的语言：zh 中文（默认），en 英文"),
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
    texts = group.add_mutually_exclusive_group()
    for flag, options, text in FLAGS:
        names = ("-h", flag) if flag == "--help" else (flag,)
        (texts if flag.startswith("--class-texts") else group).add_argument(*names, **options, help=text)
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
    for flag, value, least in (("--img-size", args.img_size, 16), ("--embed-dim", args.embed_dim, 1)):
        if value is not None and value < least:
            raise InputError(f"{flag} 至少是 {least}，收到 {value}")


def check_output_folder(folder: Path) -> None:
    """Raise InputError before any work where `folder` is no folder or cannot be written. Makes nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"输出目录 {folder} 无法建立：{existing} 是文件")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"没有写入输出目录 {folder} 的权限")


def choose_device(force_cpu: bool) -> str:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    import torch

    if not force_cpu and torch.cuda.is_available():
        return "cuda"
    if not force_cpu and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def load_from_arguments(args):
    """The model of --model-path, filled in by the other flags, on its device."""
    text_encoder, embed_dim = args.text_encoder, args.embed_dim
    model = load_clip_checkpoint(args.model_path, args.image_encoder, text_encoder, embed_dim, args.img_size)
    return model.to(choose_device(args.cpu))


def run(args) -> None:
    """One command, whole. Cheap checks come first, so that a mistake is answered before the model is loaded."""
    check_arguments(args)
    if args.list_layers:
        return print_layers(load_from_arguments(args))
    class_texts = read_class_texts(args.class_texts_file) if args.class_texts_file else args.class_texts
    names, texts = _names_and_texts(class_texts)
    if args.target_text_idx is not None and not 0 <= args.target_text_idx < len(names):
        limit = len(names) - 1
        raise InputError(
            f"--target-text-idx {args.target_text_idx} 超出范围：共 {len(names)} 个文本，可用 0 到 {limit}"
        )
    name = args.output_name or f"clip_gradcam_{Path(args.image_path).stem}.png"
    save_path = Path(args.output_dir) / name
    check_output_folder(save_path.parent)
    pixels = read_image(args.image_path)
    model = load_from_arguments(args)
    threading.Thread(target=import_drawing_libraries, daemon=True).start()
    text_features = embed_texts(model, texts)
    release_text_tower(model)
    content = explain_image(
        model,
        pixels,
        class_texts,
        target_layer=args.target_layer,
        target_text_idx=args.target_text_idx,
        img_size=model.img_size or DEFAULT_IMG_SIZE,
        use_cuda=not args.cpu,
        text_features=text_features,
    )
    if content.warning:
        warnings.warn(content.warning, InputWarning, stacklevel=1)
    saved = save_results(content, save_path, args.lang)
    print_result(content, saved)


def import_drawing_libraries() -> None:
    """Import what drawing needs while the texts are embedded; what is missing is reported where it is used."""
    with contextlib.suppress(Exception):
        import cv2  # noqa: F401
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.font_manager  # noqa: F401


def release_text_tower(model) -> None:
    """Unmap the text tower once the texts are embedded: it is most of the memory, and not needed again.

    The file is mapped as one piece, so what stays is copied out of it.
    """
    for tensor in (*model.text_encoder.parameters(), *model.text_encoder.buffers()):
        tensor.data = tensor.data.new_empty(0)
    model.text_encoder = None
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def print_layers(model) -> None:
    """Each layer that gives a spatial map, its size, and a mark at the default."""
    default = layer_name(model, get_target_layer_for_clip(model))
    img_size = model.img_size or DEFAULT_IMG_SIZE
    print(f"{model.image_encoder_name} 可作为目标层的层（输入 {img_size}×{img_size}；通道×行×列）：")
    for name, (channels, rows, columns) in list_spatial_layers(model, img_size):
        if rows * columns > 1:
            print(f"  {name}  {channels}×{rows}×{columns}" + ("  （默认）" if name == default else ""))


def print_result(content: FigureContent, saved: Sequence[Path]) -> None:
    """Prediction, target, layer, and the path of each file."""
    best = int(content.probabilities.argmax())
    print(f"预测：{content.names[best]}（{content.probabilities[best]:.1%}）")
    similarity = content.similarities[content.target]
    print(f"目标文本：[{content.target}] {content.names[content.target]}（余弦相似度 {similarity:.3f}）")
    encoder, layer, rows, columns = content.source
    print(f"图像编码器：{encoder}，目标层：{layer}（{rows}×{columns}）")
    for kind, path in zip(("可视化图", "叠加图像"), saved):
        print(f"{kind}已保存：{path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after one line `错误: ...` on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries say to developers
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = lambda message, *_: print("警告:", *str(message).split(), file=sys.stderr)
            run(build_parser().parse_args(argv))
            sys.stdout.flush()  # here, where a closed pipe is expected
    except InputError as error:
        print(f"错误: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not re.search(r"out of memory|allocate", str(error)) and not isinstance(error, MemoryError):
            raise
        print("错误: 内存或显存不足；请减小 --img-size，或加 --cpu", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a name longer than the file system takes, say
        print(f"错误: {_reason(error)}：{error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("已中断", file=sys.stderr)
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
