"""Tokenizers: of a folder of transformers, and CLIP's own, wherever it is found.

CLIP's byte-pair vocabulary is no part of a weight file. It is looked for in the folder that the user names, beside
the file, in the local cache of the model hub, in an installed openai/CLIP or open_clip, and last on the hub.
"""

import gzip
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..heavy import transformers
from ..weights.hub import as_input_error, hub_folder, local_folder, quiet

CLIP_REPOSITORY = "openai/clip-vit-base-patch32"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # of openai/CLIP and open_clip
BPE_PACKAGES = ("clip", "open_clip")
CONTEXT = 77


def find_clip_tokenizer(*folders: str | os.PathLike | None) -> Callable:
    """A function that loads CLIP's tokenizer, from the first of the places where it is; InputError where in none."""
    for folder in folders:
        if folder and (load := _loader(Path(folder))):
            return load
    cached = hub_folder(CLIP_REPOSITORY)
    for folder in (*([cached] if cached else []), *_package_folders()):
        if load := _loader(folder):
            return load
    try:
        return _loader(local_folder(CLIP_REPOSITORY, weights=False)) or _missing(folders)
    except InputError:
        return _missing(folders)


def _missing(folders):
    beside = "、".join(dict.fromkeys(str(folder) for folder in folders if folder)) or "检查点旁"
    raise InputError(
        f"找不到 CLIP 的分词器：请把 vocab.json 和 merges.txt（来自 {CLIP_REPOSITORY}）"
        f"或 {BPE_FILE}（来自 openai/CLIP）放进 {beside}，或用 --text-encoder 指定它们所在的文件夹"
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
    loader = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    with tempfile.TemporaryDirectory() as copy, quiet(), as_input_error(f"无法读取 {folder} 中 CLIP 的分词器"):
        for name in ("vocab.json", "merges.txt"):
            (Path(copy) / name).write_bytes((folder / name).read_bytes())
        return loader.from_pretrained(copy, model_max_length=CONTEXT)


def _from_openai(file: Path):
    """The same of OpenAI's list of merges, as simple_tokenizer.py of openai/CLIP reads it."""
    with as_input_error(f"无法读取 {file}"):
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


TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)


def tokenizer_of(folder: Path) -> Callable:
    """A function that loads the tokenizer of a folder; InputError at once where its files are missing."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        needed = "、".join(" 和 ".join(names) for names in TOKENIZERS)
        raise InputError(f"文件夹 {folder} 中没有分词器：需要以下文件之一：{needed}")

    def load():
        needed, installed = list(folder.glob("*.model")), importlib.util.find_spec("sentencepiece")
        hint = "；请先安装：pip install sentencepiece protobuf" if needed and not installed else ""
        with quiet(), as_input_error(f"无法读取 {folder} 中的分词器{hint}"):
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    return load
