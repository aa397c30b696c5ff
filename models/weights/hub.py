"""Where a name leads: shipped folders, the user's folders, the local cache of the model hub, and the hub itself.

Nothing is downloaded but what `local_folder` is told to: a name that the user writes `hub:owner/name`, or with
`--download`. A name that comes out of a file is looked up here, and nowhere else.
"""

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError, reason
from ..heavy import huggingface_hub, transformers
from ..inputs import finite_number
from ..messages import Joined, Message

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED_TEXT_ENCODERS = {
    "bert-base-chinese": ASSETS / "bert-base-chinese",
    "google-bert/bert-base-chinese": ASSETS / "bert-base-chinese",
}
HUB = "hub:"  # in front of a name: download it


def text_encoder_source(name: str) -> str:
    """Where the encoder `name` lies: a shipped or local folder, else its name on the hub. InputError if no name.

    A folder of the training machine that is not here counts by its last part.
    """
    if not isinstance(name, str) or not name.isprintable() or len(name) > 1000:
        raise InputError("文本编码器的名称应是一行文字，读到的是 {!r}；请用 --text-encoder 指定", str(name)[:40])
    name = name.removeprefix(HUB)
    if not os.path.exists(name) and os.path.isabs(name):
        name = Path(name).name
    return str(SHIPPED_TEXT_ENCODERS.get(name, name))


def text_encoder_folder(name: str) -> Path:
    """The folder of the encoder `name`: shipped, local, or in the local cache of the hub. InputError if in none."""
    source = text_encoder_source(name)
    if os.path.isdir(source):
        return Path(source)
    if (cached := hub_folder(source)) is not None:
        return cached
    download = Message("，或用 --text-encoder {}{} 下载", HUB, source) if REPOSITORY.fullmatch(source) else ""
    raise InputError(
        "找不到文本编码器 {!r}：它不是含 config.json 和 vocab.txt 的本地文件夹，也不在模型库的本地缓存中；"
        "请用 --text-encoder 指定本地文件夹{}；内置的是 bert-base-chinese",
        name,
        download,
    )


def requested_text_encoder(name: str | None, download: bool) -> str | None:
    """The text encoder that the user names, without `hub:`; brought into the local cache where that is asked for."""
    if not name or os.path.isdir(name) or name in SHIPPED_TEXT_ENCODERS:
        return name
    bare = name.removeprefix(HUB)
    if bare != name or (download and REPOSITORY.fullmatch(bare)):
        local_folder(name, weights=False, download=True)
    return bare


def _hub_is_reachable() -> bool:
    """Whether the model hub's name resolves; without this, the hub's client retries for half a minute."""
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


# files that hold the weights, or their index -> all of them, as patterns; the first that is there counts
WEIGHTS = {
    "model.safetensors": ("model.safetensors",),
    "model.safetensors.index.json": ("model-*.safetensors",),
    "pytorch_model.bin": ("pytorch_model.bin",),
    "pytorch_model.bin.index.json": ("pytorch_model-*.bin",),
    "open_clip_model.safetensors": ("open_clip_model.safetensors",),
    "open_clip_pytorch_model.bin": ("open_clip_pytorch_model.bin",),
}
OPEN_CLIP_CONFIG = "open_clip_config.json"  # says of the weights of open_clip beside it what they leave open
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # of peft, beside a model or alone
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")

REPOSITORY = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar", ".pkl", ".zip")


def is_hub_name(path: str | os.PathLike) -> bool:
    """Whether `path` is no file or folder here but may be `owner/name` on the model hub, or is written `hub:...`."""
    path = os.fspath(path)
    if path.startswith(HUB):
        return True
    looks_so = path.count("/") == 1 and REPOSITORY.fullmatch(path)
    return bool(looks_so) and not path.lower().endswith(CHECKPOINT_SUFFIXES) and not os.path.exists(path)


def local_folder(source: str | os.PathLike, weights: bool = True, download: bool = False) -> Path:
    """The folder that a path or a hub name stands for: in the local cache, else downloaded if asked for.

    `download`, or `hub:` in front of the name, asks for it. Without `weights`, only the small files of a name are
    wanted. InputError where it is nowhere.
    """
    if os.path.isdir(source):
        return Path(source)
    name = str(source).removeprefix(HUB)
    if not REPOSITORY.fullmatch(name):
        raise InputError("{!r} 不是模型库中的名称；应写成 {}owner/name", name, HUB)
    if (cached := hub_folder(name)) is not None and (not weights or _first_of((*WEIGHTS, *ADAPTER_WEIGHTS), cached)):
        return cached
    if not download and name == str(source):
        raise InputError(
            "找不到 {}：没有这个文件或文件夹；若它是模型库中的名称，则不在本地缓存中，"
            "加 --download 或写成 {}{} 才会联网下载",
            name,
            HUB,
            name,
        )
    failure = Message("模型库无法连接")
    if _hub_is_reachable():
        try:
            return _download(name, weights)
        except Exception as error:  # what the hub's client raises differs with its version
            failure = Message("从模型库下载失败：{}", type(error).__name__)
    raise InputError("找不到模型 {}：不在模型库的本地缓存中，{}（可用环境变量 HF_ENDPOINT 指定镜像）", name, failure)


def hub_folder(name: str) -> Path | None:
    """Where the local cache keeps a repository of the model hub, whole or in part; None where it does not."""
    older = os.environ.get("TRANSFORMERS_CACHE")  # where an older transformers keeps it
    for cache in (None, older) if older else (None,):
        with contextlib.suppress(Exception):  # not there, or no name of a repository
            return Path(huggingface_hub.snapshot_download(name, cache_dir=cache, local_files_only=True))
    return None


def _download(name: str, weights: bool) -> Path:
    """Bring a repository into the cache: its weights in one format, its small files."""
    there = huggingface_hub.HfApi().list_repo_files(name)
    patterns = next((patterns for file, patterns in WEIGHTS.items() if weights and file in there), ())
    patterns += tuple(file for file in ADAPTER_WEIGHTS if weights and file in there)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*SMALL_FILES, *patterns]))


def _first_of(names, folder: Path) -> str | None:
    return next((name for name in names if (folder / name).is_file()), None)


def weights_of(folder: Path) -> Path:
    """The file of a folder that holds its weights, or their index; InputError where there is none."""
    first = _first_of(WEIGHTS, folder)
    if first is None:
        raise InputError("文件夹 {} 中没有权重：需要 {} 之一", folder, Joined("、", list(WEIGHTS)[:4]))
    return folder / first


def is_index(file: Path) -> bool:
    """Whether it lists the files of weights that are saved in several."""
    return file.name.endswith(".index.json")


def shards_of(index: Path) -> dict[Path, list[str]]:
    """The files that an index lists, all beside it, each with the names of its tensors.

    InputError where one is missing, or lies elsewhere by its name or by a link; in the hub's cache all files are links
    into the repository's `blobs`.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError("无法使用 {}：其中没有 weight_map（张量名到文件名的表）", index)
    folder, shards = index.parent, {}
    for tensor, name in sorted(names.items(), key=lambda item: item[1]):
        shards.setdefault(name, []).append(tensor)
    homes = [folder.resolve()] + ([folder.resolve().parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])
    outside = [name for name in shards if not _lies_in(folder, name, homes)]
    if outside:
        raise InputError("{} 列出的 {!r} 不在同一文件夹中，已拒绝", index, outside[0][:80])
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise InputError("文件夹 {} 的权重不完整：{} 列出的 {} 不在其中", folder, index.name, Joined("、", missing[:3]))
    return {folder / name: tensors for name, tensors in shards.items()}


def _lies_in(folder: Path, name: str, homes: list[Path]) -> bool:
    """Whether `name` is that of a file right in the folder, and what it links to lies in one of `homes`."""
    if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\:"):
        return False
    return Path(os.path.realpath(folder / name)).parent in homes  # `resolve` raises where links go round


CONFIG_BYTES, VOCABULARY_BYTES = 10_000_000, 100_000_000  # the most that a file of either kind is read of


def read_json(file: Path) -> dict:
    """A JSON object of at most 10 MB, every name in it once, its numbers finite; InputError for anything else."""
    try:
        if not file.is_file() or file.stat().st_size > CONFIG_BYTES:
            raise ValueError(Message("应是不超过 {} MB 的普通文件", CONFIG_BYTES // 10**6))
        text = file.read_text(encoding="utf-8-sig")
        hooks = {"parse_constant": finite_number, "parse_float": finite_number}
        content = json.loads(text, object_pairs_hook=_each_once, **hooks)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("无法读取 {}：{}；应是有效的 JSON 文件", file, reason(error, 100)) from error
    if not isinstance(content, dict):
        raise InputError("{} 应是一个 JSON 对象，读到的是 {}", file, type(content).__name__)
    return content


def _each_once(pairs: list[tuple]) -> dict:
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(Message("{!r} 出现了两次", name[:40]))
        content[name] = value
    return content


@contextlib.contextmanager
def as_input_error(what: Message):
    """Any exception of the libraries as an InputError of one line."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:  # what the libraries raise for a bad file is no one thing; Rust's panic is the base
        is_failure = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_failure or re.search("out of memory|allocate memory", str(error)):
            raise
        says = " ".join(str(error).split())[:200]
        raise InputError("{}：{}（{}）", what, says, type(error).__name__) from error


@contextlib.contextmanager
def quiet():
    """No progress bars and reports of transformers: what matters is said by us."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
