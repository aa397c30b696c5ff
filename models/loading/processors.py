"""How published models prepare images: the settings of a folder's image processor as our `Preprocessing`."""

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ..messages import Message
from ..weights.configs import SWITCH, WORD, Kind, check_fields, one_or_several, real, whole
from ..weights.hub import read_json

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_CLIP = {
    **{"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3},
    **{"image_mean": CLIP_MEAN, "image_std": CLIP_STD},
}
_SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": HALF, "image_std": HALF}

# what an image processor of transformers does where its file does not say, by its name without the ending
PROCESSORS = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Bit": _CLIP,
    "DINOv2": {**_CLIP, "size": {"shortest_edge": 256}, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "DeiT": {**_SQUARE, "size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": True, "resample": 3},
    "Siglip": {**_SQUARE, "resample": 3},
    "ViT": {**_SQUARE, "resample": 2},
    "Siglip2": {**_SQUARE, "resample": 2, "patch_size": 16, "max_num_patches": 256},
}
PROCESSOR_OF_MODEL = {
    **{"siglip": "Siglip", "siglip2": "Siglip2", "chinese_clip": "ChineseCLIP"},
    **{"siglip_vision_model": "Siglip", "chinese_clip_vision_model": "ChineseCLIP"},
    **{"vit": "ViT", "deit": "DeiT", "swin": "ViT", "dinov2": "DINOv2", "dinov2_with_registers": "DINOv2"},
}  # else "CLIP"; of a dual encoder its vision model decides
PROCESSOR_ENDING = re.compile(r"(ImageProcessor|FeatureExtractor|Processor)(Fast|Pil)?$")


SIDE = whole(1, 4096)
NUMBERS, DEVIATIONS = one_or_several(real(-1e6, 1e6)), one_or_several(real(1e-9, 1e6))
FIELDS = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), SWITCH),
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), WORD),
    "resample": whole(0, 5),
    "rescale_factor": real(1e-9, 1e9),
    **{"patch_size": whole(1, 512), "max_num_patches": whole(1, 65_536)},
    **{"image_mean": NUMBERS, "image_std": DEVIATIONS},
    **dict.fromkeys(("size", "crop_size"), Kind(Message("边长"), lambda value: True)),  # see `_height_width`
}


def read_preprocessing(folder: Path, config: Mapping, img_size: int | None = None) -> Preprocessing:
    """A model's own preprocessing, read from its folder; `config`: its config.json. Scaled to `img_size` if sides.

    Without a file, what is usual for its family at the model's own size: see `preprocessing_cautions`. InputError
    where the file asks for something else than resizing, cropping and normalising.
    """
    file, settings = _processor_settings(folder)
    usual, vision = _usual(config), config.get("vision_config") or {}
    if settings is None:
        settings = {name: vision[key] for name, key in _OF_VISION_CONFIG if usual == "Siglip2" and key in vision}
        img_size = img_size or (None if usual == "Siglip2" else vision.get("image_size", 224))
    preprocessing = described_preprocessing(settings, config, file)
    return scaled(preprocessing, img_size) if img_size else preprocessing


def described_preprocessing(settings: Mapping, config: Mapping, file: Path | str) -> Preprocessing:
    """What the settings of an image processor ask for, what they leave open as its kind, or the model's family, has it.

    `file`: where the settings stand. InputError as `read_preprocessing`.
    """
    usual, vision = _usual(config), config.get("vision_config") or {}
    settings = check_fields(settings, FIELDS, file)
    kind = _kind_of(settings) or usual
    preprocessing = _preprocessing({**PROCESSORS.get(kind, _CLIP), **settings}, kind, file)
    if preprocessing.patches and preprocessing.patches[0] != vision.get("patch_size", preprocessing.patches[0]):
        raise InputError("{} 的 patch_size 是 {}，模型的是 {}", file, preprocessing.patches[0], vision["patch_size"])
    return preprocessing


def has_preprocessing(folder: Path) -> bool:
    """Whether a file of the folder says how images are prepared."""
    return _processor_settings(folder)[1] is not None


_OF_VISION_CONFIG = (("patch_size", "patch_size"), ("max_num_patches", "num_patches"))


def preprocessing_cautions(folder: Path, config: Mapping) -> list[Message]:
    """What the reader must know of a folder's preprocessing: that it is assumed, wholly or in part."""
    file, settings = _processor_settings(folder)
    usual = _usual(config)
    if settings is None:
        return [Message("{} 中没有 preprocessor_config.json，图像按 {} 模型通常的方式预处理", folder, usual)]
    cautions, kind = [], _kind_of(settings) or usual
    if kind not in PROCESSORS:
        cautions.append(Message("{} 的图像处理器 {} 不是已知的，没有写明的部分按 CLIP 的方式预处理", file, kind))
    if not settings.get("do_resize", True):
        cautions.append(Message("模型的预处理不改变图像大小（do_resize: false），这里仍缩放到模型的输入大小"))
    return cautions


def _usual(config: Mapping) -> str:
    """The processor that a model usually comes with."""
    vision = (config.get("vision_config") or {}).get("model_type")
    return PROCESSOR_OF_MODEL.get(config.get("model_type")) or PROCESSOR_OF_MODEL.get(vision, "CLIP")


def _kind_of(settings: Mapping) -> str | None:
    """The name of an image processor without its ending; None where there is none."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return PROCESSOR_ENDING.sub("", kind) if kind else None


def _processor_settings(folder: Path) -> tuple[Path, dict | None]:
    """The file that speaks of the image processor and what it says; None where nothing does.

    transformers 5 keeps it with the tokenizer's.
    """
    file = folder / "processor_config.json"
    if file.is_file():
        nested = read_json(file).get("image_processor")
        if isinstance(nested, dict):
            return file, nested
    file = folder / "preprocessor_config.json"
    return file, read_json(file) if file.is_file() else None


def _preprocessing(settings: Mapping, kind: str, file: Path) -> Preprocessing:
    """The settings of an image processor in our words."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", True):
        mean, std = (three(settings[name], Message("{} 的 {}", file, name)) for name in ("image_mean", "image_std"))
    # Levels 0 to 255 times the factor are what mean and deviation belong to; ours belong to levels in [0, 1].
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    if not math.isclose(factor, 1):
        mean, std = (tuple(value / factor for value in values) for values in (mean, std))
    common = {"mean": mean, "std": std, "resample": settings["resample"]}
    if "max_num_patches" in settings:
        patch, most = settings["patch_size"], settings["max_num_patches"]
        side = _side(patch * math.isqrt(most), file)
        return Preprocessing((side, side), patches=(patch, most), **common)
    crop = _height_width(settings["crop_size"], True, file) if settings.get("do_center_crop") else None
    return Preprocessing(_height_width(settings["size"], kind in ("Siglip", "ViT", "DeiT"), file), crop, **common)


def three(values, name: str | Message) -> tuple:
    """A number for each of three channels, from one for all or one for each."""
    values = values if isinstance(values, (list, tuple)) else [values]
    if len(values) not in (1, 3):
        raise InputError("{} 有 {} 个值，应是一个，或三个通道各一个", name, len(values))
    return tuple(map(float, values)) * (3 // len(values))


def _side(value, file: Path) -> int:
    if not SIDE.holds(value):
        raise InputError("{} 的图像大小是 {}，边长应是{}", file, reprlib.repr(value)[:60], SIDE.words)
    return value


def _height_width(size, square: bool, file: Path) -> int | tuple[int, int]:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224} -> the shorter edge, or (height, width)."""
    sides = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else size
    if isinstance(sides, Mapping) and set(sides) == {"shortest_edge"}:
        sides = sides["shortest_edge"]
    if isinstance(sides, Mapping) and set(sides) == {"height", "width"}:
        sides = (sides["height"], sides["width"])
    if isinstance(sides, (list, tuple)) and len(sides) == 2:
        return _side(sides[0], file), _side(sides[1], file)
    if isinstance(sides, Mapping):
        shown = reprlib.repr(size)[:80]
        raise InputError("{} 的图像大小是 {}，本工具只支持最短边或高和宽", file, shown)
    side = _side(sides, file)
    return (side, side) if square else side


def scaled(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """The same in proportion, for an input of `side` x `side` pixels, or as many patches as there are in that."""
    if preprocessing.patches:
        patch = preprocessing.patches[0]
        return preprocessing._replace(resize=(side, side), patches=(patch, max(1, side // patch) ** 2))
    resize, crop = preprocessing.resize, preprocessing.crop
    if crop is None:
        return preprocessing._replace(resize=side if isinstance(resize, int) else (side, side))
    if isinstance(resize, int):
        resize = round(resize * side / min(crop))
    else:
        resize = (round(resize[0] * side / crop[0]), round(resize[1] * side / crop[1]))
    return preprocessing._replace(resize=resize, crop=(side, side))


class Processor(NamedTuple):
    """What prepares images and texts for a library's model, as far as the caller has it."""

    images: object | None = None
    tokenizer: object | None = None

    @classmethod
    def of(cls, processor) -> "Processor":
        """Of a processor of transformers, of a pair, or of what prepares images alone; None has nothing."""
        if isinstance(processor, (tuple, list)):
            if len(processor) != 2:
                raise InputError("processor 应是 (图像预处理, 分词器) 两项，收到 {} 项", len(processor))
            return cls(*processor)
        if hasattr(processor, "image_processor"):
            return cls(processor.image_processor, getattr(processor, "tokenizer", None))
        return cls(processor)
