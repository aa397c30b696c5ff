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
from models.explain import words
from models.explain.question import CONTRAST_GAMMA, Question
from models.explain.words import STEPS, TOKENS_AT_ONCE, ClassWords, contributions, words_directions
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


# -- what they add ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "altclip"])
def test_a_text_with_all_of_its_embeddings_is_the_text(family, tmp_path):
    tower = random_tower(tmp_path, family)
    text = "the loose hip" if family == "clip" else "正常假体"
    leaf, features = tower.with_shares(text, torch.ones(2, 3))
    with torch.no_grad():
        torch.testing.assert_close(features, tower(texts=[text, text]))
        halved = tower.with_shares(text, torch.full((1, 3), 0.5))[1]
    assert leaf.requires_grad and (halved - features).norm() > 1e-3
    assert not tower.backbone._forward_hooks and all(weight.grad is None for weight in tower.parameters())


def by_hand(bert, text, direction, steps):
    """Integrated gradients of a BERT's word embeddings, one step after the other."""
    ids = bert.tokenizer([text], return_tensors="pt")["input_ids"]
    whole, inside = bert.backbone.embeddings.word_embeddings(ids).detach(), torch.ones(1, ids.shape[1], 1)
    inside[:, [0, -1]] = 0  # [CLS] and [SEP]
    added = torch.zeros(ids.shape[1])
    for node, weight in zip(*np.polynomial.legendre.leggauss(steps)):
        change = torch.tensor((node + 1) / 2, requires_grad=True).float() * inside + 1 - inside
        embeddings = (whole * change).detach().requires_grad_()
        output = bert.backbone(inputs_embeds=embeddings).last_hidden_state[:, 0]
        (F.normalize(bert.projection(output), dim=-1)[0] @ direction).backward()
        added += weight / 2 * (embeddings.grad * whole)[0].sum(-1)
    return added[1:-1]


@pytest.mark.parametrize("steps", [STEPS, 3])
@pytest.mark.parametrize("at_once", [TOKENS_AT_ONCE, 1])
def test_contributions_are_integrated_gradients(bert, steps, at_once, monkeypatch):
    monkeypatch.setattr(words, "STEPS", steps)
    monkeypatch.setattr(words, "TOKENS_AT_ONCE", at_once)
    text, directions = "未见假体松动，loosening", F.normalize(torch.randn(2, 8, generator=torch.manual_seed(1)), dim=-1)
    spans = bert.words(text)
    assert max(len(span.tokens) for span in spans) > 1
    for of_direction, direction in zip(contributions(bert, text, spans, directions), directions):
        of_tokens = by_hand(bert, text, direction, steps)
        expected = [of_tokens[[token - 1 for token in span.tokens]].sum() for span in spans]
        torch.testing.assert_close(of_direction, torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tower", ["bert", "clip_text"])
def test_contributions_add_up_to_what_the_words_add_together(tower, request, monkeypatch):
    monkeypatch.setattr(words, "STEPS", 100)
    tower, text, direction = request.getfixturevalue(tower), "the cat do 假体松动", torch.eye(1, 8)
    spans = tower.words(text)
    inside = torch.zeros(1, 1 + spans[-1].tokens[-1])
    inside[:, [token for span in spans for token in span.tokens]] = 1
    whole, empty = (tower.with_shares(text, shares)[1].detach() for shares in (torch.ones(1, 1), 1 - inside))
    expected = ((whole - empty) @ direction.T).item()
    assert contributions(tower, text, spans, direction).sum().item() == pytest.approx(expected, abs=1e-3)


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


def values_of(of_words):
    return np.array([word.contribution for word in of_words])


def test_the_words_of_several_descriptions_share_the_class(bert):
    """Each by what it does to its own description's part of the class's feature."""
    texts, directions = ["假体松动", "透亮线"], torch.eye(2, 8)
    features = bert(texts=texts).detach()
    total = features.sum(0)
    for number, of_words in enumerate(ClassWords(bert, [texts]).weighed(0, directions, F.normalize(total, dim=0))):
        parts = [contributions(bert, text, bert.words(text), directions)[number] for text in texts]
        np.testing.assert_allclose(values_of(of_words), torch.cat(parts) / total.norm(), atol=1e-6)
        assert [word.description for word in of_words] == [0] * 4 + [1] * 3
        assert [texts[word.description][word.start : word.end] for word in of_words] == list("假体松动透亮线")


def test_contributions_are_linear_in_the_image(bert):
    class_words, features = ClassWords(bert, TEXTS), bert(texts=TEXTS).detach()
    a, b = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)
    both, of_a, of_b = map(values_of, class_words.weighed(0, torch.stack([2 * a - b, a, b]), features[0]))
    np.testing.assert_allclose(both, 2 * of_a - of_b, atol=1e-6)


def test_a_contrast_takes_off_what_makes_the_text_like_the_others():
    images, texts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.eye(3)
    assert words_directions(images, texts, 1) is images
    expected = torch.tensor([[0.7, 0.0, -0.3], [-0.3, 1.0, -0.3]])
    torch.testing.assert_close(words_directions(images, texts, 1, 0.6), expected)


def test_a_text_is_looked_at_once_whoever_asks(bert, monkeypatch):
    calls, plain = [], bert.words
    monkeypatch.setattr(bert, "words", lambda text: calls.append(text) or plain(text))
    class_words, feature = ClassWords(bert, TEXTS), bert(texts=TEXTS[1:2]).detach()[0]
    arguments = 1, torch.eye(1, 8), feature
    threads = [threading.Thread(target=class_words.weighed, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == TEXTS[1:2]


# -- explain and the command ------------------------------------------------------------------


def test_explain_weighs_the_words_of_each_explained_text(clip):
    image = gradient_picture()
    assert explain(clip, image, TEXTS, img_size=64).words is None
    result = explain(clip, image, TEXTS, img_size=64, target_text_idx=[1, 0], words=True)
    assert ["".join(word.text for word in words) for words in result.words] == [TEXTS[1], TEXTS[0]]
    tower = clip.text_encoder
    with torch.no_grad():
        direction = F.normalize(clip.image_encoder(square(64)(image)), dim=-1)
    expected = contributions(tower, TEXTS[1], tower.words(TEXTS[1]), direction)[0]
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
    tower, others = clip.text_encoder, features[1:].mean(0, keepdim=True)
    less = CONTRAST_GAMMA * contributions(tower, TEXTS[0], tower.words(TEXTS[0]), others)[0]
    np.testing.assert_allclose(values_of(contrast.words[0]), values_of(plain.words[0]) - less.numpy(), atol=1e-6)


def test_all_methods_and_a_batch_have_the_words_of_one(clip):
    images = [gradient_picture(), gradient_picture()[::-1].copy()]
    options = {"img_size": 64, "target_text_idx": 1, "words": True}
    singles = [explain(clip, image, TEXTS, **options).words for image in images]
    for results, single in zip(explain(clip, images, TEXTS, method="all", **options), singles):
        assert all(result.words == results[0].words for result in results)
        np.testing.assert_allclose(values_of(results[0].words[0]), values_of(single[0]), atol=1e-6)


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
