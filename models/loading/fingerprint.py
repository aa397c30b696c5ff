"""Which model it was: digits that stand for the content of a checkpoint or folder, whatever its name and place."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..towers.tokenizers import BPE_FILE
from ..weights.archives import open_archive, read_entry
from ..weights.hub import OPEN_CLIP_CONFIG, SMALL_FILES, WEIGHTS, is_index, local_folder, shards_of, weights_of
from .adapters import adapter_files
from .content import checkpoint_of, model_of

CHECKED_TENSORS = 8


def fingerprint(path: str | os.PathLike) -> str:
    """32 hexadecimal digits that stand for the content of a checkpoint, file or folder, and of what lies beside it."""
    model, beside = _model_and_beside(path)
    own = checkpoint_fingerprint(model) if os.path.isfile(model) else folder_fingerprint(model)
    if not beside:
        return own
    digest = hashlib.sha256(f"beside\0{own}\0".encode())
    _hash_files(beside, digest)
    return digest.hexdigest()[:32]


def model_files(path: str | os.PathLike) -> list[Path]:
    """The files that the model at a path is read from, and what lies beside it; InputError where they are not there."""
    model, beside = _model_and_beside(path)
    return sorted({*(folder_files(Path(model)) if os.path.isdir(model) else [Path(model)]), *beside})


def _model_and_beside(path: str | os.PathLike) -> tuple[str | os.PathLike, list[Path]]:
    """(the file or folder of a model, what of its place makes it another: an adapter, open_clip's settings of a file).

    `path`: also a name on the hub.
    """
    if os.path.isfile(path):
        return path, [*adapter_files(Path(path).parent), *_settings_beside(Path(path))]
    folder = local_folder(path)
    model = model_of(folder)
    return model, [*adapter_files(folder), *(_settings_beside(model) if model.is_file() else [])]


def _settings_beside(file: Path) -> list[Path]:
    """What open_clip says of a file's weights beside it."""
    settings = file.parent / OPEN_CLIP_CONFIG
    return [settings] if settings.is_file() else []


def folder_fingerprint(source: str | os.PathLike) -> str:
    """Of a folder or a name on the hub: weights, configuration and tokenizer count, not the place."""
    folder = local_folder(source)
    digest = hashlib.sha256(b"folder\0")
    _hash_files(folder_files(folder), digest)
    return digest.hexdigest()[:32]


def folder_files(folder: Path) -> set[Path]:
    """The files of a folder that its model is read from: the weights, all shards of them, and the small ones."""
    small = {file for pattern in SMALL_FILES for file in folder.glob(pattern) if file.is_file()}
    weights = weights_of(folder) if any((folder / name).is_file() for name in WEIGHTS) else checkpoint_of(folder)
    return {*small, weights, *(shards_of(weights) if is_index(weights) else ())}


def text_encoder_fingerprint(name: str | None) -> str | None:
    """Of a text encoder that the user names: of a folder its vocabulary and settings, not the place; else the name."""
    if not os.path.isdir(name or ""):
        return name
    digest = hashlib.sha256(b"text encoder\0")
    _hash_files(
        (file for pattern in (*SMALL_FILES, BPE_FILE) for file in Path(name).glob(pattern) if file.is_file()), digest
    )
    return digest.hexdigest()[:32]


def checkpoint_fingerprint(path: str | os.PathLike) -> str:
    """Of a checkpoint file. OSError where it cannot be read.

    A `.pth` since torch 1.6 is a zip, whose directory holds the size and the CRC-32 of every tensor: the
    tensors themselves are not read. Any other file, and a zip without real CRCs, is hashed whole.
    """
    try:
        with open_archive(Path(path)) as archive:
            content = _zip_content(archive)
    except OSError:
        raise
    except Exception:  # what zipfile raises for something else, or damaged, is no one thing
        content = None
    if content is not None:
        return hashlib.sha256(b"zip\0" + content).hexdigest()[:32]
    digest = hashlib.sha256(b"file\0")
    hash_file(path, digest)
    return digest.hexdigest()[:32]


def _hash_files(files: Iterable[Path], digest) -> None:
    """Put files into a digest: their names, in order, and what stands in them."""
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        hash_file(file, digest)


def hash_file(path: str | os.PathLike, digest) -> None:
    """Put the bytes of a file into a digest."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _zip_content(archive: zipfile.ZipFile) -> bytes | None:
    """What a torch zip's directory says of its tensors, and the pickle that arranges them; None if not to be trusted.

    After `torch.serialization.set_crc32_options(False)` every CRC stands as 0. Reading an entry checks its CRC:
    done for the pickle and a few of the smallest tensors. A zip without a pickle, or with two, is none of torch's.
    """
    entries = [entry for entry in archive.infolist() if entry.file_size]
    (pickled,) = (entry for entry in entries if _inner_name(entry) == "data.pkl")  # ValueError unless there is one
    if any(entry.CRC == 0 for entry in entries):
        return None
    tensors = (entry for entry in entries if _inner_name(entry).startswith("data/"))
    for entry in sorted(tensors, key=lambda entry: entry.file_size)[:CHECKED_TENSORS]:
        read_entry(archive, entry)  # BadArchive where the CRC is not that of the bytes
    directory = sorted((_inner_name(entry), entry.file_size, entry.CRC) for entry in archive.infolist())
    return json.dumps(directory).encode() + b"\0" + read_entry(archive, pickled)


def _inner_name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry without the folder that torch names after the file."""
    return entry.filename.partition("/")[2]
