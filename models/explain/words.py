"""The other half of an explanation: what each word of the text adds to its similarity with the image.

A description says the same thing several times: no single word's absence costs its similarity much, and to rank words
by so little says nothing. So a word is weighed where nothing repeats it: the mean of what it says alone and of what its
clause, read by itself, loses without it (chosen by tests/evaluate_words.py). Contributions add up to nothing. A word
that means nothing alone, a side or a negation, is not weighed truly: half of its contribution is what the tower makes
of it alone.

A CLIP's text side never looks at the image, so what a word does to the text's feature is computed once a run; what that
means for an image is a product of two vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from ..class_texts import ClassText, descriptions_of
from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..messages import Message
from ..towers.words import Span, clauses
from .capture import undisturbed

NEEDS_TOWER = Message(
    "各词的贡献（--words、words=True）需要模型的文本编码器；请用 load_clip_checkpoint(路径) 得到模型，载入时不要去掉它"
)
NEEDS_OUR_TOWER = Message(
    "各词的贡献（words=True）要用本工具的文本塔，open_clip 和 openai/CLIP 的对象用自己的；"
    "请保存模型，再用 load_clip_checkpoint(路径) 载入"
)
FARTHEST = 0.05  # between unit features of the same text, embedded alone and among others in half precision


class Word(NamedTuple):
    """A word, or a Chinese character, of a text, as the model read it."""

    text: str  # as it is written there
    contribution: float  # to the similarity, in its unit; positive: it speaks for the text
    start: int  # its characters in the description, text == description[start:end]
    end: int
    description: int = 0  # which of a class's several descriptions it stands in


class WordFeatures(NamedTuple):
    """What each of N words adds to the feature of a class."""

    words: list[Word]  # N, of no contribution yet
    added: torch.Tensor  # [N, D]
    feature: torch.Tensor  # [D] of the class, of unit length


class ClassWords:
    """The words of K classes' texts: looked at when their class is explained first, and kept from then on.

    `tower`: a TextTower. `texts`: of each class a text, or its several descriptions. Threads may share it. InputError
    for a tower that cannot hide words, or none.
    """

    def __init__(self, tower, texts: Sequence[ClassText]):
        if not hasattr(tower, "with_words"):
            raise InputError(NEEDS_TOWER if tower is None else NEEDS_OUR_TOWER)
        self._tower, self._texts, self._features = tower, texts, {}
        self._lock = threading.Lock()

    def features(self, index: int) -> WordFeatures:
        """Of the class of this index; InputError where its tokenizer does not tell words."""
        with self._lock:
            if index not in self._features:
                with undisturbed(self._tower):
                    self._features[index] = word_features(self._tower, descriptions_of(self._texts[index]))
            return self._features[index]

    def weighed(self, index: int, direction: torch.Tensor, text_feature: torch.Tensor) -> list[Word]:
        """The words of a class with what each adds to <direction [D], t>, t the class's unit feature.

        InputError where `text_feature` [D], of unit length, which the image is held against, is not the tower's.
        """
        words, added, feature = self.features(index)
        if (text_feature - feature).norm() > FARTHEST:
            raise InputError(
                "text_features 的第 {} 行（从 0 开始）不是模型的文本编码器对该文本的编码，不能算出各词的贡献；"
                "请去掉 text_features",
                index,
            )
        values = (added * direction).sum(1).tolist()  # no product of matrices: around this autocast would round it
        return [word._replace(contribution=value) for word, value in zip(words, values)]


def word_features(tower, descriptions: Sequence[str]) -> WordFeatures:
    """What each word of a class's descriptions adds to the class's unit feature.

    The class's feature is the sum of its descriptions', over that sum's length: so is what their words add to it.
    InputError where one is not finite.
    """
    words, added, total = [], [], 0
    for number, text in enumerate(descriptions):
        spans = tower.words(text)
        words += [Word(text[start:end], 0.0, start, end, number) for start, end, _ in spans]
        of_words, whole = _added_by_words(tower, text, spans)
        added.append(of_words)
        total = total + whole
    if not all(torch.isfinite(part).all() for part in (total, *added)):
        raise InputError("文本编码器给出 NaN 或无穷大：检查点的文本权重已损坏，或训练时发散；请换一个检查点")
    return WordFeatures(words, torch.cat(added) / total.norm(), F.normalize(total, dim=-1))


def _added_by_words(tower, text: str, spans: Sequence[Span]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of N words adds to the unit feature f of a text [N, D], and that feature [D].

    ((f(word) - f(nothing)) + (f(clause) - f(clause without the word))) / 2, where what is not named is hidden.
    """
    numbers = torch.tensor(clauses(text, [span.start for span in spans]), dtype=torch.int64)
    alone, of_clause = torch.eye(len(spans), dtype=torch.bool), numbers[:, None] == numbers.unique()
    clause = numbers[:, None] == numbers  # (N, N), the words that stand in a word's clause
    whole = alone.new_ones(1, len(spans))
    shown = [~whole, alone, of_clause.T, clause & ~alone]
    features = tower.with_words(text, spans, torch.cat(shown)).float().cpu().split([len(rows) for rows in shown])
    nothing, alone, of_clause, without = features
    own_clause = of_clause[numbers.unique(return_inverse=True)[1]]
    feature = tower.with_words(text, spans, whole).float().cpu()[0]  # apart: by far the longest
    return (alone - nothing + own_clause - without) / 2, feature


def words_direction(image: torch.Tensor, texts: torch.Tensor, target: int, gamma: float = 0.0) -> torch.Tensor:
    """What the words of a text are held against, [D]: the image less gamma times the mean of the other texts.

    For the image's unit embedding [D] and unit text features [K, D]. A word's contribution is what it adds to
    cos(image, t) - gamma * mean cos(t, others): with gamma 0 to the similarity; else what makes this text like the
    others is taken off, and words that set it apart come forward. It is the mirror of `contrastive_directions`, where
    the image is what changes and the texts stay.
    """
    if not gamma:
        return image
    return image - gamma * (texts.sum(0) - texts[target]) / (len(texts) - 1)
