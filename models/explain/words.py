"""The other half of an explanation: what each word of the text adds to its similarity with the image.

A word adds what the similarity loses when it is hidden: leave-one-out, which other attributions are held against, taken
as it is (tests/evaluate_words.py). A CLIP's text side never looks at the image, so what hiding a word takes from the
text's feature is computed once a run; what that means for an image is a product of two vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..messages import Message
from .capture import undisturbed

NEEDS_TOWER = Message(
    "各词的贡献（--words、words=True）需要模型的文本编码器；请用 load_clip_checkpoint(路径) 得到模型，载入时不要去掉它"
)
FARTHEST = 0.05  # between unit features of the same text, embedded alone and among others in half precision


class Word(NamedTuple):
    """A word, or a Chinese character, of a text, as the model read it."""

    text: str  # as it is written there
    contribution: float  # to the similarity, in its unit; positive: it speaks for the text
    start: int  # its characters in the description, text == description[start:end]
    end: int
    description: int = 0  # which of a class's several descriptions it stands in


class HiddenWords(NamedTuple):
    """What hiding each of N words takes from the feature of a class."""

    words: list[Word]  # N, of no contribution yet
    differences: torch.Tensor  # [N, D]: the class's unit feature less that without the word
    feature: torch.Tensor  # [D], of unit length


class ClassWords:
    """The words of K classes' texts: hidden one by one when their class is explained first, and kept from then on.

    `tower`: a TextTower. `texts`: of each class a text, or its several descriptions. Threads may share it. InputError
    for a tower that cannot hide words, or none.
    """

    def __init__(self, tower, texts: Sequence[str | Sequence[str]]):
        if not hasattr(tower, "without_words"):
            raise InputError(NEEDS_TOWER)
        self._tower, self._texts, self._hidden = tower, texts, {}
        self._lock = threading.Lock()

    def hidden(self, index: int) -> HiddenWords:
        """Of the class of this index; InputError where its tokenizer does not tell words."""
        with self._lock:
            if index not in self._hidden:
                text = self._texts[index]
                with undisturbed(self._tower):
                    self._hidden[index] = hide_words(self._tower, [text] if isinstance(text, str) else text)
            return self._hidden[index]

    def weighed(self, index: int, direction: torch.Tensor, text_feature: torch.Tensor) -> list[Word]:
        """The words of a class with what each adds to <direction [D], t>, t the class's unit feature.

        InputError where `text_feature` [D], of unit length, which the image is held against, is not the tower's.
        """
        words, differences, feature = self.hidden(index)
        if (text_feature - feature).norm() > FARTHEST:
            raise InputError(
                "text_features 的第 {} 行（从 0 开始）不是模型的文本编码器对该文本的编码，不能算出各词的贡献；"
                "请去掉 text_features",
                index,
            )
        return [word._replace(contribution=value) for word, value in zip(words, (differences @ direction).tolist())]


def hide_words(tower, descriptions: Sequence[str]) -> HiddenWords:
    """Hide each word of a class's descriptions in turn: what the class's unit feature loses by it.

    The class's feature is the mean of its descriptions' unit features, normalised again, with a word hidden as well.
    InputError where one is not finite.
    """
    words, embedded = [], []
    for number, text in enumerate(descriptions):
        spans = tower.words(text)
        words += [Word(text[start:end], 0.0, start, end, number) for start, end, _ in spans]
        embedded.append(tower.without_words(text, spans).float().cpu())  # (1 + N, D)
    if not all(torch.isfinite(of_text).all() for of_text in embedded):
        raise InputError("文本编码器给出 NaN 或无穷大：检查点的文本权重已损坏，或训练时发散；请换一个检查点")
    total = sum(of_text[0] for of_text in embedded)
    feature = F.normalize(total, dim=-1)
    without = torch.cat([total - of_text[0] + of_text[1:] for of_text in embedded])  # (N, D)
    return HiddenWords(words, feature - F.normalize(without, dim=-1), feature)


def words_direction(image: torch.Tensor, texts: torch.Tensor, target: int, gamma: float = 0.0) -> torch.Tensor:
    """What the words of a text are held against, [D]: the image less gamma times the mean of the other texts.

    For the image's unit embedding [D] and unit text features [K, D]. A word's contribution is what hiding it takes from
    cos(image, t) - gamma * mean cos(t, others): with gamma 0 from the similarity; else words that all descriptions
    share count less, and what makes this text another than they are counts more. It is the mirror of
    `contrastive_directions`, where the image is what changes and the texts stay.
    """
    if not gamma:
        return image
    return image - gamma * (texts.sum(0) - texts[target]) / (len(texts) - 1)
