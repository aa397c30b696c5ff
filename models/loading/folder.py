"""CLIP models that others have published, as transformers saves them: a folder, of the user's or the hub's cache.

What comes back offers what `models.clip.CLIPModel` offers, with the model's own preprocessing, tokenizer and rule
for probabilities. Transformers is never given the folder: the network is built of the plain sizes in its config.json,
and takes the weights that our own reader has read. So nothing of a folder is executed, looked up elsewhere or loaded
beside it, and memory is taken once the sizes are those of the weights.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError, InputError, InputWarning
from ..heavy import transformers
from ..images.preprocessing import Preprocessing
from ..messages import Joined, Message
from ..savings import forget
from ..towers.published import PretrainedCLIP, build_towers, drop_text_tower, is_of_text_tower, vision_of
from ..towers.tokenizers import tokenizer_of
from ..weights.configs import PARTS, plain_clip
from ..weights.hub import as_input_error, quiet, read_json
from ..weights.modules import assign_weights, first_names, give_buffers_values
from ..weights.names import WRAPPER_PREFIX, Rules, rename
from .content import Content, Request, refuse_adapter_weights
from .processors import preprocessing_cautions, read_preprocessing
from .text_cache import CachedFeatures, unless_cached

# model_type of config.json -> class of transformers; other types count if their structure is a known one
MODELS = {
    "clip": "CLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "altclip": "AltCLIPModel",
    "metaclip_2": "MetaClip2Model",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
DUAL = "vision-text-dual-encoder"  # of two models by themselves, each of its own model_type
SUPPORTED = Message("{} 以及结构与它们相同的模型", Joined("、", MODELS.values()))
FIRST_TOKEN = ("chinese_clip",)  # their text embedding is the first token's


def recognises(content: Content) -> bool:
    """Whether it is a folder as transformers saves it."""
    return content.is_folder


def load(content: Content, request: Request, cached: CachedFeatures | None = None) -> PretrainedCLIP:
    """The CLIP of a folder, in eval mode, on the CPU, in float32; its weights are the files', not copies.

    An `img_size` other than the model's own has its position codes interpolated; a text encoder that is a folder
    holds the tokenizer's files where the model's has none. InputError where the folder is none of `SUPPORTED`, or
    lacks files. Without its text tower where that is not wanted, or where `cached` has the features.
    """
    request.warn_of_unused()
    folder = content.path
    config = _read_config(folder)
    model_type = config.get("model_type")
    find_tokenizer = tokenizer_of(Path(request.text_folder or folder)) if request.text_tower else None
    find_tokenizer = unless_cached(cached, find_tokenizer)
    preprocessing = read_preprocessing(folder, config, request.img_size)
    network = _read_network(content, config, find_tokenizer is not None)
    try:
        with as_input_error(Message("结构不受支持")):
            model = build_towers(network, preprocessing, find_tokenizer, model_type in FIRST_TOKEN)
            _check_grid(model, preprocessing, request.img_size)
    except InputError as error:
        raise type(error)("{} 无法使用：{}；支持：{}", folder, error, SUPPORTED) from error
    model.cautions = preprocessing_cautions(folder, config)
    return model


MOST_PATCHES = 4096  # of an input that only the preprocessor's file asks for: attention takes their square


def _check_grid(model: PretrainedCLIP, preprocessing: Preprocessing, img_size: int | None) -> None:
    """InputError where the input has less than a patch, or more patches than the user or the model ask for."""
    _, rows, columns = model.image_encoder.token_grid(*preprocessing.input_size(1, 1))
    trained = model.image_encoder.positions
    if img_size is None and rows * columns > max(MOST_PATCHES, trained):
        raise InputError(
            "它的预处理得出 {}×{} 个图块，而模型有 {} 个位置；请用 --img-size 给出输入的边长", rows, columns, trained
        )


# What the parts of a dual encoder may be: vision models with one grid, or a last one; text models that pool; no type
# that fetches weights of its own when it is built.
DUAL_PARTS = {
    "vision_config": (
        *("clip_vision_model", "chinese_clip_vision_model", "siglip_vision_model"),
        *("vit", "deit", "dinov2", "dinov2_with_registers", "swin"),
    ),
    "text_config": ("bert", "roberta", "xlm-roberta", "clip_text_model"),
}


def _read_config(folder: Path) -> dict:
    """The sizes of a folder's CLIP; InputError where it is no CLIP of transformers, or needs code of its own."""
    file = folder / "config.json"
    config = read_json(file)
    model_type = str(config.get("model_type"))[:60]
    if model_type not in MODELS and not {"text_config", "vision_config"} <= set(config):
        raise InputError("{} 中的模型是 {}；支持：{}", folder, model_type, SUPPORTED)
    if model_type not in MODELS and not _is_built_in(model_type):
        code = (
            Message("需要运行文件夹自带的代码，已拒绝")
            if "auto_map" in config
            else Message("已安装的 transformers 不认识它")
        )
        raise InputError("{} 中的模型是 {}，{}；支持：{}", folder, model_type, code, SUPPORTED)
    plain = plain_clip(config, file)
    types = {name: plain[name].pop("model_type", None) for name in PARTS if name in plain}
    if model_type == DUAL:
        _check_parts(types, file)
    for name, part_type in types.items():
        if (model_type == DUAL or model_type not in MODELS) and part_type in DUAL_PARTS.get(name, ()):
            plain[name]["model_type"] = part_type
    return plain


def _check_parts(types: Mapping, file: Path) -> None:
    """InputError where a part of a dual encoder, {"vision_config": model_type, ...}, is none of DUAL_PARTS."""
    for name, supported in DUAL_PARTS.items():
        if types.get(name) not in supported:
            part_type = str(types.get(name))[:60]
            raise InputError("{} 的 {} 是 {} 模型，不受支持；支持：{}", file, name, part_type, Joined("、", supported))


def _is_built_in(model_type: str) -> bool:
    """Whether transformers itself has a model of two towers of this type."""
    with quiet():
        configs = transformers.models.auto.configuration_auto.CONFIG_MAPPING
        return model_type in configs and {"text_config", "vision_config"} <= set(configs[model_type].sub_configs)


def _read_network(content: Content, config: Mapping, text_tower: bool = True) -> nn.Module:
    """The network of transformers with all of its weights; CheckpointError where they are not those of its config.

    Without `text_tower` those of the text model are neither read nor looked at.
    """
    folder, weights = content.path, content.folder_weights()
    refuse_adapter_weights(weights, folder)
    file, layers = folder / "config.json", [_count_layers(config.get(part) or {}) for part in PARTS]
    if max(layers) > len(weights):
        raise InputError("{} 说有 {} 层，而权重只有 {} 个：二者不是一套文件", file, max(layers), len(weights))
    with as_input_error(Message("无法按 {} 建立模型", file)), quiet(), torch.device("meta"):
        network = _build(config)
    try:
        vision_of(network)
    except InputError as error:
        raise InputError("{} 无法使用：{}；支持：{}", folder, error, SUPPORTED) from error
    if not text_tower:
        drop_text_tower(network)
    try:
        with as_input_error(Message("其中的张量不能用作权重")):
            assign_weights(network, _names_of(network, weights, folder))
            give_buffers_values(network)
    except InputError as error:
        raise CheckpointError("{} 的权重与 {} 不符：{}", folder, file.name, error) from error
    forget(weights)
    return network


def _count_layers(part: Mapping) -> int:
    return part.get("num_hidden_layers") or sum(part.get("depths", ()))


def _build(config: Mapping) -> nn.Module:
    """The network that transformers itself has for these sizes."""
    sizes = {name: value for name, value in config.items() if name != "model_type"}
    name = MODELS.get(config["model_type"])
    if name is None:
        built_in = transformers.AutoConfig.for_model(config["model_type"], **sizes)
        return transformers.AutoModel.from_config(built_in, trust_remote_code=False)
    if not hasattr(transformers, name):
        version = transformers.__version__
        raise InputError("已安装的 transformers {} 没有 {}；请升级：pip install -U transformers", version, name)
    return getattr(transformers, name)(getattr(transformers, name.removesuffix("Model") + "Config")(**sizes))


# versions of transformers name a weight differently: all spellings of it -> one, in turn
SPELLINGS: Rules = (
    (r"^(vision_model|text_model)\.\1\.", r"\1."),
    (r"\.(?:encoder\.)?layers?\.(?=\d)", ".layers."),
    (r"\.attention\.(?:attention|self)\.", ".attention."),
    (r"\.attention\.(?:(q)uery|(k)ey|(v)alue)\.", r".attention.\1\2\3_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.attention\.relative_position_bias\.", ".attention."),
    (r"(?<=\d)\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<=\d)\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_out\.", ".mlp.down_proj."),
    (r"\bLayerNorm\.gamma$", "LayerNorm.weight"),
    (r"\bLayerNorm\.beta$", "LayerNorm.bias"),
)
GATED = re.compile(r"\.mlp\.weights_in\.(?=(?:weight|bias)$)")  # two layers of DINOv2 in one, as its files have them
NO_WEIGHTS = re.compile(r"(?:^|\.)(?:(?:position_ids|token_type_ids|relative_position_index)$|pooler\.)")


def _names_of(network: nn.Module, weights: Mapping, folder: Path) -> dict[str, torch.Tensor]:
    """The weights under the names of this network. What lies outside of its towers is left out, with a warning."""
    own, named, outside = network.state_dict(), {}, []
    parts, spellings = {name.partition(".")[0] for name in own}, {rename(name, SPELLINGS): name for name in own}
    for key, tensor in _in_single_layers(own, weights):
        name = WRAPPER_PREFIX.sub("", key)
        name = name if name in own else spellings.get(rename(name, SPELLINGS), name)
        if name in named:
            raise CheckpointError("同一个权重 {} 出现了两次", name)
        if name not in own and (NO_WEIGHTS.search(name) or (is_of_text_tower(name) and "text_model" not in parts)):
            continue
        if name.partition(".")[0] not in parts:
            outside.append(key)
        elif own.get(name, tensor).is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError("{} 不是普通的浮点张量（{}）", key, tensor.dtype)
        else:
            named[name] = tensor
    if outside:
        message = Message("忽略了 {} 中两个编码器之外的 {} 个权重：{}", folder, len(outside), first_names(outside))
        warnings.warn(InputWarning(message), stacklevel=5)
    return named


def _in_single_layers(own: Mapping, weights: Mapping) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of each; of two layers in one the halves, where the network has them apart."""
    apart = any(".mlp.gate_proj." in name for name in own)
    for key, tensor in weights.items():
        if apart and GATED.search(key) and tensor.ndim and len(tensor) % 2 == 0:
            for layer, half in zip(("gate_proj", "up_proj"), tensor.chunk(2)):
                yield GATED.sub(f".mlp.{layer}.", key), half
        else:
            yield key, tensor
