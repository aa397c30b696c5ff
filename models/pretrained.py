"""CLIP models that others have published, as transformers saves them: a folder, or a name on the model hub.

    model = load_pretrained("OFA-Sys/chinese-clip-vit-base-patch16")   # local cache first, then the hub
    model = load_pretrained("models/my-siglip", img_size=384)

What comes back offers what `models.clip.CLIPModel` offers, with the model's own preprocessing, tokenizer and rule
for probabilities. Nothing of a folder is executed: code of its own is refused, pickles hold tensors only.
The heavy libraries are imported where a model is built.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import CheckpointError, InputError, InputWarning, reason
from .preprocessing import Preprocessing

# model_type of config.json -> class of transformers; other types count if their structure is a known one
MODELS = {
    "clip": "CLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "altclip": "AltCLIPModel",
    "metaclip_2": "MetaClip2Model",
}
SUPPORTED = f"{'、'.join(MODELS.values())} 以及结构与它们相同的模型"
FIRST_TOKEN = ("chinese_clip",)  # their text embedding is the first token's

CONFIGS = ("config.json", "open_clip_config.json")
# files that hold the weights, or their index -> all of them, as patterns; the first that is there counts
WEIGHTS = {
    "model.safetensors": ("model.safetensors",),
    "model.safetensors.index.json": ("model-*.safetensors",),
    "pytorch_model.bin": ("pytorch_model.bin",),
    "pytorch_model.bin.index.json": ("pytorch_model-*.bin",),
    "open_clip_model.safetensors": ("open_clip_model.safetensors",),
    "open_clip_pytorch_model.bin": ("open_clip_pytorch_model.bin",),
}
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)


# ---------------------------------------------------------------------------------------------
# Where it is

HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl", ".zip")


def is_pretrained(path: str | os.PathLike) -> bool:
    """Whether `path` is no checkpoint file: a folder with a model's config.json, or what may be a name on the hub."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return any(os.path.isfile(os.path.join(path, name)) for name in CONFIGS)
    looks_so = HUB_NAME.fullmatch(path) and not path.lower().endswith(CHECKPOINT_SUFFIXES)
    return bool(looks_so) and not os.path.exists(path)


def local_folder(source: str | os.PathLike, weights: bool = True) -> Path:
    """The folder that a path or a hub name stands for: in the local cache, else downloaded. InputError if neither.

    Without `weights`, only the small files of a name are asked for.
    """
    if os.path.isdir(source):
        return Path(source)
    from .clip import _hub_is_reachable

    name, said = str(source), "模型库无法连接"
    if (cached := hub_folder(name)) is not None and (not weights or _first_of(WEIGHTS, cached)):
        return cached
    if _hub_is_reachable():
        try:
            return _download(name, weights)
        except Exception as error:  # what the hub's client raises differs with its version
            said = f"从模型库下载失败：{type(error).__name__}"
    raise InputError(
        f"找不到模型 {name}：它不是本地的检查点文件或含 config.json 的文件夹；作为模型库的名称，不在本地缓存中，{said}"
        "（可用环境变量 HF_ENDPOINT 指定镜像）"
    )


def hub_folder(name: str) -> Path | None:
    """Where the local cache keeps a repository of the model hub, whole or in part; None where it does not."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not there, or no name of a repository
        return None


def _download(name: str, weights: bool) -> Path:
    """Bring a repository into the cache: its weights in one format, its small files."""
    from huggingface_hub import HfApi, snapshot_download

    there = HfApi().list_repo_files(name)
    patterns = next((patterns for file, patterns in WEIGHTS.items() if weights and file in there), ())
    return Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, *patterns]))


def _first_of(names, folder: Path) -> str | None:
    return next((name for name in names if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights; InputError where there are none, or one of an index is missing."""
    first = _first_of(WEIGHTS, folder)
    if first is None:
        raise InputError(f"文件夹 {folder} 中没有权重：需要 {'、'.join(list(WEIGHTS)[:4])} 之一")
    if not first.endswith(".index.json"):
        return [folder / first]
    files = [folder / name for name in sorted(set(read_json(folder / first).get("weight_map", {}).values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise InputError(f"文件夹 {folder} 的权重不完整：{first} 列出的 {'、'.join(missing[:3]) or '文件'} 不在其中")
    return files


def fingerprint(source: str | os.PathLike) -> str:
    """32 hexadecimal digits that stand for a model's content: weights, configuration, tokenizer; not for its place."""
    folder = local_folder(source)
    small = {file for pattern in SMALL_FILES for file in folder.glob(pattern)}
    digest = hashlib.sha256(b"folder\0")
    for file in sorted({*small, *weight_files(folder)}, key=lambda file: file.name):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"无法读取 {file}：不是有效的 JSON（{reason(error)}）") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} 应是一个 JSON 对象，读到的是 {type(content).__name__}")
    return content


# ---------------------------------------------------------------------------------------------
# How it prepares images

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
_CLIP = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
_CLIP |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
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
    """A model's own preprocessing, read from its folder; `config`: its config.json. Scaled to `img_size` if given.

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
    given = {key: value for key, value in size.items() if value} if isinstance(size, Mapping) else size
    if isinstance(given, int):
        return (given, given) if square else given
    if isinstance(given, (list, tuple)) and len(given) == 2:
        return int(given[0]), int(given[1])
    if isinstance(given, Mapping) and set(given) == {"shortest_edge"}:
        return (int(given["shortest_edge"]),) * 2 if square else int(given["shortest_edge"])
    if isinstance(given, Mapping) and set(given) == {"height", "width"}:
        return int(given["height"]), int(given["width"])
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


# ---------------------------------------------------------------------------------------------
# Loading


def load_pretrained(
    source: str | os.PathLike,
    img_size: int | None = None,
    text_tower: bool = True,
    tokenizer: str | os.PathLike | None = None,
):
    """The CLIP of a folder or a hub name as a `PretrainedCLIP`, in eval mode, on the CPU, in float32.

    `img_size`: a side in pixels other than the model's own; position codes are then interpolated. `tokenizer`: a
    folder with the tokenizer's files where the model's has none. InputError where it cannot be found, is none of
    `SUPPORTED`, or lacks files.
    """
    folder = local_folder(source)
    if not (folder / "config.json").is_file():
        from .openai_clip import load_openai

        return load_openai(weight_files(folder)[0], None, img_size, text_tower, tokenizer)
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODELS and not {"text_config", "vision_config"} <= set(config):
        raise InputError(f"{folder} 中的模型是 {model_type}；支持：{SUPPORTED}")
    find_tokenizer = tokenizer_of(folder if tokenizer is None else Path(tokenizer)) if text_tower else None
    preprocessing = read_preprocessing(folder, config, img_size)
    network = _read_network(folder, model_type)

    from .pretrained_towers import build_towers

    try:
        model = build_towers(network, preprocessing, find_tokenizer, model_type in FIRST_TOKEN)
    except InputError as error:
        raise InputError(f"{folder} 无法使用：{error}；支持：{SUPPORTED}") from error
    if model.img_size:
        model.image_encoder.token_grid(model.img_size, model.img_size)  # InputError where it is less than a patch
    return model


def tokenizer_of(folder: Path) -> Callable:
    """A function that loads the tokenizer of a folder; InputError at once where its files are missing."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        needed = "、".join(" 和 ".join(names) for names in TOKENIZERS)
        raise InputError(f"文件夹 {folder} 中没有分词器：需要以下文件之一：{needed}")

    def load():
        from transformers import AutoTokenizer

        needed, installed = list(folder.glob("*.model")), importlib.util.find_spec("sentencepiece")
        hint = "；请先安装：pip install sentencepiece protobuf" if needed and not installed else ""
        with quiet(), explained(f"无法读取 {folder} 中的分词器{hint}"):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    return load


def _read_network(folder: Path, model_type: str):
    """The network of transformers with all of its weights; CheckpointError where some are missing."""
    import transformers

    weight_files(folder)
    name = MODELS.get(model_type, "AutoModel")
    loader = getattr(transformers, name, None)
    if loader is None:
        version = transformers.__version__
        raise InputError(f"已安装的 transformers {version} 没有 {name}；请升级：pip install -U transformers")
    options = {"local_files_only": True, "output_loading_info": True, "trust_remote_code": False}
    if name != "AutoModel":
        del options["trust_remote_code"]
    with quiet(), explained(f"无法读取 {folder} 中的模型"):
        network, info = loader.from_pretrained(folder, **options)
    missing = sorted(map(str, info.get("missing_keys") or ()))
    if missing:
        raise CheckpointError(f"{folder} 的权重缺少 {len(missing)} 个：{'、'.join(missing[:3])}")
    return network


@contextlib.contextmanager
def explained(what: str):
    """Any exception of the libraries as an InputError of one line."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # what the libraries raise for a bad file is no one thing
        says = " ".join(str(error).split())[:200]
        raise InputError(f"{what}：{says}（{type(error).__name__}）") from error


@contextlib.contextmanager
def quiet():
    """No progress bars and reports of transformers: what matters is said by us."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
