"""From a checkpoint file to a model: read without executing anything, built, and its texts embedded.

Features of the texts come from `models.text_cache` where they are known: the text tower is then neither
read nor built.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, InputWarning

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def evaluating(module):
    """Put a module and all below it in eval mode; afterwards each is in the mode it was in."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def read_checkpoint_file(path: str | os.PathLike, mapped: bool | None = None) -> Mapping:
    """Read a `.pth` or `.safetensors` file, memory-mapped (see `read_torch_file`); nothing in it is executed.

    Of a TorchScript archive the tensors are read. Raises InputError where the file is missing, cut short, no
    checkpoint, or holds objects beyond tensors and plain data.
    """
    from .checkpoint_layouts import read_safetensors, read_torch_file

    path = Path(path)
    if not path.is_file():
        known = "（是文件夹，但其中没有 config.json）" if path.is_dir() else ""
        raise InputError(f"找不到检查点文件：{path}{known}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchScript archive")  # torch would run it; we do not
            return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path, mapped)
    except InputError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, ... on a bad file
        from .torchscript import is_torchscript, read_torchscript

        if is_torchscript(path):
            return read_torchscript(path)
        known = isinstance(error, pickle.UnpicklingError)  # its text speaks of torch.load's own options
        reason = "不是 PyTorch 保存的文件" if known else re.split(r"[.:\n] ?", str(error).strip())[0][:80]
        raise InputError(f"无法读取检查点 {path}：文件不完整、已损坏或不是检查点（{reason}）") from error


def load_clip_checkpoint(
    path: str | os.PathLike,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    embed_dim: int | None = None,
    img_size: int | None = None,
    text_tower: bool = True,
):
    """Build the CLIPModel whose weights stand in `path`, in eval mode, on the CPU; on request without its text tower.

    What the checkpoint says of itself counts; the arguments fill in what it leaves open, and one that
    contradicts it is warned about and loses. Every form in `models.checkpoint_layouts` is read; what
    `models.pretrained` and `models.openai_clip` know comes back as a PretrainedCLIP.
    """
    flags = {"image_encoder": image_encoder, "text_encoder": text_encoder, "embed_dim": embed_dim, "img_size": img_size}
    content = FOLDER if _is_folder_or_name(path) else read_checkpoint_file(path)
    if content is FOLDER or _is_foreign(content):
        return _load_published(path, content, flags, text_tower)
    checkpoint, config = _translate(content, flags)
    del content
    model = _build_model(checkpoint, config, text_tower)
    del checkpoint  # imports keep this frame alive until the next garbage collection
    return model


def load_with_text_features(
    path: str | os.PathLike,
    texts: Sequence[str],
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    embed_dim: int | None = None,
    img_size: int | None = None,
    device: str = "cpu",
    use_cache: bool = True,
) -> tuple:
    """(the model without its text tower, text features float32 [K, D]), both on `device`; else as above.

    Features that `models.text_cache` has are not computed again: the text tower is then neither read nor
    built, and what embedding the texts warned of is said again. Either way the results are the same, bit for bit.
    """
    from . import text_cache

    flags = {"image_encoder": image_encoder, "text_encoder": text_encoder, "embed_dim": embed_dim, "img_size": img_size}
    state = text_cache.file_state(path)
    content = FOLDER if _is_folder_or_name(path) else read_checkpoint_file(path, use_cache or None)
    if content is FOLDER or _is_foreign(content):
        return _published_with_features(path, content, flags, texts, device)
    checkpoint, config = _translate(content, flags)
    del content
    cached = use_cache and config["text_config"].get("model_type") is None  # CLIP's tokenizer may be anywhere
    key = text_cache.file_features_key(path, state, config, texts, device) if cached else None
    entry = text_cache.load_entry(key) if key else None
    if entry is None and use_cache:
        _copy_small_file(path, checkpoint)
    model = _build_model(checkpoint, config, text_tower=entry is None)
    del checkpoint
    if entry is None:
        features = embed_texts(model.to(device), texts)
        if key and text_cache.file_state(path) == state:  # what was embedded is what has the key
            text_cache.store_entry(key, features.cpu().numpy(), model.text_encoder.describe_cuts(texts))
    else:
        features = _kept_features(*entry).to(device)
    release_text_tower(model)
    return model.to(device), features


def _kept_features(features, messages: Sequence[str]) -> torch.Tensor:
    """Features of an entry of the cache, [K, D]; what embedding the texts warned of is said again."""
    import torch

    for message in messages:
        warnings.warn(message, InputWarning, stacklevel=3)
    return torch.from_numpy(features).clone()


FOLDER = {}  # in place of a file's content


def _is_folder_or_name(path) -> bool:
    """Whether `path` is no file but a model's folder, or its name on the hub."""
    if os.path.isfile(path):
        return False
    from .pretrained import is_pretrained

    return is_pretrained(path)


def _is_foreign(content: Mapping) -> bool:
    """Whether the weights stand under OpenAI's names, not under ours."""
    from .checkpoint_layouts import BACKBONE, split_checkpoint

    if any(BACKBONE in str(key) for key in split_checkpoint(content)[0]):
        return False
    from .openai_clip import looks_like_openai

    return looks_like_openai(content)


def _load_published(path, content: Mapping, flags: Mapping, text_tower: bool = True):
    """The PretrainedCLIP of a folder or hub name (`content` FOLDER), or of a file under OpenAI's names."""
    folder = flags["text_encoder"] if os.path.isdir(flags["text_encoder"] or "") else None  # the tokenizer's files
    for name, value in {**flags, "text_encoder": None if folder else flags["text_encoder"], "img_size": None}.items():
        if value is not None:
            message = f"--{name.replace('_', '-')} {value} 对这种模型不起作用：模型自己说明了它的结构"
            warnings.warn(message, InputWarning, stacklevel=4)
    if content is FOLDER:
        from .pretrained import load_pretrained

        return load_pretrained(path, flags["img_size"], text_tower, folder)
    from .openai_clip import load_openai

    return load_openai(path, content, flags["img_size"], text_tower, folder)


def _published_with_features(path, content: Mapping, flags: Mapping, texts: Sequence[str], device: str) -> tuple:
    """`load_with_text_features` of the same; its texts are embedded anew each time."""
    model = _load_published(path, content, flags).to(device)
    features = embed_texts(model, texts)
    release_text_tower(model)
    return model, features


def _translate(content: Mapping, flags: Mapping) -> tuple:
    """(a checkpoint in our names, what to build for it)."""
    from .checkpoint_layouts import translate_checkpoint

    checkpoint = translate_checkpoint(content)
    del content  # imports keep this frame alive until the next garbage collection
    return checkpoint, _model_config(checkpoint, flags)


def _copy_small_file(path, checkpoint) -> None:
    """Copy all weights out of a mapped file that is not worth the risk of a mapping."""
    from .checkpoint_layouts import MAPPED_FROM_BYTES

    if os.path.getsize(path) <= MAPPED_FROM_BYTES:
        for name, tensor in checkpoint.state_dict.items():
            checkpoint.state_dict[name] = tensor.detach().clone()


def _build_model(checkpoint, config: Mapping, text_tower: bool = True):
    """The CLIPModel of a translated checkpoint, in eval mode, its weights those of the checkpoint, not copies."""
    from .clip import build_on_meta, give_buffers_values

    model = build_on_meta(config, text_tower)
    model.load_state_dict(checkpoint, assign=True)
    give_buffers_values(model)
    del checkpoint  # imports keep this frame alive until the next garbage collection
    return model.eval()


def release_text_tower(model) -> None:
    """Let go of the text tower and of the mapped file: most of the memory, and not needed again.

    The file is mapped as one piece, so what stays is copied out of it.
    """
    if model.text_encoder is not None:
        for tensor in (*model.text_encoder.parameters(), *model.text_encoder.buffers()):
            tensor.data = tensor.data.new_empty(0)
        model.text_encoder = None
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _model_config(checkpoint, flags: Mapping) -> dict:
    """What to build: read off the weights first, then off the checkpoint's config, then from the flags."""
    from .checkpoint_layouts import read_text_config

    config = dict(checkpoint.metadata)
    recognised = checkpoint.image_encoder_name
    if recognised and config.setdefault("image_encoder", recognised) != recognised:
        message = f"检查点的配置写着图像编码器 {config['image_encoder']}，权重却是 {recognised} 的，按权重处理"
        warnings.warn(message, InputWarning, stacklevel=4)
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
            warnings.warn(f"{flag} {value} 与检查点不符，按检查点的 {config[name]} 处理", InputWarning, stacklevel=4)
    if "image_encoder" not in config:
        raise InputError("无法从检查点识别图像编码器，请用 --image-encoder 指定")
    return config


def embed_texts(model, texts: list[str]) -> torch.Tensor:
    """Embed texts with the model's text encoder in eval mode: [K, D], no gradients."""
    import torch

    if model.text_encoder is None:
        raise InputError("该模型没有文本编码器：请给出 text_features，或用 load_clip_checkpoint 载入")
    with torch.no_grad(), evaluating(model.text_encoder):
        return model.text_encoder(texts=texts)


def choose_device(force_cpu: bool, local_rank: int = 0) -> str:
    """CUDA where there is one (the ranks of a machine take turns at its devices), else Apple's MPS, else the CPU."""
    import torch

    if not force_cpu and torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}" if local_rank else "cuda"
    if not force_cpu and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def fingerprint(path: str | os.PathLike) -> str:
    """32 hexadecimal digits that stand for the content of a checkpoint, a file or a folder, whatever its name."""
    if os.path.isfile(path):
        from .text_cache import checkpoint_fingerprint

        return checkpoint_fingerprint(path)
    from . import pretrained

    return pretrained.fingerprint(path)
