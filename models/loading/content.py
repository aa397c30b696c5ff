"""What stands at a path, read once, and what the user says of it: all that a reader is given."""

import os
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputWarning
from ..weights.files import read_checkpoint_file
from ..weights.hub import is_pretrained, local_folder, weight_files


class Content(NamedTuple):
    """A checkpoint and the file that it was read from; or a folder of transformers, which reads its files itself."""

    path: Path
    checkpoint: MutableMapping | None = None
    is_folder: bool = False


def read_content(path: str | os.PathLike, mapped: bool | None = None) -> Content:
    """What stands in a file, a folder or a repository of the model hub; `mapped`: see `read_torch_file`.

    InputError where there is nothing, or nothing that can be read.
    """
    if not os.path.isfile(path) and is_pretrained(path):
        folder = local_folder(path)
        if (folder / "config.json").is_file():
            return Content(folder, is_folder=True)
        path = weight_files(folder)[0]  # of open_clip, beside its open_clip_config.json
    return Content(Path(path), read_checkpoint_file(path, mapped))


class Request(NamedTuple):
    """What the user says of a model where it does not say so itself, and whether its text tower is wanted."""

    image_encoder: str | None = None
    text_encoder: str | None = None
    embed_dim: int | None = None
    img_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    text_tower: bool = True

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
                message = f"{flag_of(name)} {value} 对这种模型不起作用：模型自己说明了它的结构"
                warnings.warn(message, InputWarning, stacklevel=4)


def flag_of(name: str) -> str:
    """The flag of the command line that says this of a model."""
    return "--" + name.replace("_", "-")
