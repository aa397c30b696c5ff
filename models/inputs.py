"""What is read must be a file that ends: at a pipe or a device the command would wait, or read for ever."""

import math
import os
import stat

from .errors import InputError
from .messages import Message

_KINDS = {
    stat.S_IFDIR: Message("文件夹"),
    stat.S_IFIFO: Message("管道"),
    stat.S_IFSOCK: Message("套接字"),
    stat.S_IFCHR: Message("设备"),
    stat.S_IFBLK: Message("设备"),
}


def check_regular_file(path: str | os.PathLike, problem: Message) -> None:
    """InputError where `path` exists and is no regular file, before it is opened. `problem`: what cannot be read."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # opening says it
        return
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), Message("特殊文件"))
        raise InputError("{}：这是{}，不是普通文件；请给出文件的路径", problem, kind)


def finite_number(text: str) -> float:
    """A number of a JSON file, NaN and Infinity included; ValueError where it is not finite: 1e999 is none either."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(Message("{} 不是有限的数", text[:40]))
    return number
