"""What is explained where little is asked for: the table of encoders, and the settings that a question stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputError, closest_hint
from ..heavy import torch
from ..messages import Joined, Message
from ..weights.modules import unwrapped
from .methods import METHODS, methods_for, reads_attention
from .question import LEAST_TEXTS, OFF_THE_DIRECTION, OFF_THE_MAP, Others, Question, Setting, with_choices
from .subject import clip_of


class EncoderRow(NamedTuple):
    """What is explained of an image encoder. Layers are paths below image_encoder.backbone: -1 is the last member."""

    target_layer: str  # the last spatial map before pooling, or the block that makes it: the users' guide's
    method: str = "gradcam"  # where nothing is asked for, with the similarity and the layers that follow
    similarity: str = "cosine"
    layers: tuple[str, ...] = ()  # whose maps are fused; none: the target layer, or the method's blocks
    subtract_others: bool = False  # whether the other texts are taken off, from LEAST_TEXTS texts on
    others: Others = OFF_THE_DIRECTION  # how, there or where it is asked for
    tells_presence: bool = False  # whether the strength of the dot product's maps tells what is there: measured

    @property
    def is_guides(self) -> bool:
        """Whether its default is the users' guide's Grad-CAM."""
        return (self.method, self.similarity, self.layers, self.subtract_others) == ("gradcam", "cosine", (), False)


# The defaults of networks and of transformers, chosen by `tests/evaluate.py --truth validation` over models that never
# saw a mask and two that did; a family without a model of its own has the setting that is best over all of its kind.
# ViT: the patch tokens of the last block's OUTPUT no longer reach the class token; SigLIP pools all tokens: those that
# its pool reads have a gradient. Swin pools the mean of its last grid, as convolutional networks do: it has theirs.


def _network(target_layer: str, *layers: str) -> EncoderRow:
    """A network that pools positions alike: the mean of its last two stages, the other texts taken off."""
    return EncoderRow(target_layer, "local-gradcam", "dot", layers, subtract_others=True, tells_presence=True)


def _transformer(target_layer: str) -> EncoderRow:
    """A vision transformer: its attention, the other texts' maps taken off."""
    return EncoderRow(target_layer, "legrad-attention", "dot", subtract_others=True, others=OFF_THE_MAP)


_RESNET = _network("layer4.-1", "layer3.-1", "layer4.-1")
_FAMILIES = (
    (("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _RESNET),
    (
        ("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"),
        _network("stages.-1.-1", "stages.-2.-1", "stages.-1.-1"),
    ),
    (("starnet_dual_pyramid_rcf",), _network("norm", "local.blocks_list.-2", "norm")),
    (
        ("convnext-tiny", "convnext-small", "convnext-base", "convnext-large"),
        _network("features.-1.-1", "features.-3.-1", "features.-1.-1")._replace(tells_presence=False),
    ),
    (tuple(f"efficientnet-b{i}" for i in range(8)), _network("features.-1", "features.-4.-1", "features.-1")),
    (("vit", "plain-vit"), _transformer("layers.-1.layernorm_before")),
    (("clip-vit",), _transformer("encoder.layers.-1.layer_norm1")),
    (("dinov2",), _transformer("encoder.layer.-1.norm1")),
    (("siglip-vit", "siglip2-vit"), _transformer("post_layernorm")),
    (("clip-resnet",), _RESNET),
    (("swin",), _network("layernorm", "encoder.layers.-2.blocks.-1", "layernorm")._replace(tells_presence=False)),
)
ENCODERS = {encoder: row for encoders, row in _FAMILIES for encoder in encoders}
PUBLISHED_ENCODERS = ("clip-vit", "plain-vit", "dinov2", "siglip-vit", "siglip2-vit", "clip-resnet", "swin")
OWN_ENCODERS = tuple(encoder for encoder in ENCODERS if encoder not in PUBLISHED_ENCODERS)


def encoders_hint(name) -> Message:
    """The encoders closest to a name that is none of them, and all."""
    return Message("{}支持：{}", closest_hint(name, OWN_ENCODERS, count=3, cutoff=0.5), Joined("、", OWN_ENCODERS))


def get_target_layer_for_clip(model, image_encoder_name: str | None = None) -> torch.nn.Module:
    """Return the module whose output the users' guide's Grad-CAM explains; ValueError for an encoder without a row."""
    model = clip_of(model)
    name = image_encoder_name or getattr(model, "image_encoder_name", None)
    if name is None:
        raise InputError(
            "模型没有说明图像编码器（image_encoder_name），没有默认的目标层；请给出 target_layer，或 image_encoder_name"
        )
    if name not in ENCODERS:
        raise InputError("没有图像编码器 {!r} 的默认目标层，请用 --target-layer 指定；{}", name, encoders_hint(name))
    return _module_at(model, ENCODERS[name].target_layer)


def _module_at(model, path: str) -> torch.nn.Module:
    """The module at a path of the tables, from the image encoder's backbone on."""
    try:
        module = model.image_encoder.backbone
        for part in path.split("."):
            if part == "layers" and not hasattr(module, part):
                module, part = module.encoder, "layer"  # a ViT of an older transformers
            module = unwrapped(module)[int(part)] if part.startswith("-") else getattr(module, part)
    except (AttributeError, IndexError, TypeError) as error:
        raise InputError(
            "图像编码器 {} 中没有默认的目标层 backbone.{}，它与 image_encoder_name 不是同一种网络；"
            "请用 target_layer（--target-layer）给出层的名称",
            type(model.image_encoder).__name__,
            path,
        ) from error
    return module


def row_of(model, encoder: str) -> EncoderRow:
    """The encoder's row; of a caller's own tower that lacks what the default needs, the users' guide's Grad-CAM."""
    row, tower = ENCODERS.get(encoder, EncoderRow("")), model.image_encoder
    if hasattr(tower, "embed") and METHODS[row.method].needs.suits(tower) and _has_layers(model, row):
        return row
    return EncoderRow(row.target_layer, others=row.others)


def _has_layers(model, row: EncoderRow) -> bool:
    """Whether the layers whose maps are fused are there."""
    try:
        for path in row.layers:
            _module_at(model, path)
    except InputError:
        return False
    return True


def tells_presence(encoder: str, setting: Setting) -> bool:
    """Whether the strength of a setting's maps tells what is there from what is not.

    So it is with the dot product of networks with batch normalisation: AUC 91 to 100 % in truth.json. It is not with
    ConvNeXt (32 to 55 %), nor with the cosine (9 to 100 %), nor with ViTs (8 to 98 %).
    """
    return ENCODERS.get(encoder, EncoderRow("")).tells_presence and setting.similarity == "dot"


def default_layers(model, encoder: str) -> list[torch.nn.Module]:
    """The layers of an encoder's default: those that are fused, else the target layer; none of attention."""
    row = row_of(model, encoder)
    if reads_attention(row.method):
        return []
    return [_module_at(model, path) for path in row.layers] or [get_target_layer_for_clip(model, encoder)]


def default_setting(model, encoder: str, question: Question, layers: Sequence = ()) -> Setting:
    """The encoder's default, with what else is asked for; the others are taken off from LEAST_TEXTS texts on."""
    row = row_of(model, encoder)
    subtracts = row.subtract_others and len(question.texts) >= LEAST_TEXTS and not question.contrast
    explained = list(layers) or default_layers(model, encoder)
    setting = Setting(row.method, row.similarity, explained, row.others if subtracts else None)
    changed = with_choices(setting, question, row.others)
    return changed._replace(is_default=changed == setting and not layers and not question.contrast)


def guide_setting(model, encoder: str, question: Question, method: str, layers: Sequence = ()) -> Setting:
    """A method as the users' guide has its Grad-CAM: one target layer, the cosine, nothing taken off but on demand."""
    if reads_attention(method):
        explained = list(layers) if question.method != "all" else []
    else:
        explained = list(layers) or [get_target_layer_for_clip(model, encoder)]
    return with_choices(Setting(method, "cosine", explained), question, row_of(model, encoder).others)


def settings_of(model, encoder: str, question: Question, layers: Sequence = ()) -> list[Setting]:
    """The settings that a question stands for, in the order in which they are shown; `layers` as asked for, or none.

    Layers without a method are explained by the default where it has layers, else by the guide's Grad-CAM.
    """
    if question.method is None and not (layers and reads_attention(row_of(model, encoder).method)):
        return [default_setting(model, encoder, question, layers)]
    methods = methods_for(model, question.method or "gradcam")
    settings = [guide_setting(model, encoder, question, method, layers) for method in methods]
    if question.method != "all":
        return settings
    if row_of(model, encoder).is_guides:
        guide = Setting("gradcam", layers=settings[0].layers)
        return [setting._replace(is_default=setting == guide and not layers) for setting in settings]
    default = default_setting(model, encoder, question._replace(similarity=None, subtract_others=None))
    return [default._replace(is_default=True), *settings]  # contrasted too: its files need a name of their own
