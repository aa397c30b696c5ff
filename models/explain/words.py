"""The other half of an explanation: what each word of the text adds to its similarity with the image."""

from typing import NamedTuple


class Word(NamedTuple):
    """A word, or a Chinese character, of a text, as the model read it."""

    text: str  # as it is written there
    contribution: float  # to the similarity, in its unit; positive: it speaks for the text
    start: int  # its characters in the description, text == description[start:end]
    end: int
    description: int = 0  # which of a class's several descriptions it stands in
