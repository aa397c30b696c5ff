"""Where a name leads: shipped folders, the user's folders, the local cache of the model hub, and the hub itself."""

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError, reason
from ..heavy import huggingface_hub, transformers

ASSETS = Path(__file__).resolve().parent.parent / "assets"
SHIPPED_TEXT_ENCODERS = {
    "bert-base-chinese": ASSETS / "bert-base-chinese",
    "google-bert/bert-base-chinese": ASSETS / "bert-base-chinese",
}


def text_encoder_source(name: str) -> str:
    """Where transformers finds the encoder `name`: a shipped or local folder, else the (hub) name itself.

    A folder of the training machine that is not here counts by its last part.
    """
    if not Path(name).exists() and Path(name).is_absolute():
        name = Path(name).name
    return str(SHIPPED_TEXT_ENCODERS.get(name, name))


def from_pretrained(loader, name: str):
    """Call a transformers `from_pretrained` on a folder or hub name: the local cache first, then the hub."""
    source = text_encoder_source(name)
    try:
        try:
            return loader.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError):
            if Path(source).exists() or not _hub_is_reachable():
                raise
            return loader.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"找不到文本编码器 {name!r}：它不是含 config.json 和 vocab.txt 的本地文件夹，不在本地缓存中，"
            "也无法从模型库下载"
            f"（可用环境变量 HF_ENDPOINT 指定镜像）；内置的是 bert-base-chinese（{type(error).__name__}）"
        ) from error


def _hub_is_reachable() -> bool:
    """Whether the model hub's name resolves; without this, the hub's client retries for half a minute."""
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


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
    name, failure = str(source), "模型库无法连接"
    if (cached := hub_folder(name)) is not None and (not weights or _first_of(WEIGHTS, cached)):
        return cached
    if _hub_is_reachable():
        try:
            return _download(name, weights)
        except Exception as error:  # what the hub's client raises differs with its version
            failure = f"从模型库下载失败：{type(error).__name__}"
    raise InputError(
        f"找不到模型 {name}：它不是本地的检查点文件或含 config.json 的文件夹；"
        f"作为模型库的名称，不在本地缓存中，{failure}（可用环境变量 HF_ENDPOINT 指定镜像）"
    )


def hub_folder(name: str) -> Path | None:
    """Where the local cache keeps a repository of the model hub, whole or in part; None where it does not."""
    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # not there, or no name of a repository
        return None


def _download(name: str, weights: bool) -> Path:
    """Bring a repository into the cache: its weights in one format, its small files."""
    there = huggingface_hub.HfApi().list_repo_files(name)
    patterns = next((patterns for file, patterns in WEIGHTS.items() if weights and file in there), ())
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*SMALL_FILES, *patterns]))


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


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"无法读取 {file}：不是有效的 JSON（{reason(error)}）") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} 应是一个 JSON 对象，读到的是 {type(content).__name__}")
    return content


@contextlib.contextmanager
def as_input_error(what: str):
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
