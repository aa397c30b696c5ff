"""What stands at a path, read once, and what the user says of it: all that a reader is given."""

import os
import re
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, InputError, InputWarning
from ..messages import Joined, Message
from ..savings import forget
from ..weights.files import read_checkpoint_file
from ..weights.hub import (
    ADAPTER_WEIGHTS,
    CHECKPOINT_SUFFIXES,
    OPEN_CLIP_CONFIG,
    WEIGHTS,
    is_hub_name,
    is_index,
    local_folder,
    read_json,
    shards_of,
    weights_of,
)
from ..weights.layouts import split_checkpoint
from ..weights.metadata import parse_json
from ..weights.modules import first_names
from ..weights.names import BACKBONE, first_adapter
from ..weights.plain import fields_of
from ..weights.search import Contents, search_checkpoint
from .adapters import MERGE_FIRST, Adapter, adapter_files, base_of, merge_adapter, read_adapter


@dataclass(frozen=True)
class Content:
    """A checkpoint and the file that it was read from, of shards their index; or a folder as transformers saves it.

    With an adapter it is the model that the adapter makes of it: see `contents` and `folder_weights`.
    """

    path: Path
    checkpoint: MutableMapping | None = None
    is_folder: bool = False
    adapter: Adapter | None = None

    @cached_property
    def contents(self) -> Contents:
        """What a search of the checkpoint brings: one search for all readers."""
        contents = search_checkpoint(self.checkpoint)
        return contents._replace(weights=self._with_adapter(contents.weights)) if self.adapter else contents

    def folder_weights(self) -> dict:
        """All tensors of a folder of transformers, by name."""
        return self._with_adapter(split_checkpoint(_read_files(weights_of(self.path)))[0])

    def _with_adapter(self, weights: dict) -> dict:
        return weights if self.adapter is None else merge_adapter(self.adapter, weights)

    def forget(self) -> None:
        """Let go of the checkpoint's tensors, once a model has taken over its own."""
        if not self.is_folder:
            forget(self.checkpoint, self.contents.weights)


def located(path: str | os.PathLike, download: bool = False) -> str | os.PathLike:
    """The path itself, or the folder of a repository of the model hub; `download`: see `local_folder`."""
    return local_folder(path, download=download) if is_hub_name(path) else path


def read_content(path: str | os.PathLike, mapped: bool | None = None) -> Content:
    """What stands in a file or a folder; `mapped`: see `read_torch_file`.

    InputError where there is nothing, or nothing that can be read.
    """
    if os.path.isdir(path):
        return _read_folder(Path(path), mapped)
    if os.path.basename(path) in ADAPTER_WEIGHTS:
        raise InputError("{} 是适配器（PEFT、LoRA）的权重；请给出它所在的文件夹", path)
    content = Content(Path(path), read_checkpoint_file(path, mapped), adapter=read_adapter(Path(path).parent))
    return _with_adapter_beside(content)


def _with_adapter_beside(content: Content) -> Content:
    """Return `content`, saying that the adapter beside it, if there is one, will be merged into it."""
    if content.adapter:
        message = Message(
            "{} 旁边有适配器（PEFT、LoRA），将并入模型；这些权重若不是它的基础模型，或已经合并过，请把它移开",
            content.path,
        )
        warnings.warn(InputWarning(message), stacklevel=4)
    return content


def _read_folder(folder: Path, mapped: bool | None) -> Content:
    """What stands in a folder; where that is an adapter alone, the model that it was trained on, with it."""
    adapter, base = read_adapter(folder), model_of(folder)
    content = _read_model(base, mapped) if base.is_dir() else Content(base, read_checkpoint_file(base, mapped))
    content = replace(content, adapter=adapter)
    return _with_adapter_beside(content) if base == folder else content


def model_of(folder: Path) -> Path:
    """The folder itself; where it holds an adapter alone, the folder or file of the model that it was trained on."""
    return folder if not adapter_files(folder) or checkpoints_in(folder) else base_of(folder)


def _read_model(folder: Path, mapped: bool | None) -> Content:
    """A model of transformers, or the one checkpoint of a folder, with what its JSON files say as its config."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if {"text_config", "vision_config"} & set(config):
        return Content(folder, is_folder=True)
    is_open_clips = (folder / OPEN_CLIP_CONFIG).is_file()  # then a config.json is that of its text tower
    path = weights_or_checkpoint(folder) if is_open_clips else checkpoint_of(folder)
    checkpoint = _read_files(path, mapped)
    if not any(BACKBONE in key for key in split_checkpoint(checkpoint)[0]):
        if is_open_clips:
            return Content(path, checkpoint)
        if "model_type" in config:
            return Content(folder, is_folder=True)  # another model: said by name
    return Content(path, _with_config(checkpoint, folder))


def refuse_adapter_weights(weights: Mapping, path: Path) -> None:
    """CheckpointError where adapters stand among the weights that were read from `path`."""
    if adapter := first_adapter(weights):
        raise CheckpointError("{} 的权重中有没有合并的适配器（PEFT、LoRA）：{}；{}", path, adapter, MERGE_FIRST)


# what training leaves beside the weights: adapters, optimizers, schedulers, random states, arguments
NO_CHECKPOINT = re.compile(
    r"(?:optimizer|scheduler|lr_scheduler|scaler|sampler|dl_state_dict|random_states|rng_state|training_args"
    r"|custom_checkpoint|adapter_model)\w*\.\w+$|.*-\d+-of-\d+\.\w+$"
)
UNMERGED = {  # what shows a checkpoint in pieces -> what to do with them
    "zero_to_fp32.py": Message("；这里是 DeepSpeed 的分片，请先用 DeepSpeed 的 zero_to_fp32 合并"),
    ".metadata": Message("；这里是 FSDP 的分片，请先用 accelerate merge-weights 合并"),
    "pytorch_model_fsdp_0/.metadata": Message("；这里是 FSDP 的分片，请先用 accelerate merge-weights 合并"),
    "*-of-*.safetensors": Message("；权重的分片缺少索引 model.safetensors.index.json"),
    "*-of-*.bin": Message("；权重的分片缺少索引 pytorch_model.bin.index.json"),
}


def checkpoint_of(folder: Path) -> Path:
    """The one checkpoint file of a folder, or the index of its shards; InputError with the names where not one."""
    there = checkpoints_in(folder)
    if len(there) == 1:
        return folder / there[0]
    if there:
        raise InputError(
            "文件夹 {} 中有 {} 个检查点：{}；请写明是哪一个文件", folder, len(there), Joined("、", there[:5])
        )
    hint = next((hint for name, hint in UNMERGED.items() if any(folder.glob(name))), "")
    raise InputError("找不到检查点文件：{}（是文件夹，但其中没有 config.json 或检查点文件{}）", folder, hint)


def weights_or_checkpoint(folder: Path) -> Path:
    """The weights of a folder where libraries named all of its checkpoints: one model's; else `checkpoint_of` it."""
    there = checkpoints_in(folder)
    return weights_of(folder) if there and WEIGHTS.keys() >= {*there} else checkpoint_of(folder)


def checkpoints_in(folder: Path) -> list[str]:
    """The names of a folder's files that may be a checkpoint, those that libraries give first."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    there = [name for name in names if name in WEIGHTS]
    there += [name for name in names if name.lower().endswith(CHECKPOINT_SUFFIXES) and name not in WEIGHTS]
    return [name for name in there if not NO_CHECKPOINT.match(name)]


def _read_files(path: Path, mapped: bool | None = None) -> Mapping:
    """A checkpoint file, or the tensors of all files of an index."""
    if not is_index(path):
        return read_checkpoint_file(path, mapped)
    tensors, config = {}, {}
    for file, names in shards_of(path).items():
        shard = read_checkpoint_file(file, mapped)
        weights = split_checkpoint(shard)[0]
        missing = [name for name in names if name not in weights]
        if missing:
            raise CheckpointError("{} 中没有 {} 列出的 {}：文件不是一套的", file, path.name, first_names(missing))
        tensors.update({name: weights[name] for name in names})
        config.update(_config_of(shard))
    return {"state_dict": tensors, "config": config}


CONFIG_FILES = ("hparams.json", "args.json", "config.json")  # a later one counts


def _with_config(checkpoint: Mapping, folder: Path) -> MutableMapping:
    """A checkpoint with what the JSON files beside it say; its own config counts where both say something."""
    beside = {}
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            beside.update(read_json(folder / name))
    if not beside:
        return checkpoint
    own = _config_of(checkpoint)
    for name, value in beside.items():
        if isinstance(own.get(name), (int, float, str)) and own[name] != value:
            message = Message(
                "{} 中的 JSON 文件写着 {} {}，检查点写着 {}，按检查点处理", folder, name, str(value)[:40], own[name]
            )
            warnings.warn(InputWarning(message), stacklevel=5)
    return {**checkpoint, "config": {**beside, **own}}


def _config_of(checkpoint: Mapping) -> dict:
    """The config that a checkpoint holds as a mapping, a namespace or JSON; empty where there is none."""
    config = checkpoint.get("config")
    return dict(fields_of(parse_json(config) if isinstance(config, str) else config) or {})


class Request(NamedTuple):
    """What the user says of a model where it does not say so itself, and whether its text tower is wanted."""

    image_encoder: str | None = None
    text_encoder: str | None = None
    embed_dim: int | None = None
    img_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    text_tower: bool = True
    download: bool = False  # CLIP's vocabulary may be

    @property
    def text_folder(self) -> str | None:
        """The text encoder where that is a folder: then it says where the tokenizer's files are."""
        return self.text_encoder if os.path.isdir(self.text_encoder or "") else None

    def warn_of_unused(self) -> None:
        """A published model says of itself what it is: what the user says of its structure has no effect."""
        text_encoder = None if self.text_folder else self.text_encoder
        unused = {"image_encoder": self.image_encoder, "text_encoder": text_encoder, "embed_dim": self.embed_dim}
        unused |= {"mean": self.mean, "std": self.std}
        for name, value in unused.items():
            if value is not None:
                message = Message("{} {} 对这种模型不起作用：模型自己说明了它的结构", flag_of(name), value)
                warnings.warn(InputWarning(message), stacklevel=4)


def flag_of(name: str) -> str:
    """The flag of the command line that says this of a model."""
    return "--" + name.replace("_", "-")
