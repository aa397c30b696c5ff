"""CLIP models that others have published, as transformers saves them: a folder, of the user's or the hub's cache.

What comes back offers what `models.clip.CLIPModel` offers, with the model's own preprocessing, tokenizer and rule
for probabilities. Nothing of a folder is executed: code of its own is refused, pickles hold tensors only.
"""

from pathlib import Path

from ..errors import CheckpointError, InputError
from ..heavy import transformers
from ..towers.published import PretrainedCLIP, build_towers
from ..towers.tokenizers import tokenizer_of
from ..weights.hub import as_input_error, quiet, read_json, weight_files
from .content import Content, Request
from .processors import read_preprocessing

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


def recognises(content: Content) -> bool:
    """Whether it is a folder, which transformers reads."""
    return content.is_folder


def load(content: Content, request: Request, cached=None) -> PretrainedCLIP:
    """The CLIP of a folder, in eval mode, on the CPU, in float32.

    An `img_size` other than the model's own has its position codes interpolated; a text encoder that is a folder
    holds the tokenizer's files where the model's has none. InputError where the folder is none of `SUPPORTED`, or
    lacks files. Its texts' features are not cached.
    """
    request.warn_of_unused()
    folder = content.path
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODELS and not {"text_config", "vision_config"} <= set(config):
        raise InputError(f"{folder} 中的模型是 {model_type}；支持：{SUPPORTED}")
    find_tokenizer = tokenizer_of(Path(request.text_folder or folder)) if request.text_tower else None
    preprocessing = read_preprocessing(folder, config, request.img_size)
    network = _read_network(folder, model_type)
    try:
        model = build_towers(network, preprocessing, find_tokenizer, model_type in FIRST_TOKEN)
    except InputError as error:
        raise InputError(f"{folder} 无法使用：{error}；支持：{SUPPORTED}") from error
    if model.img_size:
        model.image_encoder.token_grid(model.img_size, model.img_size)  # InputError where it is less than a patch
    return model


def _read_network(folder: Path, model_type: str):
    """The network of transformers with all of its weights; CheckpointError where some are missing."""
    weight_files(folder)
    name = MODELS.get(model_type, "AutoModel")
    loader = getattr(transformers, name, None)
    if loader is None:
        version = transformers.__version__
        raise InputError(f"已安装的 transformers {version} 没有 {name}；请升级：pip install -U transformers")
    options = {"local_files_only": True, "output_loading_info": True, "trust_remote_code": False}
    if name != "AutoModel":
        del options["trust_remote_code"]
    with quiet(), as_input_error(f"无法读取 {folder} 中的模型"):
        network, info = loader.from_pretrained(folder, **options)
    missing = sorted(map(str, info.get("missing_keys") or ()))
    if missing:
        raise CheckpointError(f"{folder} 的权重缺少 {len(missing)} 个：{'、'.join(missing[:3])}")
    return network
