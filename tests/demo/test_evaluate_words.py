"""tests/evaluate_words.py: its methods by identities and by captum, its curves on words whose worth is known."""

import evaluate_words
import numpy as np
import pytest
import torch
from evaluate_words import Sentence, Subject
from torch.nn import functional as F

from models.explain.words import STEPS
from models.towers.text import TextEncoder

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_attention_heads": 2}
IMAGES = F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(scope="module")
def sentence():
    torch.manual_seed(0)
    return Sentence(TextEncoder("bert-base-chinese", 6, {**SMALL, "initializer_range": 0.4}).eval(), "未见假体松动")


def test_integrated_gradients_are_captums(sentence):
    from captum.attr import IntegratedGradients

    embeddings = sentence.vocabulary(sentence.ids).detach()
    baseline = embeddings.clone()
    baseline[0, 1:-1] = evaluate_words.embedding_of(sentence, "mask_token_id")
    oracle = IntegratedGradients(lambda inputs: sentence.features(inputs)[0] @ IMAGES[1])
    expected = oracle.attribute(embeddings, baseline, n_steps=evaluate_words.STEPS).sum(-1)[0, 1:-1]
    ours = evaluate_words.integrated_from("mask_token_id", sentence, IMAGES)[1]
    torch.testing.assert_close(ours, expected.float(), atol=1e-5, rtol=1e-4)


def test_the_gradient_is_that_of_a_small_step(sentence):
    whole = sentence.vocabulary(sentence.ids).detach().double()
    tower, scale = sentence.tower.double(), 1e-6
    try:
        smaller = whole.clone()
        smaller[0, 3] *= 1 - scale
        with torch.no_grad():
            step = (sentence.features(whole)[0] - sentence.features(smaller)[0])[0] @ IMAGES.double().T / scale
    finally:
        tower.float()
    torch.testing.assert_close(
        evaluate_words.gradient_input(sentence, IMAGES)[:, 2], step.float(), atol=1e-4, rtol=1e-3
    )


def test_shapley_values_add_up_to_the_whole_less_nothing(sentence):
    count = len(sentence.words)
    features = sentence.hidden(np.array([[True] * count, [False] * count]))
    added = evaluate_words.averaged_orders(sentence, IMAGES, orders=3).sum(1)
    torch.testing.assert_close(added, IMAGES @ (features[0] - features[1]))


def test_the_tools_words_are_those_of_few_steps_from_nothing(sentence):
    expected = evaluate_words.integrated_from("", sentence, IMAGES, steps=STEPS)
    torch.testing.assert_close(evaluate_words.default(sentence, IMAGES), expected, rtol=1e-4, atol=1e-6)


def test_a_sentence_without_a_stop_is_one_clause(sentence):
    expected = evaluate_words.one_less(sentence, IMAGES, Sentence.hidden)
    torch.testing.assert_close(evaluate_words.in_clause(sentence, IMAGES), expected)


def test_cut_words_were_never_written(sentence):
    shown = np.array([[False, False, True, True, True, True]])
    with torch.no_grad():
        torch.testing.assert_close(sentence.cut(shown), sentence.tower(texts=["假体松动"]))
        torch.testing.assert_close(sentence.masked(shown), sentence.tower(texts=["[MASK][MASK]假体松动"]))


def test_words_go_and_come_from_the_strongest_on():
    deleted, inserted = evaluate_words.shown_words(np.array([0.1, 0.9, -0.5, 0.3]))
    assert deleted[0].all() and not deleted[-1].any() and (inserted == ~deleted).all()
    assert [int(deleted[:, word].sum()) for word in (1, 3, 0, 2)] == sorted(deleted.sum(0).tolist())


class Counted:
    """A sentence of four words of which the feature says how much of their worth is shown."""

    words, worth = range(4), torch.tensor([4.0, 3.0, 2.0, 1.0])

    def hidden(self, shown):
        return (torch.from_numpy(shown).float() @ self.worth)[:, None]


def test_the_right_order_has_the_best_areas():
    subject = Subject([Counted()], torch.ones(1, 1), [0])
    orders = {"right": [np.array([4.0, 3, 2, 1])], "wrong": [np.array([1.0, 2, 3, 4])]}
    by_method = evaluate_words.areas(subject, orders, Counted.hidden)
    (deletion, insertion), (worse_deletion, worse_insertion) = by_method["right"][0], by_method["wrong"][0]
    assert deletion < worse_deletion and insertion > worse_insertion
    assert deletion + insertion == pytest.approx(10)
