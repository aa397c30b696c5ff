"""Tokenizers: of a folder of transformers, and CLIP's own, wherever it is found.

CLIP's byte-pair vocabulary is no part of a weight file. It is looked for in the folder that the user names, beside
the file, in the local cache of the model hub, in an installed openai/CLIP or open_clip, and last, if the user asks for
downloads, on the hub. Transformers is given a copy of a folder that holds vocabularies and plain settings only.
"""

import gzip
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..heavy import transformers
from ..messages import Joined, Message
from ..weights.hub import VOCABULARY_BYTES, as_input_error, hub_folder, local_folder, quiet, read_json

CLIP_REPOSITORY = "openai/clip-vit-base-patch32"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"  # of openai/CLIP and open_clip
BPE_PACKAGES = ("clip", "open_clip")


class TokenizerFiles(NamedTuple):
    """A tokenizer that is not loaded yet: called, it is made of the files, which nothing but them has a part in."""

    kind: str  # how the files are read
    files: tuple[Path, ...]
    load: Callable

    def __call__(self):
        return self.load()


def find_clip_tokenizer(*folders: str | os.PathLike | None, download: bool = False) -> TokenizerFiles:
    """CLIP's tokenizer, from the first of the places where it is; InputError where in none.

    `download`: the last of the places is the model hub.
    """
    for folder in folders:
        if folder and (tokenizer := _clip_tokenizer_in(Path(folder))):
            return tokenizer
    cached = hub_folder(CLIP_REPOSITORY)
    for folder in (*([cached] if cached else []), *_package_folders()):
        if tokenizer := _clip_tokenizer_in(folder):
            return tokenizer
    try:
        return _clip_tokenizer_in(local_folder(CLIP_REPOSITORY, weights=False, download=download)) or _missing(folders)
    except InputError:
        return _missing(folders)


def _missing(folders):
    beside = Joined("、", dict.fromkeys(str(folder) for folder in folders if folder)) or Message("检查点旁")
    raise InputError(
        "找不到 CLIP 的分词器：请把 vocab.json 和 merges.txt（来自 {}）或 {}（来自 openai/CLIP）放进 {}，"
        "或用 --text-encoder 指定它们所在的文件夹，或用 --download 下载",
        CLIP_REPOSITORY,
        BPE_FILE,
        beside,
    )


def _package_folders() -> list[Path]:
    """Where openai/CLIP and open_clip are installed; neither is imported."""
    specs = (importlib.util.find_spec(name) for name in BPE_PACKAGES)
    return [Path(spec.origin).parent for spec in specs if spec and spec.origin]


def _clip_tokenizer_in(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of a folder; None where there is none of CLIP's."""
    files = tuple(folder / name for name in ("vocab.json", "merges.txt"))
    if all(file.is_file() for file in files):
        return TokenizerFiles("clip", files, lambda: _from_bpe(folder))
    if (folder / BPE_FILE).is_file():
        return TokenizerFiles("clip, packed", (folder / BPE_FILE,), lambda: _from_openai(folder / BPE_FILE))
    return None


def _from_bpe(folder: Path):
    """CLIPTokenizer of the vocab.json and merges.txt in a folder; its other files say nothing that CLIP leaves open.

    How long a text may be is said by the model's position codes: 77 of them in most, 248 in Long-CLIP.
    """
    loader = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    with (
        tempfile.TemporaryDirectory() as copy,
        quiet(),
        as_input_error(Message("无法读取 {} 中 CLIP 的分词器", folder)),
    ):
        for name in ("vocab.json", "merges.txt"):
            _link(folder / name, Path(copy))
        return loader.from_pretrained(copy, local_files_only=True)


def _from_openai(file: Path):
    """The same of OpenAI's list of merges, as simple_tokenizer.py of openai/CLIP reads it."""
    with as_input_error(Message("无法读取 {}", file)), gzip.open(file) as packed:
        lines = packed.read(VOCABULARY_BYTES).decode("utf-8").split("\n")
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


# their sizes are checked and nothing else; beside them settings, which are read and written anew
VOCABULARIES = {name for names in TOKENIZERS for name in names}
SETTINGS_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKEN_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SETTINGS = {
    *(f"{name}_token" for name in TOKEN_NAMES),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "tokenizer_class"),
    *("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces"),
    *("do_lower_case", "do_basic_tokenize", "never_split", "tokenize_chinese_chars", "strip_accents"),
    *("add_prefix_space", "trim_offsets", "errors", "split_special_tokens", "use_regex"),
    *("add_bos_token", "add_eos_token", "legacy", "keep_accents", "remove_space", "extra_ids", "canonicalize"),
}
CLASSES = re.compile(
    r"(?:CLIP|Bert|DistilBert|Electra|MPNet|Roberta|XLMRoberta|Camembert|Albert|DebertaV2|T5|Siglip2?|Gemma|GPT2|Llama)"
    r"Tokenizer(?:Fast)?|PreTrainedTokenizer(?:Fast)?|TokenizersBackend|SentencePieceBackend"
)


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer lie in a folder."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZERS)


def tokenizer_of(folder: Path) -> TokenizerFiles:
    """The tokenizer of a folder; InputError at once where its files are missing."""
    if not has_tokenizer(folder):
        needed = Joined("、", (Joined(" 和 ", names) for names in TOKENIZERS))
        raise InputError("文件夹 {} 中没有分词器：需要以下文件之一：{}", folder, needed)
    files = tuple(folder / name for name in sorted({*VOCABULARIES, *SETTINGS_FILES}) if (folder / name).is_file())
    return TokenizerFiles("transformers", files, lambda: load_tokenizer(folder))


def load_tokenizer(folder: Path, name: str = "AutoTokenizer"):
    """The tokenizer that transformers makes, by the class `name`, of a folder's vocabulary and plain settings.

    InputError where it needs code of its own, or where the files are damaged or too large.
    """
    needed, installed = list(folder.glob("*.model")), importlib.util.find_spec("sentencepiece")
    hint = Message("；请先安装：pip install sentencepiece protobuf") if needed and not installed else ""
    settings = _plain_settings(folder)
    with (
        tempfile.TemporaryDirectory() as copy,
        quiet(),
        as_input_error(Message("无法读取 {} 中的分词器{}", folder, hint)),
    ):
        for file in VOCABULARIES:
            if (folder / file).is_file():
                _link(folder / file, Path(copy))
        for file, content in settings.items():
            Path(copy, file).write_text(json.dumps(content), encoding="utf-8")
        loader, options = getattr(transformers, name), {"local_files_only": True}
        if name == "AutoTokenizer":
            options["trust_remote_code"] = False
        return loader.from_pretrained(copy, **options)


def _plain_settings(folder: Path) -> dict[str, dict]:
    """File name -> what it says that is plain: config.json's type of model, the tokenizer's settings and tokens."""
    read = {name: read_json(folder / name) for name in SETTINGS_FILES if (folder / name).is_file()}
    config, own = read.get("config.json", {}), read.get("tokenizer_config.json", {})
    kinds = {key: config[key] for key in ("model_type", "tokenizer_class") if isinstance(config.get(key), str)}
    for settings in (kinds, own):
        kind = settings.get("tokenizer_class")
        if kind is not None and not (isinstance(kind, str) and CLASSES.fullmatch(kind)):
            raise InputError("{} 的分词器类 {} 不受支持：可能需要运行文件夹自带的代码，已拒绝", folder, str(kind)[:60])
    length = own.get("model_max_length")
    if length is not None and (type(length) not in (int, float) or not length >= 1):
        raise InputError("{} 的 model_max_length 是 {}，应是正整数", folder / "tokenizer_config.json", str(length)[:40])
    plain = {name: {k: _plain(v) for k, v in content.items() if k in SETTINGS} for name, content in read.items()}
    if "added_tokens.json" in read:
        plain["added_tokens.json"] = {k: v for k, v in read["added_tokens.json"].items() if type(v) is int}
    return {**plain, "config.json": kinds}


TOKEN_FIELDS = {"content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"}


def _plain(value):
    """A setting with tokens as objects of their own fields only, however deep."""
    if isinstance(value, dict):
        is_token = "content" in value
        return {key: _plain(inner) for key, inner in value.items() if not is_token or key in TOKEN_FIELDS}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _link(file: Path, folder: Path) -> None:
    """Put a file of at most 100 MB into a folder without copying it, where the system allows; InputError if larger."""
    if file.stat().st_size > VOCABULARY_BYTES:
        raise InputError("{} 大于 {} MB，不是词表", file, VOCABULARY_BYTES // 10**6)
    try:
        (folder / file.name).symlink_to(file.resolve())
    except OSError:
        shutil.copyfile(file, folder / file.name)
