"""What a model does not read of a text is said: its end, and the words that its vocabulary does not have."""

import pytest
from tiny_pretrained import TEXTS, save_pretrained

from models.errors import InputWarning
from models.loading.living_open_clip import LibraryTextTower
from models.loading.load import embed_texts, load_clip_checkpoint
from models.towers.tokenizers import load_tokenizer
from models.towers.unread import Unread, unread_part, warnings_of
from models.weights.hub import ASSETS

BERT = ASSETS / "bert-base-chinese"
NOT_READ_BY_BERT = {
    "髋臼杯松动。": None,
    "“髋臼杯”——松动☆": None,  # marks that the vocabulary does not have either
    "左侧ROI，Ⅲ级，ROI旁见𠮷": "ROI、Ⅲ、𠮷",
    "一张骨折的X光片": None,
    "A B C D E F": "A、B、C、D、E…",
}


@pytest.mark.parametrize("text", NOT_READ_BY_BERT)
def test_words_that_the_vocabulary_does_not_have(text):
    part = unread_part(load_tokenizer(BERT, "BertTokenizer"), text, 128)
    assert (part and part.unknown) == NOT_READ_BY_BERT[text]


def test_one_line_says_it_of_all_texts():
    parts = [Unread("甲", 9, 8, ""), Unread("乙", 4, 8, "X"), Unread("丙", 9, 8, "Y、Z")]
    first, second, third = map(str, warnings_of(parts))
    assert "甲" in first and "丙" in second and "2 段文本" in third and "“乙…”中的 X：" in third


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "altclip"])
def test_chinese_that_a_published_model_was_never_taught(tmp_path, family):
    """CLIP's vocabulary has a token for each byte; the others' have the letters of the tiny models' texts."""
    folder, _ = save_pretrained(tmp_path, family)
    model = load_clip_checkpoint(folder)
    assert not [part for part in model.text_encoder.unread(TEXTS) if part.unknown]
    (part, *_), *_ = [model.text_encoder.unread(["髋臼杯"]) or [None]]
    assert (part is None) == (family == "clip")
    if part:
        with pytest.warns(InputWarning, match="未知词元"):
            embed_texts(model, ["髋臼杯"])


def test_a_library_s_own_tokenizer_tells_as_ours_does():
    tokenizer = pytest.importorskip("open_clip").tokenizer.HFTokenizer(str(BERT), context_length=8)
    (part,) = LibraryTextTower(None, tokenizer).unread(["髋臼杯", "ROI，CT，MRI，松动见"])
    assert part == Unread("ROI,CT,MRI,松动见", 11, 8, "ROI、CT、MRI")
