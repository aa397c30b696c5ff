"""What a question asks: the other texts' directions and weights, what is taken off, what does not go together."""

import math

import pytest
import torch
from test_gradcam import pictures, texts
from test_methods import Pooled
from tiny import Clip
from torch.nn import functional as F

from clip_gradcam_visualization import CLIPGradCAM, explain
from models.errors import InputError
from models.explain.question import (
    OFF_THE_DIRECTION,
    Others,
    Question,
    Setting,
    TargetScores,
    check_question,
    logits_of,
    others_directions,
    take_off,
    with_choices,
)

# -- the other texts --------------------------------------------------------------------------


def test_the_others_are_weighted_by_a_softmax_without_the_target():
    """Logits 2 ln 1, 2 ln 2, 2 ln 5: of the others of the first text the weights are 2/7 and 5/7."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [4.0, 4.0, 1.0]]).log() * 2
    directions = others_directions(torch.eye(3), logits, torch.tensor([[0, 2], [1, 0]]))
    expected = [[[0, 2 / 7, 5 / 7], [1 / 3, 2 / 3, 0]], [[4 / 5, 0, 1 / 5], [0, 4 / 5, 1 / 5]]]
    torch.testing.assert_close(directions, torch.tensor(expected))


def test_of_two_texts_the_other_has_all_the_weight():
    features = texts(2)
    directions = others_directions(features, torch.tensor([[90.0, -90.0]]), torch.tensor([[0, 1]]))
    torch.testing.assert_close(directions[0], features.flip(0))


def test_one_text_has_no_others():
    with pytest.raises(InputError, match="--subtract-others.*至少需要两个"):
        others_directions(texts(1), torch.zeros(1, 1), torch.tensor([[0]]))
    net = Pooled()
    with pytest.raises(InputError, match="--subtract-others.*至少需要两个"):
        CLIPGradCAM(Clip(net), net.conv, others=OFF_THE_DIRECTION).text_maps(pictures(1), texts(1), 0)


def test_a_share_of_what_the_others_hold_is_taken_off_after_the_relu():
    own, others = torch.tensor([3.0, 3.0, -3.0, 1.0]), torch.tensor([2.0, -2.0, 2.0, 4.0])
    torch.testing.assert_close(take_off(own, others, 0.4), torch.tensor([2.2, 3.0, -0.8, -0.6]))


def test_logits_are_the_models_else_of_its_temperature_else_of_the_usual_one(clip):
    similarities = torch.tensor([[0.2, -0.1]])
    net = Clip(Pooled())
    torch.testing.assert_close(logits_of(net, similarities), similarities / 0.07)
    net.temperature = torch.tensor(0.5)
    torch.testing.assert_close(logits_of(net, similarities), similarities / 0.5)
    net.logits = None
    torch.testing.assert_close(logits_of(net, similarities), similarities / 0.5)
    net.logits, net.probabilities = lambda cosines: 9 * cosines + 1, lambda cosines: cosines
    torch.testing.assert_close(logits_of(net, similarities), 9 * similarities + 1)
    torch.testing.assert_close(logits_of(clip, similarities).detach(), similarities / clip.temperature.item())


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, [0.1, 0.2]], ids=str)
def test_a_temperature_that_says_nothing_is_named_before_it_weighs_texts(temperature):
    net = Clip(Pooled())
    net.temperature = torch.tensor(temperature)
    with pytest.raises(InputError, match="temperature 是.*正数"):
        CLIPGradCAM(net, net.image_encoder.conv, others=OFF_THE_DIRECTION).text_maps(pictures(1), texts(3), 0)


def test_scores_of_directions_are_each_images_own():
    """[B, T, D] of a batch; of one image for all of its variants."""
    directions = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    embeddings = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    net = Pooled()
    for similarity in ("cosine", "dot"):
        scores = TargetScores(CLIPGradCAM(Clip(net), net.conv, similarity=similarity)._scores, directions)
        seen = F.normalize(embeddings, dim=-1) if similarity == "cosine" else embeddings
        expected = [[[(e @ d).item() for d in of_image] for e in seen] for of_image in directions]
        torch.testing.assert_close(scores(embeddings), torch.tensor([expected[0][0], expected[1][1]]))
        torch.testing.assert_close(scores(embeddings, 1), torch.tensor(expected[1]))


# -- what goes together -----------------------------------------------------------------------


def question(count=3, **options):
    names = [f"文本{i}" for i in range(count)]
    return Question(names, names, **options)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"subtract_others": True, "contrast": 0.6}, "--contrast.*--subtract-others.*二选一"),
        ({"subtract_others": True, "count": 1}, "--subtract-others.*至少需要两个"),
        ({"method": "gradcan", "subtract_others": None}, "gradcan"),
        ({"method": None, "similarity": "l2"}, "cosine 或 dot"),
        ({"subtract_others": "no"}, "subtract_others 应是 True、False 或 None"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        check_question(question(**asked))


def test_a_question_may_leave_all_to_the_defaults():
    check_question(question(method=None, similarity=None, subtract_others=None, contrast=0.6))
    check_question(question(1, method="all", similarity=None, subtract_others=None))
    check_question(question(2, subtract_others=True))


def test_explain_refuses_before_it_looks_at_the_image(clip):
    with pytest.raises(InputError, match="二选一"):
        explain(clip, "nowhere.png", ["甲", "乙", "丙"], contrast=True, subtract_others=True)


@pytest.mark.parametrize("default", [Others(0.2), None])
@pytest.mark.parametrize("asked", [None, True, False])
def test_a_choice_stands_before_the_default_and_no_text_is_taken_off_where_none_is_known(default, asked):
    setting, way = Setting("layercam", "dot", ["layer"], default), Others(0.2)
    changed = with_choices(setting, question(similarity=None, subtract_others=asked), way)
    assert changed == setting._replace(others={None: default, True: way, False: None}[asked])
    text_free = setting._replace(method="eigencam")
    text_free = with_choices(text_free, question(similarity="cosine", subtract_others=asked), way)
    assert text_free == Setting("eigencam", "cosine", ["layer"])


def test_what_is_taken_off_is_a_share_or_nothing():
    assert Setting("gradcam").subtracted == 0 and Setting("gradcam", others=Others(0.2)).subtracted == 0.2


def test_how_many_layers_are_fused():
    assert Setting("gradcam", layers=["a"]).fused_layers == 1 and Setting("gradcam", layers="abc").fused_layers == 3
    assert Setting("legrad", layers=["a", "b"]).fused_layers == Setting("rollout").fused_layers == 1


def test_the_usual_temperature_weighs_a_likelier_text_more():
    """What the weights are for: cosines of 0.3 and 0.2 at 0.07, twice as warm, are 2 to 1."""
    directions = others_directions(torch.eye(3), torch.tensor([[0.9, 0.3, 0.2]]) / 0.07, torch.tensor([[0]]))
    assert (directions[0, 0, 1] / directions[0, 0, 2]).item() == pytest.approx(math.exp(0.1 / 0.14), rel=1e-5)
