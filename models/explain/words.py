"""The other half of an explanation: what each word of the text adds to its similarity with the image.

Integrated gradients over the words' embeddings, from none of them to all (Sundararajan et al. 2017, arXiv 1703.01365;
chosen by tests/evaluate_words.py). A description says the same thing several times: what is lost without a single word
is next to nothing, and to rank words by so little says nothing. On the way from an empty sentence to the whole each
word is weighed while the others are there in part. Contributions add up to the similarity less that of the empty
sentence, of special tokens and places alone, within what the steps leave over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..class_texts import ClassText, descriptions_of
from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..messages import Message
from ..towers.words import Span
from .capture import half_precision_scale, undisturbed

NEEDS_TOWER = Message(
    "各词的贡献（--words、words=True）需要模型的文本编码器；请用 load_clip_checkpoint(路径) 得到模型，载入时不要去掉它"
)
NEEDS_OUR_TOWER = Message(
    "各词的贡献（words=True）要用本工具的文本塔，open_clip 和 openai/CLIP 的对象用自己的；"
    "请保存模型，再用 load_clip_checkpoint(路径) 载入"
)
NOT_FINITE = Message("文本编码器给出 NaN 或无穷大：检查点的文本权重已损坏，或训练时发散；请换一个检查点")
FARTHEST = 0.05  # between unit features of the same text, embedded alone and among others in half precision
STEPS = 8  # of Gauss and Legendre: 0.999 of what 50 say, of the demo models (Pearson's correlation)
TOKENS_AT_ONCE = 512  # of all steps that go through the text model together: their graph takes memory


class Word(NamedTuple):
    """A word, or a Chinese character, of a text, as the model read it."""

    text: str  # as it is written there
    contribution: float  # to the similarity, in its unit; positive: it speaks for the text
    start: int  # its characters in the description, text == description[start:end]
    end: int
    description: int = 0  # which of a class's several descriptions it stands in


class _Text(NamedTuple):
    """What is computed of a class once."""

    descriptions: Sequence[str]
    spans: list[list[Span]]  # of each description, its words
    length: torch.Tensor  # of the sum of the descriptions' unit features, which the class's feature is divided by
    feature: torch.Tensor  # [D] of the class, of unit length


class ClassWords:
    """The words of K classes' texts: looked for when their class is explained first, and kept from then on.

    `tower`: a TextTower. `texts`: of each class a text, or its several descriptions. Threads may share it. InputError
    for a tower whose words cannot be weighed, or none.
    """

    def __init__(self, tower, texts: Sequence[ClassText]):
        if not hasattr(tower, "with_shares"):
            raise InputError(NEEDS_TOWER if tower is None else NEEDS_OUR_TOWER)
        self._tower, self._texts, self._looked_at = tower, texts, {}
        self._lock = threading.Lock()

    def weighed(self, index: int, directions: torch.Tensor, text_feature: torch.Tensor) -> list[list[Word]]:
        """For each of n directions [n, D] the words of a class with what each adds to <direction, t>.

        t is the class's unit feature, the sum of its descriptions' over that sum's length. InputError where
        `text_feature` [D], of unit length, which the images are held against, is not the tower's; where the tokenizer
        does not tell words; where a number is not finite.
        """
        with self._lock, undisturbed(self._tower):
            text = self._text(index)
            if (text_feature - text.feature).norm() > FARTHEST:
                raise InputError(
                    "text_features 的第 {} 行（从 0 开始）不是模型的文本编码器对该文本的编码，不能算出各词的贡献；"
                    "请去掉 text_features",
                    index,
                )
            words = [[] for _ in directions]
            for number, (description, spans) in enumerate(zip(text.descriptions, text.spans)):
                values = contributions(self._tower, description, spans, directions / text.length)
                for of_direction, of_words in zip(words, values.tolist()):
                    of_direction += [
                        Word(description[start:end], value, start, end, number)
                        for (start, end, _), value in zip(spans, of_words)
                    ]
        return words

    def _text(self, index: int) -> _Text:
        """Of the class of this index."""
        if index not in self._looked_at:
            descriptions = descriptions_of(self._texts[index])
            features = [self._tower.with_shares(text, torch.ones(1, 1))[1][0].float().cpu() for text in descriptions]
            total = torch.stack(features).sum(0)
            if not torch.isfinite(total).all():
                raise InputError(NOT_FINITE)
            spans = [self._tower.words(text) for text in descriptions]
            self._looked_at[index] = _Text(descriptions, spans, total.norm(), F.normalize(total, dim=-1))
        return self._looked_at[index]


def contributions(tower, text: str, spans: Sequence[Span], directions: torch.Tensor) -> torch.Tensor:
    """What each of a text's N words adds to <direction, f> of n directions [n, D], f the text's unit feature: [n, N].

    The integral over a from 0 to 1 of <d <direction, f(a)> / d e_w, e_w>, e_w the embedding of a word's tokens, all of
    which are multiplied by a; special tokens stay as they are. InputError where one is not finite.
    """
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    shares, weights = (torch.from_numpy(part).float() for part in ((nodes + 1) / 2, weights / 2))
    members = torch.zeros(len(spans), 1 + max((token for span in spans for token in span.tokens), default=0))
    for row, span in zip(members, spans):
        row[list(span.tokens)] = 1  # (N, T), where a token is a word's
    inside, added = members.sum(0), torch.zeros(len(directions), len(spans))
    for part, of_part in zip(*(values.split(max(1, TOKENS_AT_ONCE // len(inside))) for values in (shares, weights))):
        leaf, features = tower.with_shares(text, 1 - inside * (1 - part[:, None]))
        scale, embeddings = half_precision_scale(leaf), leaf.detach().float()
        for number, direction in enumerate(directions.to(features.device)):
            (gradient,) = torch.autograd.grad(features, leaf, scale * direction.expand_as(features), retain_graph=True)
            of_tokens = (gradient.float() / scale * embeddings).sum(-1).cpu()[:, : len(inside)]
            added[number] += members @ ((of_part / part) @ of_tokens)  # the leaf is a's share of the embedding
    if not torch.isfinite(added).all():
        raise InputError(NOT_FINITE)
    return added


def words_directions(images: torch.Tensor, texts: torch.Tensor, target: int, gamma: float = 0.0) -> torch.Tensor:
    """What the words of a text are held against, [n, D]: an image less gamma times the mean of the other texts.

    For the images' unit embeddings [n, D] and unit text features [K, D]. A word's contribution is what it adds to
    cos(image, t) - gamma * mean cos(t, others): with gamma 0 to the similarity; else what makes this text like the
    others is taken off, and words that set it apart come forward. It is the mirror of `contrastive_directions`, where
    the image is what changes and the texts stay.
    """
    if not gamma:
        return images
    return images - gamma * (texts.sum(0) - texts[target]) / (len(texts) - 1)
