"""CLIP's own text tower: where its tokenizer is found, and the tower in a checkpoint of our own format.

CLIP's byte-pair vocabulary is no part of a weight file. It is looked for in the folder that the user names, beside
the file, in the local cache of the model hub, in an installed openai/CLIP or open_clip, and last on the hub.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from .errors import InputError
from .pretrained import explained, hub_folder, local_folder, quiet
from .pretrained_towers import TextTower

HUB_NAME = "openai/clip-vit-base-patch32"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # of openai/CLIP and open_clip
BPE_PACKAGES = ("clip", "open_clip")
CONTEXT = 77


def find_clip_tokenizer(*folders: str | os.PathLike | None) -> Callable:
    """A function that loads CLIP's tokenizer, from the first of the places where it is; InputError where in none."""
    for folder in folders:
        if folder and (load := _loader(Path(folder))):
            return load
    cached = hub_folder(HUB_NAME)
    for folder in (*([cached] if cached else []), *_package_folders()):
        if load := _loader(folder):
            return load
    try:
        return _loader(local_folder(HUB_NAME, weights=False)) or _missing(folders)
    except InputError:
        return _missing(folders)


def _missing(folders):
    beside = "、".join(dict.fromkeys(str(folder) for folder in folders if folder)) or "检查点旁"
    raise InputError(
        f"找不到 CLIP 的分词器：请把 vocab.json 和 merges.txt（来自 {HUB_NAME}）或 {BPE_FILE}（来自 openai/CLIP）"
        f"放进 {beside}，或用 --text-encoder 指定它们所在的文件夹"
    )


def _package_folders() -> list[Path]:
    """Where openai/CLIP and open_clip are installed; neither is imported."""
    specs = (importlib.util.find_spec(name) for name in BPE_PACKAGES)
    return [Path(spec.origin).parent for spec in specs if spec and spec.origin]


def _loader(folder: Path) -> Callable | None:
    """A function that loads the tokenizer of a folder; None where there is none of CLIP's."""
    if all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return lambda: _from_bpe(folder)
    if (folder / BPE_FILE).is_file():
        return lambda: _from_openai(folder / BPE_FILE)
    return None


def _from_bpe(folder: Path):
    """CLIPTokenizer of the vocab.json and merges.txt in a folder; its other files say nothing that CLIP leaves open."""
    import transformers

    loader = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    with tempfile.TemporaryDirectory() as copy, quiet(), explained(f"无法读取 {folder} 中 CLIP 的分词器"):
        for name in ("vocab.json", "merges.txt"):
            (Path(copy) / name).write_bytes((folder / name).read_bytes())
        return loader.from_pretrained(copy, model_max_length=CONTEXT)


def _from_openai(file: Path):
    """The same of OpenAI's list of merges, as simple_tokenizer.py of openai/CLIP reads it."""
    with explained(f"无法读取 {file}"):
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {word: index for index, word in enumerate(words)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return _from_bpe(Path(folder))


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]


class ClipTextEncoder(TextTower):
    """CLIP's text transformer, its state at the end of the text, linear projection, L2 norm: [K, embed_dim].

    The text tower `clip:ViT-B/32` and the like of a checkpoint of our own. Sizes are those of `text_config`, in the
    names of CLIPTextConfig, else ViT-B/32's; `model_name` may be a folder with the tokenizer's files.
    """

    def __init__(self, model_name: str, embed_dim: int = 512, text_config: Mapping | None = None):
        from transformers import CLIPTextConfig, CLIPTextModel

        sizes = {key: value for key, value in (text_config or {}).items() if key != "model_type"}
        width, words = sizes.get("hidden_size", 512), sizes.get("vocab_size", 49408)
        usual = {"num_attention_heads": max(1, width // 64), "bos_token_id": words - 2, "eos_token_id": words - 1}
        backbone = CLIPTextModel(CLIPTextConfig(**{**usual, **sizes}))
        backbone = getattr(backbone, "text_model", backbone)  # transformers 4 wraps it
        folder = model_name if os.path.isdir(model_name) else None
        super().__init__(backbone, nn.Linear(width, embed_dim), lambda: find_clip_tokenizer(folder)())
        self.model_name = model_name
