"""What goes wrong on the user's side. Free of heavy imports, so that a typo is answered at once."""

import difflib
import sys
from collections.abc import Iterable


class InputError(ValueError):
    """Something of the user's cannot be used; the message is one line: what, where, and what to try."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


class InputWarning(UserWarning):
    """Something the user should know although the work went on; the command line prints it as one line."""


def closest(name, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `count` of `names` that are most like `name`, the likeliest first; upper and lower case are one."""
    return difflib.get_close_matches(str(name).lower(), names, count, cutoff)


def closest_hint(name, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> str:
    """The closest names as the beginning of an advice, "" where none is like it."""
    close = closest(name, names, count, cutoff)
    return f"最接近的是 {'、'.join(close)}；" if close else ""


def check_at_least(flag: str, value: int | None, least: int) -> None:
    """InputError where a number is below its least value; None is no number."""
    if value is not None and value < least:
        raise InputError(f"{flag} 至少是 {least}，收到 {value}")


def check_text_indices(indices: Iterable[int], count: int, name: str = "目标文本索引") -> None:
    """InputError, with the range, where one of `indices` is none of `count` texts'."""
    for index in indices:
        if not 0 <= index < count:
            raise InputError(f"{name} {index} 超出范围：共 {count} 个文本，可用 0 到 {count - 1}")


def reason(error: Exception) -> str:
    """What an exception says, on one line."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).split("\n")[0]


def print_error(message) -> None:
    """One line on standard error."""
    print(f"错误: {' '.join(str(message).split())}", file=sys.stderr)
