"""The class texts that an image is held against: a class has a short name, and one description or several.

    names, texts = names_and_texts({"正常": "关节正常", "松动": ["可见透亮线", "假体移位"]}, ["一张{}的X光片"])
    # ["正常", "松动"], ["一张关节正常的X光片", ("一张可见透亮线的X光片", "一张假体移位的X光片")]

A class of one description is that string, a class of several the tuple of them; `descriptions_of` makes both one.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from .errors import InputError, check_text_indices, closest_hint, reason, shortened
from .inputs import check_regular_file
from .messages import Message

ClassText = str | Sequence[str]  # a class's one description, or its several
HOLE = "{}"  # of a template, where the description goes

LARGEST_FILE = 10 << 20  # bytes
MOST_TEXTS = 1000  # each is a backward pass, a map and a column of the tables
LONGEST_TEXT = 10_000  # characters: text encoders read some hundred
MOST_DESCRIPTIONS = 10_000  # of all classes, in all templates: each is a forward pass of the text encoder
MOST_CHARACTERS = 5_000_000  # of all of them: they stand in each run's settings


def _object_of_texts(path):
    """A hook for json.loads: an object as a dict, InputError where a key stands twice."""

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


def read_class_texts(path: str | os.PathLike) -> dict[str, str | list[str]]:
    """Read {short name: description, or a list of them} from a JSON file (UTF-8, with or without BOM), at most 10 MB.

    Raises InputError where the file is missing or no regular file, too large, no JSON (with line and column), no object
    of strings and lists of strings, empty, or has a key twice.
    """
    check_regular_file(path, Message("无法读取类别文本文件 {}", path))
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise InputError("类别文本文件 {} 超过 {} MB：它应只含类别的短名和描述", path, LARGEST_FILE >> 20)
        texts = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object_of_texts(path))
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
    for name, text in texts.items():
        descriptions = text if isinstance(text, list) and text else [text]
        for number, description in enumerate(descriptions, 1):
            if not _is_written(description):
                place = _place(name, descriptions, number)
                raise InputError("类别文本文件 {} 中{}应是非空的字符串，读到的是 {}", path, place, _shown(description))
    return texts


def descriptions_of(text: ClassText) -> tuple[str, ...]:
    """The descriptions of a class, whether it has one or several."""
    return (text,) if isinstance(text, str) else tuple(text)


def names_and_texts(
    class_texts: Mapping[str, ClassText] | Sequence[ClassText], templates: str | Sequence[str] = ()
) -> tuple[list[str], list[str | tuple[str, ...]]]:
    """(short names, texts for the model) of a list of texts or of the JSON file's dict; InputError where it is none.

    A class without a name is called by its first description. Each description is put into each of the `templates`,
    which have one hole `{}`; the name stays as it is. A text is a string, or the tuple of a class's several.
    """
    if isinstance(class_texts, str):
        class_texts = [class_texts]
    if not isinstance(class_texts, Iterable):
        raise InputError("类别文本应是文本的列表，或 {{短名: 描述}} 的字典，收到 {}", type(class_texts).__name__)
    pairs = class_texts.items() if isinstance(class_texts, Mapping) else ((None, text) for text in class_texts)
    pairs = [(name, list(text) if isinstance(text, (list, tuple)) else [text]) for name, text in pairs]
    if not pairs:
        raise InputError("类别文本不能为空：请给出至少一个非空的文本")
    if len(pairs) > MOST_TEXTS:
        raise InputError("类别文本有 {} 个，至多 {} 个：请分几次运行", len(pairs), MOST_TEXTS)
    if isinstance(class_texts, Mapping):
        for name, _ in pairs:
            _check_name(name)
    templates = check_templates(templates)
    _check_total([descriptions for _, descriptions in pairs], templates)
    texts = [_in_templates(*pair, templates) for pair in pairs]
    names = [descriptions[0] if name is None else name for name, descriptions in pairs]
    return names, [of_class[0] if len(of_class) == 1 else of_class for of_class in texts]


def check_templates(templates: str | Sequence[str]) -> list[str]:
    """One template or several as a list; InputError where one is no text with exactly one hole, or stands twice."""
    templates = [templates] if isinstance(templates, str) else templates
    if not isinstance(templates, (list, tuple)):
        raise InputError("文本模板应是文本，或文本的列表，收到 {}", type(templates).__name__)
    for number, template in enumerate(templates):
        if not isinstance(template, str) or template.count(HOLE) != 1:
            raise InputError(
                "文本模板（--text-template）应恰好有一个 {{}}，描述写在那里，例如 一张{{}}的X光片；收到 {}",
                _shown(template),
            )
        if template in templates[:number]:
            raise InputError("文本模板 {} 出现了两次：请只写一次", _shown(template))
    return list(templates)


def _check_name(name) -> None:
    if not _is_written(name):
        raise InputError("类别的短名应是非空的字符串，收到 {}", _shown(name))
    _check_letters(name, Message("类别文本 {}", _shown(name)))


def _in_templates(name: str | None, descriptions: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
    """The descriptions of a class, each in each template; InputError where one is no text, or stands twice."""
    texts: dict[str, None] = {}
    for number, description in enumerate(descriptions, 1):
        place = _place(name, descriptions, number)
        if not _is_written(description):
            if name is None and len(descriptions) == 1:
                raise InputError("类别文本不能为空：请给出至少一个非空的文本")
            raise InputError("{}应是非空的字符串，收到 {}", place, _shown(description))
        for template in templates or (HOLE,):
            text = description.join(template.split(HOLE))
            _check_letters(text, place)
            if text in texts:
                raise InputError("{}与它前面的一个相同：请只写一次", place)
            texts[text] = None
    if not texts:
        raise InputError("类别 {} 没有描述", _shown(name) if name is not None else "[]")
    return tuple(texts)


def _is_written(text) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _place(name: str | None, descriptions: Sequence, number: int) -> Message:
    """Where a description stands: its class, and which of several it is."""
    if name is None and len(descriptions) == 1:
        return Message("类别文本 {}", _shown(descriptions[0]))
    name = _shown(descriptions[0] if name is None else name)
    if len(descriptions) == 1:
        return Message("类别 {} 的描述", name)
    return Message("类别 {} 的第 {} 个描述", name, number)


def _check_letters(text: str, place: Message) -> None:
    if len(text) > LONGEST_TEXT:
        raise InputError("{}有 {} 个字符，至多 {} 个：请缩短", place, len(text), LONGEST_TEXT)
    if re.search("[\ud800-\udfff]", text):
        raise InputError("{}含有无效的字符（残缺的编码），请检查终端或文件的编码", place)


def _check_total(classes: Sequence[Sequence[str]], templates: Sequence[str]) -> None:
    """InputError where all descriptions in all templates together take too long, or too much room."""
    descriptions = [description for of_class in classes for description in of_class if isinstance(description, str)]
    count, length = len(descriptions) * max(1, len(templates)), sum(map(len, descriptions))
    if count > MOST_DESCRIPTIONS:
        raise InputError(
            "各类别的描述（乘以模板数）共 {} 段，至多 {} 段：每段都要经过文本编码器；请减少描述或模板",
            count,
            MOST_DESCRIPTIONS,
        )
    length = max(1, len(templates)) * length + len(descriptions) * sum(map(len, templates))
    if length > MOST_CHARACTERS:
        raise InputError("各类别的描述共 {} 个字符，至多 {} 个：请缩短，或减少描述或模板", length, MOST_CHARACTERS)


def same_texts(texts: Sequence[ClassText]) -> tuple[int, int] | None:
    """The first two classes whose descriptions are the same, in whatever order; None where all differ."""
    first = {}
    for index, text in enumerate(texts):
        if (earlier := first.setdefault(frozenset(descriptions_of(text)), index)) != index:
            return earlier, index
    return None


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
