"""From what a file calls a finding to the text it is."""

import re
from collections.abc import Sequence

from ..class_texts import ClassText, descriptions_of
from ..errors import closest_hint, shortened
from ..messages import Message

_INDEX = re.compile(r"([0-9]{1,9})(\.0+)?")  # 3, or 3.0 as tables write whole numbers of a column with gaps


class TextLookup:
    """Texts by their short names, by each of their descriptions where texts are given, and by indices, in this order.

    Names are compared exactly, blanks around them aside; of two equal ones the first counts.
    """

    def __init__(self, names: Sequence[str], texts: Sequence[ClassText] = ()):
        self.names = list(names)
        self._indices: dict[str, int] = {}
        for written in (names, texts):
            for index, text in enumerate(written):
                for description in descriptions_of(text):
                    self._indices.setdefault(description.strip(), index)

    def find(self, label: str) -> int | None:
        """The index of a label's text, None where it is no text."""
        label = label.strip()
        if label in self._indices:
            return self._indices[label]
        number = _INDEX.fullmatch(label)
        index = int(number[1]) if number else len(self.names)
        return index if index < len(self.names) else None

    def hint(self, label: str) -> Message:
        """What to try for a label that is no text: the closest names, or how many texts there are."""
        return closest_hint(label, self.names) or Message("可用短名，或索引 0 到 {}；", len(self.names) - 1)


def quoted(label: str) -> str:
    return f"'{shortened(label, 60)}'"
