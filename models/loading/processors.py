"""How published models prepare images: the settings of a folder's image processor as our `Preprocessing`."""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError, InputWarning
from ..images.preprocessing import Preprocessing
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
    "Siglip": {**_SQUARE, "resample": 3},
    "ViT": {**_SQUARE, "resample": 2},
    "Siglip2": {**_SQUARE, "resample": 2, "patch_size": 16, "max_num_patches": 256},
}
PROCESSOR_OF_MODEL = {"siglip": "Siglip", "siglip2": "Siglip2", "chinese_clip": "ChineseCLIP"}  # else "CLIP"
PROCESSOR_ENDING = re.compile(r"(ImageProcessor|FeatureExtractor|Processor)(Fast|Pil)?$")


def read_preprocessing(folder: Path, config: Mapping, img_size: int | None = None) -> Preprocessing:
    """A model's own preprocessing, read from its folder; `config`: its config.json. Scaled to `img_size` if sides.

    Without a file, what is usual for its family at the model's own size, with a warning. InputError where the
    file asks for something else than resizing, cropping and normalising.
    """
    settings = _processor_settings(folder)
    usual = PROCESSOR_OF_MODEL.get(config.get("model_type"), "CLIP")
    if settings is None:
        vision = config.get("vision_config") or {}
        message = f"{folder} 中没有 preprocessor_config.json，图像按 {usual} 模型通常的方式预处理"
        warnings.warn(message, InputWarning, stacklevel=2)
        settings = {name: vision[key] for name, key in _OF_VISION_CONFIG if usual == "Siglip2" and key in vision}
        img_size = img_size or (None if usual == "Siglip2" else vision.get("image_size", 224))
    settings = {name: value for name, value in settings.items() if value is not None}
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or usual
    kind = PROCESSOR_ENDING.sub("", kind)
    preprocessing = _preprocessing({**PROCESSORS.get(kind, _CLIP), **settings}, kind)
    return scaled(preprocessing, img_size) if img_size else preprocessing


_OF_VISION_CONFIG = (("patch_size", "patch_size"), ("max_num_patches", "num_patches"))


def _processor_settings(folder: Path) -> dict | None:
    """What a folder says of its image processor; None where nothing. transformers 5 keeps it with the tokenizer's."""
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return nested
    file = folder / "preprocessor_config.json"
    return read_json(file) if file.is_file() else None


def _preprocessing(settings: Mapping, kind: str) -> Preprocessing:
    """The settings of an image processor in our words."""
    if not settings.get("do_resize", True):
        message = "模型的预处理不改变图像大小（do_resize: false），这里仍缩放到模型的输入大小"
        warnings.warn(message, InputWarning, stacklevel=4)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", True):
        mean, std = (_three(settings[name]) for name in ("image_mean", "image_std"))
    # Levels 0 to 255 times the factor are what mean and deviation belong to; ours belong to levels in [0, 1].
    factor = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    if not math.isclose(factor, 1):
        mean, std = (tuple(value / factor for value in values) for values in (mean, std))
    common = {"mean": mean, "std": std, "resample": int(settings["resample"])}
    if "max_num_patches" in settings:
        patch, most = int(settings["patch_size"]), int(settings["max_num_patches"])
        return Preprocessing((patch * math.isqrt(most),) * 2, patches=(patch, most), **common)
    crop = _height_width(settings["crop_size"], square=True) if settings.get("do_center_crop") else None
    return Preprocessing(_height_width(settings["size"], square=kind in ("Siglip", "ViT")), crop, **common)


def _three(values) -> tuple:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),) * 3


def _height_width(size, square: bool) -> int | tuple[int, int]:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224} -> the shorter edge, or (height, width)."""
    sides = {key: value for key, value in size.items() if value} if isinstance(size, Mapping) else size
    if isinstance(sides, int):
        return (sides, sides) if square else sides
    if isinstance(sides, (list, tuple)) and len(sides) == 2:
        return int(sides[0]), int(sides[1])
    if isinstance(sides, Mapping) and set(sides) == {"shortest_edge"}:
        return (int(sides["shortest_edge"]),) * 2 if square else int(sides["shortest_edge"])
    if isinstance(sides, Mapping) and set(sides) == {"height", "width"}:
        return int(sides["height"]), int(sides["width"])
    raise InputError(f"模型的预处理中图像大小是 {size!r}，本工具只支持最短边或高和宽")


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
