"""What each word of a text adds: where words stand, how they are hidden, what their contributions are."""

import threading
from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from tiny import BrightnessClip, gradient_picture, load_with_text_features
from tiny_pretrained import save_pretrained, write_clip_bpe
from torch.nn import functional as F

from clip_gradcam_visualization import Explainer, explain, main
from models.errors import InputError
from models.explain.question import CONTRAST_GAMMA, Question
from models.explain.words import ClassWords, word_features, words_direction
from models.images.preprocessing import square
from models.loading.living_open_clip import LibraryTextTower
from models.loading.load import load_clip_checkpoint
from models.towers.cleaning import CLEANERS
from models.towers.text import ClipTextEncoder, TextEncoder
from models.towers.words import clauses, offsets_in, word_spans

TEXTS = ["未见假体松动", "左侧假体周围感染", "正常"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return TextEncoder("bert-base-chinese", 8, {**SMALL, "initializer_range": 0.3}).eval()


@pytest.fixture(scope="module")
def clip_text(tmp_path_factory):
    """CLIP's text tower; its vocabulary knows cat, do and the, and bytes."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    return ClipTextEncoder(str(folder), 8, {**SMALL, "vocab_size": write_clip_bpe(folder)}).eval()


def random_tower(folder, family):
    """The text tower of a family of transformers."""
    save_pretrained(folder, family)
    return load_clip_checkpoint(str(folder)).text_encoder


# -- where words stand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("假体松动。", ["假", "体", "松", "动", "。"]),
        ("超过2毫米，3.5cm", ["超", "过", "2", "毫", "米", "，", "3.5cm"]),
        ("ＦＵＬＬ　２度", ["ＦＵＬＬ", "２", "度"]),
        ("the  Loosening patient's T2-weighted ", ["the", "Loosening", "patient's", "T2", "-", "weighted"]),
        ("e\u0301tude Café", ["e\u0301tude", "Café"]),
        ("感染🙂", ["感", "染", "🙂"]),
    ],
)
@pytest.mark.parametrize("tower", ["bert", "clip_text"])
def test_pieces_are_joined_to_words_and_chinese_characters_stand_alone(tower, text, words, request):
    spans = request.getfixturevalue(tower).words(text)
    assert [text[span.start : span.end] for span in spans] == words


@pytest.mark.parametrize("tower", ["bert", "clip_text"])
def test_each_token_but_the_special_ones_is_one_words(tower, request):
    tower = request.getfixturevalue(tower)
    text = "the loosening of 3.5 mm，假体🙂"
    tokens = [token for span in tower.words(text) for token in span.tokens]
    assert tokens == list(range(1, len(tower.tokenizer(text)["input_ids"]) - 1))


def test_a_token_of_two_characters_is_one_word_and_its_white_space_none():
    assert word_spans(" 假体 ok", [None, (0, 3), (3, 5), (5, 6), (0, 0), (3, 4)]) == [(1, 3, (1,)), (4, 6, (2, 3))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The ﬁrm  hip，“L”", ["The", "ﬁrm", "hip", "，", "“", "L", "”"]),
        ("hip &amp; cup", ["hip", "&", "cup"]),
        ("假体。", ["假", "体", "。"]),
    ],
)
def test_words_stand_where_they_are_written_whatever_the_text_was_made_into(clip_text, text, words, monkeypatch):
    monkeypatch.setattr(clip_text, "clean", CLEANERS["lower"])
    assert clip_text.clean(text) != text or text == "假体。"
    assert [text[span.start : span.end] for span in clip_text.words(text)] == words


def test_of_a_long_text_only_what_is_read_is_compared_with_what_was_made_of_it(monkeypatch):
    text, lengths, offsets = "骨折，移位。骨折,移位." * 900, [], [(place, place + 1) for place in range(6)]

    def compared(isjunk, written, cleaned, autojunk):
        lengths.append((len(written), len(cleaned)))
        return SequenceMatcher(isjunk, written, cleaned, autojunk)

    monkeypatch.setattr("models.towers.words.SequenceMatcher", compared)
    assert offsets_in(text, CLEANERS["lower"], offsets) == offsets and lengths == [(6, 6)]


def test_what_is_cut_off_has_no_words(bert):
    spans = bert.words("很" * 300)
    assert len(spans) == 126 and spans[-1].end == 126


def test_a_tokenizer_that_tells_no_places_is_refused(bert, monkeypatch):
    monkeypatch.setattr(type(bert.tokenizer), "is_fast", False)
    with pytest.raises(InputError, match="不说明词元在文本中的位置"):
        bert.words("假体")


# -- how words are hidden ---------------------------------------------------------------------


def hidden_by_hand(tower, text, tokens):
    """The feature of a text whose tokens at these places nobody attends to."""
    limits = {"padding": "max_length", "max_length": tower.max_tokens} if tower.padded else {}
    encoded = tower.tokenizer([text], return_tensors="pt", **limits)
    attended = encoded.get("attention_mask", torch.ones_like(encoded["input_ids"])).clone()
    attended[:, list(tokens)] = 0
    with torch.no_grad():
        return tower(None, encoded["input_ids"], attended)[0]


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "altclip"])
def test_hidden_words_are_masked_from_the_attention(family, tmp_path):
    tower = random_tower(tmp_path, family)
    text = "the loose hip" if family == "clip" else "正常假体"
    spans = tower.words(text)
    shown = ~torch.eye(len(spans) + 1, len(spans), dtype=torch.bool)  # the last row hides none
    features = tower.with_words(text, spans, shown)
    with torch.no_grad():
        torch.testing.assert_close(features[-1], tower(texts=[text])[0])
    for feature, span in zip(features, spans):
        torch.testing.assert_close(feature, hidden_by_hand(tower, text, span.tokens))
        assert (feature - features[-1]).norm() > 1e-3


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "altclip"])
def test_what_is_left_out_changes_nothing(family, tmp_path):
    """Copies of one word up to all of them, together and each by itself with all tokens there."""
    tower = random_tower(tmp_path, family)
    text = "the loose hip of a cat" if family == "clip" else "正常假体，感染"
    spans = tower.words(text)
    shown = torch.rand(12, len(spans), generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 12)[:, None]
    for feature, row in zip(tower.with_words(text, spans, shown), shown):
        hidden = [token for span, is_shown in zip(spans, row) if not is_shown for token in span.tokens]
        torch.testing.assert_close(feature, hidden_by_hand(tower, text, hidden), rtol=0, atol=1e-5)


def test_what_is_hidden_has_no_say(bert):
    """Other words in the places of the hidden ones change nothing."""
    shown = torch.tensor([[True, True, False, False]])
    features = [bert.with_words(text, bert.words(text), shown) for text in ("假体松动", "假体感染")]
    torch.testing.assert_close(*features)


# -- what they add ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("假体松动", [0] * 4),
        ("正常，未见透亮线、骨折；无3.5 mm。好", [0] * 3 + [1] * 9 + [2] * 4 + [3]),
        ("no line, 1,000 cats. Well", [0, 0, 0, 1, 1, 1, 2]),
        ("，，正", [0, 1, 2]),
    ],
)
def test_words_stand_in_clauses(bert, text, numbers):
    assert clauses(text, [span.start for span in bert.words(text)]) == numbers


@pytest.mark.parametrize("tower", ["bert", "clip_text"])
@pytest.mark.parametrize("text", ["the cat do", "do the; the cat do, cat"])
def test_a_word_is_weighed_alone_and_by_its_absence_from_its_clause(tower, text, request):
    tower = request.getfixturevalue(tower)
    spans = tower.words(text)
    everything = [token for span in spans for token in span.tokens]
    numbers = clauses(text, [span.start for span in spans])
    words, added, feature = word_features(tower, [text])
    torch.testing.assert_close(feature, hidden_by_hand(tower, text, []))
    nothing = hidden_by_hand(tower, text, everything)
    for word, row, span, number in zip(words, added, spans, numbers, strict=True):
        alone = hidden_by_hand(tower, text, [token for token in everything if token not in span.tokens])
        others = [token for other, of in zip(spans, numbers) if of != number for token in other.tokens]
        clause, without = (hidden_by_hand(tower, text, [*others, *tokens]) for tokens in ((), span.tokens))
        torch.testing.assert_close(row, (alone - nothing + clause - without) / 2, rtol=1e-4, atol=1e-5)
        assert (word.text, word.start, word.end, word.description) == (text[span.start : span.end], *span[:2], 0)


def test_the_words_of_several_descriptions_share_the_class(bert):
    """Each by what it does to its own description's part of the class's feature."""
    words, added, feature = word_features(bert, ["假体松动", "透亮线"])
    parts = [word_features(bert, [text]) for text in ("假体松动", "透亮线")]
    total = parts[0].feature + parts[1].feature
    torch.testing.assert_close(feature, F.normalize(total, dim=0))
    torch.testing.assert_close(added, torch.cat([part.added for part in parts]) / total.norm())
    assert [word.description for word in words] == [0] * 4 + [1] * 3
    assert [("假体松动", "透亮线")[word.description][word.start : word.end] for word in words] == list("假体松动透亮线")


def test_contributions_are_linear_in_the_image(bert):
    class_words, features = ClassWords(bert, TEXTS), bert(texts=TEXTS).detach()
    a, b = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)

    def values(direction):
        return np.array([word.contribution for word in class_words.weighed(0, direction, features[0])])

    np.testing.assert_allclose(values(2 * a - b), 2 * values(a) - values(b), atol=1e-6)


def test_a_contrast_takes_off_what_makes_the_text_like_the_others():
    image, texts = torch.tensor([1.0, 0.0, 0.0]), torch.eye(3)
    assert words_direction(image, texts, 1) is image
    torch.testing.assert_close(words_direction(image, texts, 1, 0.6), torch.tensor([0.7, 0.0, -0.3]))


def test_a_text_is_looked_at_once_whoever_asks(bert, monkeypatch):
    calls, plain = [], bert.words
    monkeypatch.setattr(bert, "words", lambda text: calls.append(text) or plain(text))
    class_words = ClassWords(bert, TEXTS)
    threads = [threading.Thread(target=class_words.features, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == TEXTS[1:2]


# -- explain and the command ------------------------------------------------------------------


def values_of(words):
    return np.array([word.contribution for word in words])


def test_explain_weighs_the_words_of_each_explained_text(clip):
    image = gradient_picture()
    assert explain(clip, image, TEXTS, img_size=64).words is None
    result = explain(clip, image, TEXTS, img_size=64, target_text_idx=[1, 0], words=True)
    assert ["".join(word.text for word in words) for words in result.words] == [TEXTS[1], TEXTS[0]]
    added = word_features(clip.text_encoder, TEXTS[1:2]).added
    with torch.no_grad():
        expected = added @ F.normalize(clip.image_encoder(square(64)(image)), dim=-1)[0]
    np.testing.assert_allclose(values_of(result.words[0]), expected, atol=1e-6)


def test_what_surrounds_the_call_changes_no_word(clip):
    options = {"img_size": 64, "target_text_idx": 0, "words": True}
    plain = explain(clip, gradient_picture(), TEXTS, **options).words
    for surrounding in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        with surrounding:
            assert explain(clip, gradient_picture(), TEXTS, **options).words == plain


def test_explain_weighs_words_against_the_other_texts(clip):
    options = {"img_size": 64, "target_text_idx": 0, "words": True}
    plain, contrast = (explain(clip, gradient_picture(), TEXTS, contrast=on, **options) for on in (False, True))
    with torch.no_grad():
        features = clip.text_encoder(texts=TEXTS)
    added = word_features(clip.text_encoder, TEXTS[:1]).added
    less = CONTRAST_GAMMA * added @ features[1:].mean(0)
    np.testing.assert_allclose(values_of(contrast.words[0]), values_of(plain.words[0]) - less.numpy(), atol=1e-6)


def test_all_methods_and_a_batch_have_the_words_of_one(clip):
    images = [gradient_picture(), gradient_picture()[::-1].copy()]
    options = {"img_size": 64, "target_text_idx": 1, "words": True}
    singles = [explain(clip, image, TEXTS, **options).words for image in images]
    for results, words in zip(explain(clip, images, TEXTS, method="all", **options), singles):
        assert all(result.words == results[0].words for result in results)
        np.testing.assert_allclose(values_of(results[0].words[0]), values_of(words[0]), atol=1e-6)


def test_words_need_the_tower_of_the_texts(clip):
    with pytest.raises(InputError, match="第 0 行.*不是模型的文本编码器对该文本的编码"):
        explain(clip, gradient_picture(), TEXTS, None, 0, 64, text_features=torch.eye(3, 32), words=True)
    with pytest.raises(InputError, match="需要模型的文本编码器"):
        ClassWords(None, TEXTS)
    for tower in (BrightnessClip().text_encoder, LibraryTextTower(None, None)):
        with pytest.raises(InputError, match="open_clip 和 openai/CLIP 的对象用自己的；请保存模型"):
            ClassWords(tower, TEXTS)


def test_a_model_that_is_loaded_for_words_keeps_its_tower_and_its_features(checkpoint):
    without, features = load_with_text_features(checkpoint, TEXTS)
    model, same = load_with_text_features(checkpoint, TEXTS, words=True)
    assert without.text_encoder is None and torch.equal(features, same)
    explainer = Explainer(model, features, Question(TEXTS, TEXTS, words=True))
    twin = explainer.twin()
    assert twin.class_words is explainer.class_words and twin.model.text_encoder is model.text_encoder
    with pytest.raises(InputError, match="需要模型的文本编码器"):
        Explainer(without, features, Question(TEXTS, TEXTS, words=True))


def test_a_run_with_words_goes_on_with_words_only(checkpoint, tmp_path, class_texts_file, picture, capsys):
    command = ["--model-path", checkpoint, "--class-texts-file", class_texts_file, "--image-path", picture, "--cpu"]
    command = [*map(str, command), "--output-dir", str(tmp_path / "out"), "--report", "--no-figure"]
    assert main([*command, "--words"]) == 0
    assert main([*command, "--words", "--resume"]) == 0
    assert main([*command, "--resume"]) == 2
    assert "--words" in capsys.readouterr().err
