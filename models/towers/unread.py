"""What a model does not read of a text. Apart from the towers, so that the cache of features needs none."""

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InputWarning, shortened
from ..messages import Message

MOST_SHOWN = 5  # words that the vocabulary does not have
LEAST_UNKNOWN = 1 / 4  # of a text's tokens: BERT's Chinese vocabulary has no X, and its models were trained without


class Unread(NamedTuple):
    """A text of which the end is not read, or a good part of the words, which the vocabulary does not have."""

    beginning: str
    tokens: int
    most: int  # tokens that are read
    unknown: str  # the words that are not in the vocabulary, as they are shown


def warnings_of(parts: Sequence[Unread]) -> list[InputWarning]:
    """One for each text that is cut, and one for all words that the vocabulary does not have."""
    cut = [part for part in parts if part.tokens > part.most]
    messages = [InputWarning("文本“{}…”有 {} 个词元，超过 {} 的部分被截去", *part[:3]) for part in cut]
    if unknown := [part for part in parts if part.unknown]:
        message = Message(
            "{} 段文本中有分词器的词表没有的词，例如“{}…”中的 {}："
            "模型都读作同一个未知词元；请确认语言和写法与训练时相同",
            len(unknown),
            unknown[0].beginning,
            unknown[0].unknown,
        )
        messages.append(InputWarning(message))
    return messages


def unread_part(tokenizer, text: str, most: int) -> Unread | None:
    """What a model that reads `most` tokens does not read of a text; None where it reads it all.

    `tokenizer`: of transformers; one that does not say where its tokens stand names no unknown words. Marks that
    are not in the vocabulary take nothing from what is meant and are not counted; the X of an X-ray alone is not said.
    """
    encoded = tokenizer(text, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    tokens = encoded["input_ids"]
    pieces = [text[start:end] for start, end in _unknown_spans(tokenizer, tokens, encoded.get("offset_mapping", ()))]
    words = [piece for piece in pieces if any(map(str.isalnum, piece))]
    unknown = _shown(words) if len(words) >= LEAST_UNKNOWN * len(tokens) else ""
    return Unread(text[:20], len(tokens), most, unknown) if unknown or len(tokens) > most else None


def _unknown_spans(tokenizer, tokens: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the words stand that have no token; none for CLIP's tokenizer, whose "unknown" is the end of a text."""
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return []
    return [offset for token, offset in zip(tokens, offsets) if token == unknown]


def _shown(words: Sequence[str]) -> str:
    """The first of some words, each once: 髋、臼、杯…"""
    different = list(dict.fromkeys(shortened(word.strip(), 20) for word in words))
    return "、".join(different[:MOST_SHOWN]) + ("…" if len(different) > MOST_SHOWN else "")
