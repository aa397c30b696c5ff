"""The class texts that an image is held against."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from .errors import InputError, check_text_indices, closest_hint, reason, shortened
from .inputs import check_regular_file
from .messages import Message

LARGEST_FILE = 10 << 20  # bytes
MOST_TEXTS = 1000  # each is a backward pass, a map and a column of the tables
LONGEST_TEXT = 10_000  # characters: text encoders read some hundred


def _object_of_strings(path):
    """A hook for json.load: an object as a dict, InputError where a key stands twice."""

    def build(pairs):
        texts = dict(pairs)
        if len(texts) < len(pairs):
            names = set()
            twice = next(key for key, _ in pairs if key in names or names.add(key))
            raise InputError("类别文本文件 {} 中类别 {} 出现了两次", path, _shown(twice))
        return texts

    return build


def _shown(value) -> str:
    return shortened(repr(value), 100)


def read_class_texts(path: str | os.PathLike) -> dict[str, str]:
    """Read {short name: description} from a JSON file (UTF-8, with or without BOM) of at most 10 MB.

    Raises InputError where the file is missing or no regular file, too large, no JSON (with line and column), no object
    of strings, empty, or has a key twice.
    """
    check_regular_file(path, Message("无法读取类别文本文件 {}", path))
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise InputError("类别文本文件 {} 超过 {} MB：它应只含类别的短名和描述", path, LARGEST_FILE >> 20)
        texts = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object_of_strings(path))
    except UnicodeDecodeError as error:
        raise InputError("类别文本文件 {} 不是 UTF-8 编码，请另存为 UTF-8", path) from error
    except InputError:
        raise
    except OSError as error:
        raise InputError("无法读取类别文本文件 {}：{}", path, reason(error)) from error
    except json.JSONDecodeError as error:
        raise InputError(
            "类别文本文件 {} 不是合法的 JSON：第 {} 行第 {} 列，{}", path, error.lineno, error.colno, error.msg
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep; a NUL
        raise InputError("类别文本文件 {} 不是合法的 JSON：{}", path, reason(error)) from error
    if not isinstance(texts, dict):
        raise InputError('类别文本文件 {} 应是 {{"类别": "描述"}} 形式的对象，读到的是 {}', path, type(texts).__name__)
    if not texts:
        raise InputError("类别文本文件 {} 中没有类别", path)
    for name, description in texts.items():
        if not isinstance(description, str) or not description.strip():
            raise InputError(
                "类别文本文件 {} 中 {} 的描述应是非空的字符串，读到的是 {}", path, _shown(name), _shown(description)
            )
    return texts


def names_and_texts(class_texts: Mapping[str, str] | Sequence[str]) -> tuple[list[str], list[str]]:
    """(short names, texts for the model) of a list of texts or of the JSON file's dict; InputError where it is none."""
    if isinstance(class_texts, str):
        class_texts = [class_texts]
    if not isinstance(class_texts, Iterable):
        raise InputError("类别文本应是文本的列表，或 {{短名: 描述}} 的字典，收到 {}", type(class_texts).__name__)
    pairs = class_texts.items() if isinstance(class_texts, Mapping) else [(text, text) for text in class_texts]
    names, texts = zip(*pairs) if pairs else ((), ())
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError("类别文本不能为空：请给出至少一个非空的文本")
    if len(texts) > MOST_TEXTS:
        raise InputError("类别文本有 {} 个，至多 {} 个：请分几次运行", len(texts), MOST_TEXTS)
    for text in (*names, *texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError("类别的短名应是非空的字符串，收到 {}", _shown(text))
        if len(text) > LONGEST_TEXT:
            raise InputError("类别文本 {} 有 {} 个字符，至多 {} 个：请缩短", _shown(text), len(text), LONGEST_TEXT)
        if re.search("[\ud800-\udfff]", text):
            raise InputError("类别文本 {} 含有无效的字符（残缺的编码），请检查终端或文件的编码", _shown(text))
    return list(names), list(texts)


def text_indices(values: Sequence[str], names: Sequence[str], flag: str) -> list[int]:
    """Indices of texts, each written as a number from 0 on or as a short name; InputError where one is neither."""
    indices = []
    for value in values:
        if re.fullmatch(r"-?\d+", value, re.ASCII):
            indices.append(int(value[:50]))  # of more digits: out of range as it is
        elif value in names:
            indices.append(names.index(value))
        else:
            hint = closest_hint(value, names)
            raise InputError(
                "{} {} 不是索引，也不是类别的短名；{}可用 0 到 {} 或短名", flag, _shown(value), hint, len(names) - 1
            )
    check_text_indices(indices, len(names), flag)
    return indices
