"""An image's card: what stands in it against the result that it is made of, and cards that are none of ours."""

import base64
import json

import cv2
import numpy as np
import pytest
from tiny import tiny_result

from models.class_texts import LONGEST_TEXT
from models.errors import InputError
from models.explain.heatmap import resize_map
from models.explain.words import Word
from models.images.preprocessing import Region
from models.report.cards import (
    LARGEST_SHARE,
    MOST_CELLS,
    MOST_DESCRIPTIONS,
    MOST_POINTS,
    SIDE,
    encode_card,
    largest_resized,
    read_card,
)
from models.results.outlines import Outline, outline_of
from models.results.result import Results


def card_of(*results, outlines=()):
    return json.loads(encode_card(Results(results), outlines))


def picture_of(card):
    """RGB as a reader of JPEG sees it."""
    data = np.frombuffer(base64.b64decode(card["jpeg"]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def levels_of(of_map):
    return np.frombuffer(base64.b64decode(of_map["levels"]), np.uint8).reshape(of_map["grid"])


def drawn(of_map, scale, size, region=None):
    """The heatmap [H, W] as a page draws it: levels resized, times a factor of the map, at most 1."""
    resized = resize_map(levels_of(of_map).astype(np.float32) / 255, size, region)
    return np.minimum(resized * np.float32(of_map[scale]), 1)


# -- the picture ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, small", [((60, 90), [90, 60]), ((900, 5), [5, 900]), ((2000, 2500), [900, 720]), ((5, 4000), [900, 1])]
)
def test_the_picture_is_small_and_the_same_to_the_eye(size, small):
    card = card_of(tiny_result(size=size))
    picture = picture_of(card)
    assert card["size"] == small == [*picture.shape[1::-1]]
    rows, columns = ((np.arange(n) + 0.5) / n for n in (small[1], small[0]))
    if min(small) > 20:  # red grows downwards, green to the right
        np.testing.assert_allclose(picture[..., 0].mean(1), 255 * rows, atol=6)
        np.testing.assert_allclose(picture[..., 1].mean(0), 255 * columns, atol=6)


# -- maps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, region",
    [
        *(((60, 90), None), ((501, 333), None), ((3, 4), None), ((2, 90), None)),
        *(((60, 90), Region(5.2, -3.5, 66.0, 50.7)), ((3, 4), Region(0.5, 0.5, 2.6, 2.1))),
    ],
)
def test_a_drawn_map_is_the_heatmap(size, region):
    """On its own scale and on that of the texts, to half a level."""
    result = tiny_result(targets=(0, 2, 1), size=size)._replace(region=region)
    card = card_of(result)
    assert [of_map["row"] for of_map in card["maps"]] == [0, 1, 2] and card["maps"][0]["grid"] == [3, 4]
    own = [next(result._replace(targets=[0], maps=raw_map[None]).heatmaps()) for raw_map in result.maps]
    for scale, heatmaps in (("own", own), ("peak", result.heatmaps())):
        for of_map, heatmap in zip(card["maps"], heatmaps, strict=True):
            of_page = drawn(of_map, scale, size, region)
            np.testing.assert_array_equal(np.isnan(of_page), np.isnan(heatmap))
            np.testing.assert_allclose(of_page, heatmap, atol=0.5 * of_map[scale] / 255 + 1e-4)


def test_one_map_has_one_scale_and_an_empty_one_none():
    (of_map,) = card_of(tiny_result(targets=(1,)))["maps"]
    assert of_map["own"] == of_map["peak"] >= 1
    result = tiny_result(targets=(0, 1))
    result = result._replace(maps=np.stack([result.maps[0], np.full((3, 4), 7.0, np.float32)]))
    shown, flat = card_of(result)["maps"]
    assert flat["own"] == flat["peak"] == 0 and not levels_of(flat).any()
    assert shown["own"] == shown["peak"] >= 1


def test_methods_keep_their_own_scales():
    maps = card_of(tiny_result(), tiny_result(seed=1)._replace(maps=9 * tiny_result(seed=1).maps))["maps"]
    assert [of_map["row"] for of_map in maps] == [0, 1]
    assert all(1 <= of_map["peak"] == of_map["own"] < 1.2 for of_map in maps)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 7), (14, 9), (40, 40)], ids=str)
@pytest.mark.parametrize("size", [(224, 224), (31, 57), (9, 9), (1, 5)], ids=str)
@pytest.mark.parametrize("region", [None, Region(-4.5, 0.25, 7.5, 40.0)], ids=str)
def test_the_largest_value_on_the_image_without_its_pixels(grid, size, region):
    raw_map = np.random.default_rng(0).normal(size=grid).astype(np.float32)
    expected = np.nanmax(resize_map(raw_map, size, region))
    largest = largest_resized(raw_map, size, region or Region(0.0, 0.0, size[1], size[0]))
    assert largest == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_map_of_very_many_cells_is_made_smaller():
    result = tiny_result()._replace(maps=np.ones((1, 300, 200), np.float32))
    result.maps[0, :150] = 0
    (of_map,) = card_of(result)["maps"]
    assert of_map["grid"] == [MOST_CELLS, MOST_CELLS]
    assert not levels_of(of_map)[:64].any() and (levels_of(of_map)[64:] == 255).all()


# -- region and outlines ----------------------------------------------------------------------


def test_the_region_is_in_shares_of_the_image():
    assert card_of(tiny_result())["region"] == [0, 0, 1, 1]
    region = card_of(tiny_result(size=(60, 90))._replace(region=Region(9.0, -6.0, 45.0, 60.0)))["region"]
    assert region == [0.1, -0.1, 0.5, 1.0]


def test_outlines_are_in_shares_of_the_image():
    mask = np.zeros((60, 90), bool)
    mask[15:30, 9:45] = True
    (of_text,) = card_of(tiny_result(size=(60, 90)), outlines=[outline_of(2, mask)])["outlines"]
    (contour,) = of_text["contours"]
    edges = min(contour[::2]), max(contour[::2]), min(contour[1::2]), max(contour[1::2])
    assert of_text["text"] == 2 and edges == (0.1, 0.5, 0.25, 0.5)


def test_an_outline_of_few_points_is_where_that_of_many_is():
    noise = np.random.default_rng(0).random((400, 300)) < 0.03
    many, few = outline_of(0, noise), outline_of(0, noise, most=MOST_POINTS)
    assert sum(map(len, few.contours)) <= MOST_POINTS < sum(map(len, many.contours))
    for edge in (np.min, np.max):
        edges = (edge(np.concatenate(outline.contours), axis=0) for outline in (many, few))
        np.testing.assert_allclose(*edges, atol=10)


# -- words ------------------------------------------------------------------------------------


def test_a_card_has_all_letters_of_the_descriptions_with_what_the_words_add():
    result = tiny_result(targets=(2, 0))
    weighed = [Word("裂", -0.5, 2, 3, 1), Word("骨折", 0.1234567, 1, 3, 0)], [Word("松", 0.25, 0, 1)]
    texts = ["松动，</script>", "b", ("有骨折。", "见：裂")]
    result = result._replace(question=result.question._replace(texts=texts), words=list(weighed))
    several = [[["有", None], ["骨折", 0.123457], ["。", None]], [["见：", None], ["裂", -0.5]]]
    one = [[["松", 0.25], ["动，</script>", None]]]
    texts = [{"text": 2, "of": 2, "descriptions": several}, {"text": 0, "of": 1, "descriptions": one}]
    expected = {"peak": 0.5, "texts": texts}
    assert card_of(result)["words"] == expected
    assert card_of(result, result)["words"] == expected  # of several methods the same
    assert card_of(result._replace(words=None))["words"] is None


def test_a_card_has_the_descriptions_whose_words_add_most():
    texts = [tuple(f"词{number}" for number in range(MOST_DESCRIPTIONS + 2)), "b", "c"]
    weighed = [Word("词", 0.01 * number - 0.5 * (number == 0), 0, 1, number) for number in range(len(texts[0]))]
    result = tiny_result(targets=(0,))
    words = card_of(result._replace(question=result.question._replace(texts=texts), words=[weighed]))["words"]
    (of_text,) = words["texts"]
    assert [one[1][0] for one in of_text["descriptions"]] == [str(number) for number in range(2, len(weighed))]
    assert of_text["of"] == len(weighed) and words["peak"] == 0.5  # of all of them, as in the figure


def test_a_card_of_before_there_were_words_is_read(card):
    expected = read(card)
    del card["words"]
    assert read(card) != expected and json.loads(read(card))["words"] is None


# -- read again -------------------------------------------------------------------------------

OUTLINES = [Outline(0, [np.array([[1.0, 2.0], [30.5, 2.0], [30.5, 40.0]])]), Outline(2, [])]


@pytest.fixture
def card():
    return card_of(weighed_result(), outlines=OUTLINES)


def weighed_result():
    return tiny_result(targets=(0, 1))._replace(words=[[Word("正", 0.1, 0, 1), Word("常", -0.2, 1, 2)], []])


def read(card, texts=3, rows=2):
    return read_card(json.dumps(card).encode(), texts, rows)


def test_a_card_is_read_as_it_was_written(card):
    data = encode_card(Results([weighed_result()]), OUTLINES)
    assert read_card(data, 3, 2) == data.decode("ascii") == read(card)


def test_nothing_else_of_a_card_is_taken_over(card):
    expected = read(card)
    card["maps"][0]["x"] = card["outlines"][0]["x"] = card["words"]["x"] = card["words"]["texts"][0]["x"] = card[
        "</script>"
    ] = "<img src=x>"
    assert read(card) == expected


def jpeg(width, height):
    return base64.b64encode(cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1].tobytes()).decode()


def text_of(card):
    return card["words"]["texts"][0]


def piece_of(card):
    return text_of(card)["descriptions"][0][0]


HOSTILE = {
    "another size": lambda card: card.update(size=[89, 60]),
    "a large picture": lambda card: card.update(size=[SIDE + 1, 1], jpeg=jpeg(SIDE + 1, 1)),
    "a small file of a large picture": lambda card: card.update(jpeg=jpeg(90, 600)),
    "a picture of a PNG": lambda card: card.update(jpeg=base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(99)).decode()),
    "no frame": lambda card: card.update(jpeg=base64.b64encode(b"\xff\xd8" + b"\xff\xe0\0\2" * 999).decode()),
    "no base64": lambda card: card.update(jpeg=card["jpeg"].replace("/", "<", 1)),
    "base64 with blanks": lambda card: card.update(jpeg=card["jpeg"] + "\n"),
    "half a base64": lambda card: card.update(jpeg=card["jpeg"] + "A"),
    "base64 with an end too many": lambda card: card["maps"][0].update(levels=card["maps"][0]["levels"] + "="),
    "no picture": lambda card: card.pop("jpeg"),
    "sides of another kind": lambda card: card.update(size=[90.0, True]),
    "an empty region": lambda card: card["region"].__setitem__(2, 0),
    "a region far out": lambda card: card["region"].__setitem__(2, LARGEST_SHARE + 1),
    "a region of texts": lambda card: card.update(region=list("0011")),
    "five edges": lambda card: card["region"].append(1),
    "a map of no row": lambda card: card["maps"][0].update(row=2),
    "more maps than rows": lambda card: card["maps"].append(card["maps"][0]),
    "fewer levels": lambda card: card["maps"][0].update(levels="AAAA"),
    "a huge grid": lambda card: card["maps"][0].update(grid=[MOST_CELLS + 1, 1], levels="A" * 172),
    "a grid below 0": lambda card: card["maps"][0].update(grid=[-3, -4]),
    "a peak that is none": lambda card: card["maps"][0].update(peak="1"),
    "a peak below 0": lambda card: card["maps"][0].update(peak=-1),
    "a peak of thousands of digits": lambda card: card["maps"][0].update(own=10**4000),
    "an outline of no text": lambda card: card["outlines"][0].update(text=3),
    "half a point": lambda card: card["outlines"][0]["contours"][0].append(0.5),
    "a point far out": lambda card: card["outlines"][0]["contours"][0].extend([0.5, 1e9]),
    "a point that is none": lambda card: card["outlines"][0]["contours"][0].extend([0.5, "</script>"]),
    "very many points": lambda card: card["outlines"][0]["contours"].append([0.5] * (2 * MOST_POINTS)),
    "very many contours": lambda card: card["outlines"][0].update(contours=[[]] * (MOST_POINTS + 1)),
    "words of no text": lambda card: text_of(card).update(text=3),
    "words of more texts than there are": lambda card: card["words"].update(texts=card["words"]["texts"] * 2),
    "words without text": lambda card: text_of(card).pop("text"),
    "words without a peak": lambda card: card["words"].pop("peak"),
    "a peak of words below 0": lambda card: card["words"].update(peak=-0.1),
    "words of a list": lambda card: card.update(words=[card["words"]]),
    "descriptions beyond counting": lambda card: text_of(card).update(of=10**9),
    "no descriptions": lambda card: text_of(card).update(descriptions=None),
    "very many descriptions": lambda card: text_of(card).update(descriptions=[[]] * (MOST_DESCRIPTIONS + 1)),
    "very many words": lambda card: text_of(card).update(descriptions=[[["", 0]] * (LONGEST_TEXT + 1)]),
    "a very long word": lambda card: piece_of(card).__setitem__(0, "长" * (LONGEST_TEXT + 1)),
    "a word that is none": lambda card: piece_of(card).__setitem__(0, ["<b>"]),
    "a word alone": lambda card: piece_of(card).pop(),
    "three of a word": lambda card: piece_of(card).append(0),
    "a contribution that is none": lambda card: piece_of(card).__setitem__(1, "0.1"),
    "a contribution that is true": lambda card: piece_of(card).__setitem__(1, True),
    "a contribution far out": lambda card: piece_of(card).__setitem__(1, 1e7),
    "a contribution of thousands of digits": lambda card: piece_of(card).__setitem__(1, -(10**4000)),
    "maps that are none": lambda card: card.update(maps={"0": 1}),
    "maps of lists": lambda card: card.update(maps=[[]]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_card_is_refused(card, change):
    change(card)
    with pytest.raises(InputError, match="卡片"):
        read(card)


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\xff\xfe", b'{"size": NaN}', b"9" * 5000])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(InputError, match="卡片"):
        read_card(data, 3, 2)
