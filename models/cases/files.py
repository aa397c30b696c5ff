"""Files of strangers: whole within a limit, as text, as JSON; and read once where many cases share one."""

import codecs
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from ..errors import InputError, reason

LARGEST_JSON = 256 << 20  # bytes: LabelMe may put the image into its file
MOST_BRACKETS, MOST_COMMAS = 4_000_000, 30_000_000  # of a JSON file: each list, object and number takes memory
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_within(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file; InputError, not naming it, where it cannot be read or has more than `limit`."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError("文件超过 {} MB，请分成几个文件", limit >> 20)
            return file.read(size)
    except OSError as error:
        raise InputError("无法读取（{}）", reason(error)) from error


def as_text(data: bytes) -> str:
    """Bytes as UTF-16 where a mark says so, else UTF-8 with or without one, else GB18030; InputError for others."""
    encodings = ("utf-16",) if data.startswith(_UTF_16) else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError("编码不是 UTF-8、带 BOM 的 UTF-16 或 GB18030，请另存为 UTF-8")


def parse_json(data: bytes):
    """What a JSON file holds; InputError where it is no JSON, or holds more than there should be memory for."""
    if data.count(b"[") + data.count(b"{") > MOST_BRACKETS or data.count(b",") > MOST_COMMAS:
        raise InputError("内容过多（列表和对象至多 {} 个，逗号至多 {} 个），请分成几个文件", MOST_BRACKETS, MOST_COMMAS)
    try:
        return json.loads(as_text(data))
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError("不是合法的 JSON：第 {} 行第 {} 列，{}", error.lineno, error.colno, error.msg) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets thousands deep
        raise InputError("不是合法的 JSON：{}", reason(error)) from error


class ReadOnce:
    """A function of a path whose answers, errors too, are kept for the last few paths while these do not change.

    Threads wait for one reading. A folder changes as it gains or loses an entry of its own.
    """

    def __init__(self, read: Callable[[str], object], most: int = 4):
        self._read, self._most = read, most
        self._lock, self._answers = threading.Lock(), OrderedDict()

    def __call__(self, path: str):
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise InputError(reason(error)) from error
        key = path, status.st_mtime_ns, status.st_size
        with self._lock:
            if key not in self._answers:
                self._answers[key] = self._answer(path)
            self._answers.move_to_end(key)
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
            content, message = self._answers[key]
        if message is not None:
            raise InputError(message)
        return content

    def _answer(self, path: str) -> tuple[object, str | None]:
        try:
            return self._read(path), None
        except InputError as error:
            return None, str(error)
