"""The class texts that an image is held against."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import InputError, reason


def _object_of_strings(path):
    """A hook for json.load: an object as a dict, InputError where a key stands twice."""

    def build(pairs):
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InputError(f"类别文本文件 {path} 中类别 {twice!r} 出现了两次")
        return dict(pairs)

    return build


def read_class_texts(path: str | os.PathLike) -> dict[str, str]:
    """Read {short name: description} from a JSON file (UTF-8, with or without BOM).

    Raises InputError where the file is missing, no JSON (with line and column), no object of strings,
    empty, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        texts = json.loads(text, object_pairs_hook=_object_of_strings(path))
    except UnicodeDecodeError as error:
        raise InputError(f"类别文本文件 {path} 不是 UTF-8 编码，请另存为 UTF-8") from error
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"无法读取类别文本文件 {path}：{reason(error)}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"类别文本文件 {path} 不是合法的 JSON：第 {error.lineno} 行第 {error.colno} 列，{error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise InputError(f"类别文本文件 {path} 不是合法的 JSON：{reason(error)}") from error
    if not isinstance(texts, dict):
        raise InputError(f'类别文本文件 {path} 应是 {{"类别": "描述"}} 形式的对象，读到的是 {type(texts).__name__}')
    if not texts:
        raise InputError(f"类别文本文件 {path} 中没有类别")
    for name, description in texts.items():
        if not isinstance(description, str) or not description.strip():
            raise InputError(f"类别文本文件 {path} 中 {name!r} 的描述应是非空的字符串，读到的是 {description!r}")
    return texts


def names_and_texts(class_texts: Mapping[str, str] | Sequence[str]) -> tuple[list[str], list[str]]:
    """(short names, texts for the model) of a list of texts or of the JSON file's dict."""
    if isinstance(class_texts, str):
        class_texts = [class_texts]
    pairs = class_texts.items() if isinstance(class_texts, Mapping) else [(text, text) for text in class_texts]
    names, texts = zip(*pairs) if pairs else ((), ())
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError("类别文本不能为空：请给出至少一个非空的文本")
    broken = next((text for text in (*names, *texts) if re.search("[\ud800-\udfff]", text)), None)
    if broken is not None:
        raise InputError(f"类别文本 {broken!r} 含有无效的字符（残缺的编码），请检查终端或文件的编码")
    return list(names), list(texts)
