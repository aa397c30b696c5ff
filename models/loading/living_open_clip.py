"""A CLIP of open_clip or openai/CLIP in memory as a `PretrainedCLIP`.

Its attention is an nn.MultiheadAttention, into which no hook of ours sees: the image tower is built once more over
views of the weights, without memory of its own. Texts go through the library's own `encode_text`.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CheckpointError, InputError, reason
from ..heavy import Image, transformers
from ..images.preprocessing import Preprocessing
from ..messages import Joined, Message
from ..towers.clip_resnet import build_clip_resnet
from ..towers.published import CLASS_TOKEN, CNN, ImageTower, PretrainedCLIP, VisionTransformerTower, innermost
from ..towers.unread import Unread, unread_part, warnings_of
from ..weights.hub import as_input_error
from ..weights.modules import assign_weights, give_buffers_values, unwrapped
from ..weights.openai_names import translate
from ..weights.timm_names import network_of
from .agreement import check_embedding, check_pixels, follow, once, refuse_changed
from .open_clip import TimmKind, timm_tower
from .openai import INTERPOLATIONS, Settings, vision_config
from .processors import Processor, three

HOW = Message(
    "请给出 processor=(preprocess, tokenizer)：open_clip.create_model_and_transforms 的最后一项和 "
    "open_clip.get_tokenizer(名称)，或 clip.load 的 preprocess 和 clip.tokenize"
)
SUPPORTED = Message("OpenAI 的 ViT 和 ResNet（RN50 等）、open_clip 中同样结构的模型和 timm 的 ViT")


def build(network: nn.Module, processor, needs_tokenizer: bool) -> PretrainedCLIP:
    """The CLIP over views of the network's weights, which stays as it is; it is of the weights as they are now.

    Without a preprocessing in `processor`, that which open_clip writes on its image towers counts. InputError, with
    what to give, where there is none, for another structure, and where ours does not compute what the library does.
    """
    processor = Processor.of(processor)
    name, visual = type(network).__name__, unwrapped(network.visual)
    preprocessing = _preprocessing(name, processor.images, getattr(visual, "preprocess_cfg", None))
    if needs_tokenizer and processor.tokenizer is None:
        raise InputError("{} 没有带着分词器；{}；或直接给出 text_features", name, HOW)
    family, tower = image_tower(visual)
    text_tower = None if processor.tokenizer is None else LibraryTextTower(network, processor.tokenizer)
    bias = getattr(network, "logit_bias", None)
    model = PretrainedCLIP(family, tower, text_tower, network.logit_scale, bias, preprocessing)
    if processor.images is not None:
        check_pixels(model, lambda picture: processor.images(Image.fromarray(picture))[None])

    def embed(images):
        return network.encode_image(images.to(next(visual.parameters()).dtype))

    once(network, preprocessing, lambda: check_embedding(model, embed, name))
    refuse_changed(tower.backbone, visual)
    return follow(model, network)


# ---------------------------------------------------------------------------------------------
# Image towers


def vision_transformer(visual: nn.Module, weights: Mapping) -> tuple[str, ImageTower]:
    """OpenAI's vision transformer as that of transformers."""
    block, projection = visual.transformer.resblocks[0], weights["visual.proj"]
    settings = Settings(_activation(block.mlp.gelu), head_width=block.attn.head_dim)
    sizes = vision_config(weights, settings) | {"layer_norm_eps": visual.ln_pre.eps}
    loader, config = transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig
    with torch.device("meta"):
        network = loader(config(**sizes, projection_dim=projection.shape[1]))
    assign_weights(network, translate(weights))
    give_buffers_values(network)
    network.to(projection.device)  # the positions, which are counted
    vision = innermost(network.vision_model, "vision_model")
    return CLASS_TOKEN, VisionTransformerTower(vision, network.visual_projection)


def resnet(visual: nn.Module, weights: Mapping) -> tuple[str, ImageTower]:
    """OpenAI's ResNet with attention pooling."""
    inner = {name.removeprefix("visual."): tensor for name, tensor in weights.items()}
    pool = visual.attnpool
    return CNN, ImageTower(build_clip_resnet(inner, pool.k_proj.out_features // pool.num_heads))


def timm_trunk(visual: nn.Module, weights: Mapping) -> tuple[str, ImageTower]:
    """A vision transformer of timm."""
    block, network = visual.trunk.blocks[0], network_of(weights)
    if network is None:
        raise CheckpointError("图像塔的权重既没有类别词元也没有注意力池化")
    kind = TimmKind("", block.norm1.eps, _activation(block.mlp.act))
    side = visual.trunk.patch_embed.img_size[0]
    family, tower = timm_tower(dict(weights), network, kind, block.attn.num_heads, side)
    return family, tower.to(visual.trunk.norm.weight.device)


# a weight that only one kind of image tower has -> (the tower, its weights as in a file) -> (encoder's name, our tower)
IMAGE_TOWERS = {
    "class_embedding": vision_transformer,
    "attnpool.positional_embedding": resnet,
    "trunk.pos_embed": timm_trunk,
}


def image_tower(visual: nn.Module) -> tuple[str, ImageTower]:
    """(name of the encoder, image tower in eval mode over views of the weights); InputError for another structure."""
    state, name = visual.state_dict(), type(visual).__name__
    translate_tower = next((build for weight, build in IMAGE_TOWERS.items() if weight in state), None)
    if translate_tower is None:
        raise InputError("图像编码器 {} 的结构不受支持；支持：{}", name, SUPPORTED)
    try:
        family, tower = translate_tower(visual, {f"visual.{key}": tensor for key, tensor in state.items()})
    except (AttributeError, IndexError, KeyError, CheckpointError) as error:  # a part that is not there, or one more
        raise InputError("图像编码器 {} 的结构不受支持（{}）；支持：{}", name, reason(error), SUPPORTED) from error
    return family, tower.eval()


# class of an activation, how GELU is approximated -> the name that transformers has for it
ACTIVATIONS = {
    ("QuickGELU", "none"): "quick_gelu",
    ("GELU", "none"): "gelu",
    ("GELU", "tanh"): "gelu_pytorch_tanh",
    ("GELUTanh", "none"): "gelu_pytorch_tanh",
}


def _activation(module: nn.Module) -> str:
    """An activation in the words of transformers."""
    kind = type(module).__name__, getattr(module, "approximate", "none")
    if kind not in ACTIVATIONS:
        names = dict.fromkeys(name for name, _ in ACTIVATIONS)
        raise InputError("图像编码器的激活函数 {} 不受支持；支持：{}", module, Joined("、", names))
    return ACTIVATIONS[kind]


# ---------------------------------------------------------------------------------------------
# Preprocessing


def _preprocessing(name: str, images, written: Mapping | None) -> Preprocessing:
    """What the caller's transforms do, else what open_clip wrote on the image tower."""
    if images is not None:
        return composed_preprocessing(images)
    if not written:
        raise InputError("{} 没有说明图像怎样预处理；{}", name, HOW)
    mode, size = written.get("resize_mode") or "shortest", _sides(written["size"])
    interpolation = written.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or mode == "shortest" and size[0] != size[1]:
        raise InputError("预处理 resize_mode {} 到 {}×{} 不受支持；支持正方形的 shortest，和 squash", mode, *size)
    mean, std = (three(written[key], key) for key in ("mean", "std"))
    resize, crop = (size[0], size) if mode == "shortest" else (size, None)
    return Preprocessing(resize, crop, mean, std, _resample(INTERPOLATIONS, interpolation))


def _resample(resamples: Mapping[str, int], name) -> int:
    """Pillow's number of an interpolation that is called by one of the names; InputError for another."""
    if name not in resamples:
        raise InputError("预处理的插值方式 {!r} 不受支持；支持：{}", name, Joined("、", resamples))
    return resamples[name]


def _sides(size) -> tuple[int, int]:
    """224, [224] or [224, 224] -> (height, width)."""
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    return tuple(map(int, sides * (3 - len(sides))))


RESAMPLES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
NO_GEOMETRY = {
    *("ToTensor", "MaybeToTensor", "MaybeConvertMode", "_convert_image_to_rgb", "PILToTensor", "ToImage", "ToDtype"),
    *("ConvertImageDtype", "ToPureTensor", "RGB"),
}


def composed_preprocessing(images) -> Preprocessing:
    """Transforms of torchvision, or of a library's own in their manner, in our words; InputError for any other."""
    transforms = getattr(images, "transforms", None)
    if transforms is None:
        raise InputError("processor 中的 {} 不是 torchvision 的 Compose；{}", type(images).__name__, HOW)
    named = {getattr(transform, "__name__", type(transform).__name__): transform for transform in transforms}
    strange = [name for name in named if name not in {"Resize", "CenterCrop", "Normalize", *NO_GEOMETRY}]
    missing = [name for name in ("Resize", "Normalize") if name not in named]
    if strange or missing:
        flaw = (
            Message("中的 {} 不受支持", Joined("、", strange)) if strange else Message("没有 {}", Joined("、", missing))
        )
        raise InputError(
            "processor 的预处理{}；支持 Resize、CenterCrop 和 Normalize，"
            "例如 open_clip.create_model_and_transforms 的最后一项",
            flaw,
        )
    resize, levels = named["Resize"], named["Normalize"]
    size = list(resize.size) if isinstance(resize.size, (list, tuple)) else [resize.size]
    crop = _sides(named["CenterCrop"].size) if "CenterCrop" in named else None
    mean, std = (three([*map(float, values)], key) for key, values in (("mean", levels.mean), ("std", levels.std)))
    resample = _resample(RESAMPLES, getattr(resize.interpolation, "value", resize.interpolation))
    return Preprocessing(int(size[0]) if len(size) == 1 else _sides(size), crop, mean, std, resample)


# ---------------------------------------------------------------------------------------------
# Texts


class LibraryTextTower(nn.Module):
    """Texts through a library's own tokenizer and `encode_text`: unit embeddings [K, D]."""

    def __init__(self, network: nn.Module, tokenizer: Callable):
        super().__init__()
        self.network, self.tokenizer = network, tokenizer

    def unread(self, texts: list[str]) -> list[Unread]:
        """Of each text that is not read whole, what is not, where the tokenizer tells; openai/CLIP's refuses it."""
        most = getattr(self.tokenizer, "context_length", None)
        if most is None:
            return []
        parts = [_unread_part(self.tokenizer, text, most) for text in texts]
        return [part for part in parts if part]

    def forward(self, texts) -> torch.Tensor:
        """Embed a list of K texts, or one. Warns of each text that is not read whole."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for warning in warnings_of(self.unread(texts)):
            warnings.warn(warning, stacklevel=3)
        with as_input_error(Message("processor 中的分词器不能处理这些文本")):
            tokens = self.tokenizer(texts)
        if not isinstance(tokens, torch.Tensor) or tokens.shape[:1] != (len(texts),):
            raise InputError("processor 中的分词器给出 {}，应是张量 [K, T]；{}", type(tokens).__name__, HOW)
        with as_input_error(Message("文本模型不能处理分词器给出的词元")):
            features = self.network.encode_text(tokens.to(self.network.logit_scale.device))
        return F.normalize(features.float(), dim=-1)


def _unread_part(tokenizer, text: str, most: int) -> Unread | None:
    """What is not read of a text; None where it is read whole, or where open_clip's tokenizer does not tell."""
    if hasattr(tokenizer, "encode"):  # SimpleTokenizer, which adds the ends later and has a token for each byte
        tokens = len(tokenizer.encode(text)) + 2
        return Unread(text[:20], tokens, most, "") if tokens > most else None
    if hasattr(tokenizer, "tokenizer"):  # HFTokenizer
        clean = getattr(tokenizer, "clean_fn", None) or str
        return unread_part(tokenizer.tokenizer, clean(text), most)
    return None
