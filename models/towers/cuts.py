"""A text that is longer than its model reads. Apart from the towers, so that the cache of features needs none."""

from typing import NamedTuple

from ..errors import InputWarning


class Cut(NamedTuple):
    """A text of which the end is not read."""

    beginning: str
    tokens: int
    most: int  # tokens that are read

    def warning(self) -> InputWarning:
        return InputWarning("文本“{}…”有 {} 个词元，超过 {} 的部分被截去", *self)
