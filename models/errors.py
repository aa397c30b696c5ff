"""What goes wrong, and how it is said. Free of heavy imports, so that a typo is answered at once."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable

from .messages import LANGUAGES, Joined, Message, as_message, current_language, in_language

# Controls (C0, DEL, C1), line and paragraph separators, halves of surrogate pairs, and what turns or hides letters
# without a sign of its own: bidi marks, zero-width characters, tags, fillers.
UNPRINTABLE = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
# Joiners are letters' own in Arabic, Persian, Indic scripts and emoji, and only between two of those.
_JOINED = "[\u0600-\u109f\u1780-\u17b3\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]"
_UNPRINTABLE = re.compile(f"[{UNPRINTABLE}](?<!{_JOINED}[\u200c\u200d](?={_JOINED}))")
LONGEST_MESSAGE = 2000  # characters


def _as_python(character: str) -> str:
    return ascii(character)[1:-1]


def escape_unprintable(text: str, escape: Callable[[str], str] = _as_python) -> str:
    """`text` with what is no visible character as Python writes it: `\\n`, `\\x1b`, `\\u202e`, `\\udcff`."""
    if text.isascii() and text.isprintable():  # most are: a tenth of the time
        return text
    return _UNPRINTABLE.sub(lambda match: escape(match[0]), text)


def shortened(text: str, limit: int) -> str:
    """`text`, its middle left out where it is longer than `limit`: both ends say what it is."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[len(text) - end :]}"


class OneLine(Exception):
    """An exception whose text is fit to be shown: one line, nothing in it that a terminal obeys.

    `template`, `values`: as for Message, or a Message alone. Its str is in the language in which it was raised.
    """

    def __init__(self, template: str | Message, *values):
        super().__init__(template, *values)
        self.lang = current_language()

    @property
    def message(self) -> Message:
        template, *values = self.args
        return Message(template, *values) if values else as_message(template)

    def in_language(self, lang: str) -> str:
        return shortened(escape_unprintable(self.message.in_language(lang)), LONGEST_MESSAGE)

    def __str__(self):
        return self.in_language(self.lang)


class InputError(OneLine, ValueError):
    """Something of the user's cannot be used; the message is one line: what, where, and what to try."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


class InputWarning(OneLine, UserWarning):
    """Something the user should know although the work went on; the command line prints it as one line."""


def closest(name, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `count` of `names` that are most like `name`, the likeliest first; upper and lower case are one."""
    return difflib.get_close_matches(str(name).lower(), names, count, cutoff)


def closest_hint(name, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> Message | str:
    """The closest names as the beginning of an advice, "" where none is like it."""
    close = closest(name, names, count, cutoff)
    return Message("最接近的是 {}；", Joined("、", close)) if close else ""


def check_at_least(flag: str, value: int | None, least: int) -> None:
    """InputError where a number is below its least value; None is no number."""
    if value is not None and value < least:
        raise InputError("{} 至少是 {}，收到 {}", flag, least, shortened(str(value), 40))


def check_at_most(flag: str, value: int | None, most: int) -> None:
    """InputError where a number is above what any machine has memory for; None is no number."""
    if value is not None and value > most:
        raise InputError("{} 至多是 {}，收到 {}", flag, most, shortened(str(value), 40))


def check_written(flag: str, value: str | Iterable[str] | None) -> None:
    """InputError where a path or a name is empty, or holds what no system takes in one; None is none."""
    for text in [value] if isinstance(value, str) else value or ():
        if not text.strip():
            raise InputError("{} 后面的值是空的", flag)
        if "\0" in text:
            raise InputError("{} 的值 {} 含有空字符，不能作路径或名称", flag, text)


def check_language(lang: str) -> str:
    """Return `lang`; InputError where it is none of LANGUAGES."""
    if lang not in LANGUAGES:
        raise InputError("没有语言 {!r}；可用：{}", lang, Joined("、", LANGUAGES))
    return lang


TARGET_INDEX = Message("目标文本索引")


def check_text_indices(indices: Iterable[int], count: int, name: str | Message = TARGET_INDEX) -> None:
    """InputError, with the range, where one of `indices` is none of `count` texts'."""
    for index in indices:
        if not 0 <= index < count:
            problem = "{} {} 超出范围：共 {} 个文本，可用 0 到 {}"
            raise InputError(problem, name, shortened(str(index), 40), count, count - 1)


def reason(error: BaseException, limit: int = LONGEST_MESSAGE) -> str | Message:
    """What an exception says, on one line; of another's exception `limit` characters."""
    if isinstance(error, OneLine):
        return error.message
    message = getattr(error, "strerror", None) or next(iter(error.args), None)
    if isinstance(message, Message):
        return message
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return escape_unprintable(shortened(text.split("\n")[0], limit))


def say(*lines, to=None) -> None:
    """Print each line, what is no visible character in it escaped; `to`: a stream, None for standard output."""
    for line in lines:
        print(escape_unprintable(str(line)), file=to)


def print_error(message) -> None:
    """One line on standard error."""
    shown = shortened(str(in_language(message, current_language())), LONGEST_MESSAGE)
    say(Message("错误: {}", shown), to=sys.stderr)


DEBUG = "CLIP_GRADCAM_DEBUG"  # an environment variable: show where an exception comes from


def unforeseen(error: Exception) -> Message | str:
    """What to say of an exception that is no InputError."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(r"out of memory|allocate", str(error))
    ):
        return Message("内存或显存不足；请减小 --img-size 或 --batch-size，或加 --cpu")
    if isinstance(error, OSError):  # a name longer than the file system takes, say
        return Message("{}：{}", reason(error), error.filename) if error.filename else reason(error)
    what = Message("{}：{}", type(error).__name__, shortened(str(reason(error)), 500))
    return Message("没有料到的错误 {}；请检查输入，或设环境变量 {}=1 再运行，把显示的全部内容报告给开发者", what, DEBUG)
