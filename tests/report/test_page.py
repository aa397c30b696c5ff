"""The report's page in a browser, under file://: controls, the keyboard, marks, print, languages, hostile names."""

import base64
import csv
import io
import itertools
import json
import re
import shutil

import cv2
import numpy as np
import pytest
from report_documents import (
    HOSTILE,
    OPACITY,
    colour_tables,
    encode_map,
    levels,
    make_document,
    ramp,
    write_report,
)

from models.explain.heatmap import show_cam_on_image, to_heatmap
from models.images.preprocessing import Region
from models.report.page import card_file, page_parts, page_words
from models.results.shading import line_shade, shade

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHINESE = re.compile("[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Report:
    """An open page, and what the tests ask of it."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.problems, self.requests = [], []
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script("window.print = () => { window.printed = true; }")

    def open(self, hash=""):
        self.page.goto("about:blank")
        self.page.goto(self.address + hash)
        self.settle()

    def settle(self):
        """Wait until the page has followed the state and drawn the cards in view."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def choose(self, field, value):
        self.page.select_option(f'#screen [data-field="{field}"]', value)
        self.settle()

    def type(self, field, text):
        self.page.fill(f'#screen [data-field="{field}"]', text)
        self.settle()

    def click(self, selector):
        self.page.click(selector)
        self.settle()

    def count(self):
        """How many images are shown, as the page says it."""
        return int(re.search(r"\d+", self.page.inner_text("#count"))[0])

    def names(self):
        return self.page.locator("#cards .name").all_inner_texts()

    def drawn(self, selector="#cards canvas", number=0):
        """RGB uint8 [h, w, 3] of a canvas, once there is something in it."""
        canvas = self.page.locator(selector).nth(number)
        self.page.locator(f"{selector}[style*=width]").nth(number).wait_for(state="attached")
        self.settle()
        script = """canvas => {
            const copy = document.createElement("canvas");
            [copy.width, copy.height] = [canvas.width, canvas.height];
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const bytes = context.getImageData(0, 0, copy.width, copy.height).data;
            return [copy.width, copy.height, btoa(Array.from(bytes, (value) => String.fromCharCode(value)).join(""))];
        }"""
        width, height, pixels = canvas.evaluate(script)
        return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)[..., :3]

    def focused(self):
        return self.page.evaluate("() => document.activeElement.id || document.activeElement.className")


@pytest.fixture
def open_report(browser, tmp_path):
    """A function that writes a report, opens it and returns it; what a page must never do is checked at the end."""
    reports = []

    def opened(document, cards, hash="", viewport=(1366, 650)):
        context = browser.new_context(viewport=dict(zip(("width", "height"), viewport)), accept_downloads=True)
        report = Report(context.new_page(), write_report(tmp_path, document, cards))
        reports.append(report)
        report.open(hash)
        return report

    yield opened
    for report in reports:
        assert report.problems == []
        assert [url for url in report.requests if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
        report.page.context.close()


# -- the bytes


def test_names_and_cards_are_data_in_the_bytes():
    document, cards = make_document(1)
    document["images"][0]["name"] = "".join(HOSTILE) + "\udcff"
    html = b"".join(page_parts(document, cards)).decode()
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html)
    assert len(data) == 2 and not any(set(text) & set("<>&\u2028\u2029") for text in data)
    assert json.loads(data[0])["images"] == document["images"] and json.loads(data[1]) == json.loads(cards[0])
    assert b"".join(page_parts(document, cards)).decode() == html


def test_a_file_of_cards_is_one_call_and_holds_a_place_for_each_image():
    card = json.dumps({"jpeg": "</script>\u2028"}, ensure_ascii=False)
    (call,) = re.findall(r"addCards\(200, (.*)\);\n", b"".join(card_file(200, [card, None])).decode(), re.DOTALL)
    assert "<" not in call and json.loads(re.sub(r",\n]", "]", call)) == [json.loads(card), None]


def test_all_that_the_page_says_has_english_with_the_same_holes():
    words = page_words()
    assert {"打印", "显示 {} / {} 张", "跳到图像", "，"} <= set(words)
    assert [word for word, english in words.items() if CHINESE.search(english)] == []
    assert [word for word, english in words.items() if word.count("{}") != english.count("{}")] == []


# -- drawing


def python_overlay(picture, cells, blend, alpha, scale=None, region=None):
    """What Python draws: show_cam_on_image with constant opacity, else by the opacity's table; float [H, W, 3]."""
    heatmap = to_heatmap(cells.astype(np.float32), picture.shape[:2], scale, region)
    if blend == "constant":
        return 255 * show_cam_on_image(picture, heatmap, alpha=alpha)
    inside = np.rint(np.nan_to_num(heatmap).clip(0, 1) * 255).astype(int)
    share = np.where(np.isnan(heatmap), 0, alpha * np.array(OPACITY["heat"])[inside])[..., None]
    return share * colour_tables()["jet"][inside] + (1 - share) * picture


@pytest.mark.parametrize("blend, alpha", [("constant", 0.4), ("heat", 0.6), ("heat", 1.0)])
def test_a_drawn_card_has_the_pixels_of_pythons_overlay(open_report, blend, alpha):
    document, cards = make_document(1)
    card = json.loads(cards[0])
    cells = levels(7, 5, seed=3)
    own = 255 / float(to_heatmap(cells.astype(np.float32), (90, 120), scale=1.0).max())
    cards[0] = json.dumps({**card, "maps": [encode_map(0, cells, own=own)]})
    document["choice"] |= {"blend": blend, "alpha": alpha}
    drawn = open_report(document, cards, "#outline=0").drawn()
    picture = cv2.resize(ramp(), drawn.shape[1::-1])
    expected = python_overlay(picture, cells, blend, alpha, scale=255 / own)
    assert np.abs(drawn - expected).max() <= 3


def test_a_map_lies_on_its_region_and_shares_a_scale(open_report):
    document, cards = make_document(1, targets=[0, 1])
    cells = levels(4, 4, seed=5)
    content = {**json.loads(cards[0]), "region": [0.25, 0, 0.75, 1]}
    cards[0] = json.dumps({**content, "maps": [encode_map(0, cells), encode_map(1, cells, peak=0.5)]})
    report = open_report(document, cards, "#outline=0&text=1")
    for scale, factor in (("shared", 2.0), ("own", 1.0)):
        report.choose("scale", scale)
        drawn = report.drawn()
        height, width = drawn.shape[:2]
        region = Region(0.25 * width, 0, 0.75 * width, height)
        expected = python_overlay(cv2.resize(ramp(), (width, height)), cells, "heat", 0.6, 255 * factor, region)
        assert np.abs(drawn - expected).max() <= 3
    assert (drawn[:, : width // 4 - 1] == drawn[:, : width // 4 - 1, :1]).all()  # grey beside it


def test_the_display_controls_act_on_all_cards_at_once(open_report):
    report = open_report(*make_document(6, targets=range(4)), "#outline=0")
    before = report.drawn(number=4)

    def changed():
        nonlocal before
        after = report.drawn(number=4)
        is_other = after.shape != before.shape or (after != before).any()
        before = after
        return is_other

    for field, value in (("blend", "constant"), ("colormap", "inferno"), ("text", "2"), ("size", "300")):
        report.choose(field, value)
        assert changed(), field
    report.click('#display [data-field="heat"]')
    assert changed() and (before == before[..., :1]).all()
    report.click('#display [data-field="heat"]')
    assert changed()
    report.page.locator('[data-field="alpha"]').evaluate(
        "slider => { slider.value = 0.1; slider.dispatchEvent(new Event('input')); }"
    )
    report.settle()
    assert changed()


def test_the_outline_is_drawn_white_on_black_and_can_be_left_out(open_report):
    document, cards = make_document(1)
    report = open_report(document, cards, "#heat=0&open=id0")
    with_outline = report.drawn("#opened canvas")
    report.press("o")
    without = report.drawn("#opened canvas")
    rows, columns = np.nonzero((with_outline != without).any(axis=2))
    height, width = without.shape[:2]
    assert np.allclose([columns.min() / width, columns.max() / width], [0.3, 0.6], atol=0.015)
    assert np.allclose([rows.min() / height, rows.max() / height], [0.3, 0.6], atol=0.015)
    on_line = with_outline[round(0.45 * height), round(0.3 * width) - 4 : round(0.3 * width) + 4, 0]
    assert on_line.max() > 240 and on_line.min() < 80


def test_a_text_without_a_heatmap_shows_the_picture_and_says_so(open_report):
    report = open_report(*make_document(4), "#text=0&outline=0")
    notes = report.page.locator("#cards .fourth").all_inner_texts()
    assert ["没有解释这段文本" in note for note in notes] == [False, True, True, True]
    assert (report.drawn(number=1) == report.drawn(number=1)[..., :1]).all()


def test_the_descriptions_of_a_class_can_be_read_each_on_its_line(open_report):
    document, cards = make_document(2)
    document["texts"][1] = ["<b>可见", "移位。\n"]
    report = open_report(document, cards, "#open=id0")
    titles = [bar.get_attribute("title") for bar in report.page.locator("#opened button.bar").all()]
    assert titles[1].split("\n")[:2] == ["<b>可见", "移位。\\u000a"]
    assert titles[2].split("\n")[0] == document["texts"][2][0]


# -- filters and sorting


def expected_ids(document, passes):
    return [image["name"] for image in document["images"] if passes(image)]


FILTERS = {  # field: (kind, value, what passes)
    "q": ("type", "0007", lambda image: "0007" in image["name"]),
    "predicted": ("choose", "2", lambda image: image["predicted"] == 2),
    "label": ("choose", "1", lambda image: 1 in image["labels"]),
    "right": (
        "choose",
        "0",
        lambda image: image["predicted"] is not None and image["predicted"] not in image["labels"],
    ),
    "case": ("choose", "right_outside", lambda image: any(row["case"] == "right_outside" for row in image["rows"])),
    "hit": ("choose", "1", lambda image: any(row["case"] and row["distance"] <= 15 for row in image["rows"])),
    "warning": ("choose", "1", lambda image: any(row["warning"] for row in image["rows"])),
    "failed": ("choose", "1", lambda image: image["error"]),
    "pmin": ("type", "89.9", lambda image: image["probabilities"] and max(image["probabilities"]) >= 0.899),
    "smax": ("type", "0.3", lambda image: any(row["specificity"] <= 0.3 for row in image["rows"])),
    "column0": ("type", "43", lambda image: "43" in image["values"][0]),
    "column1": ("choose", "甲", lambda image: image["values"][1] == "甲"),
}


def test_each_filter_shows_its_images_and_is_taken_off_again(open_report):
    document, cards = make_document(24, failed=[5])
    report = open_report(document, cards, "#size=150", viewport=(1366, 3000))
    for field, (kind, value, passes) in FILTERS.items():
        getattr(report, kind)(field, value)
        names = expected_ids(document, passes)
        assert len(report.names()) == report.count() == len(names) > 0, field
        assert report.names()[0][:4] == names[0][:4], field
        report.click("#reset")
        assert report.count() == 24
    report.choose("warning", "1")
    report.choose("predicted", "1")
    assert report.page.locator(".chip").count() == 2
    report.click(".chip >> nth=0")
    assert report.count() == sum(image["predicted"] == 1 for image in document["images"])
    report.type("q", "no such name")
    assert report.count() == 0 and report.page.is_visible("#nothing")


def test_sorting_puts_numbers_in_order_and_what_has_none_last(open_report):
    document, cards = make_document(12, failed=[5])
    report = open_report(document, cards, "#size=150", viewport=(1366, 2000))
    specificities = {image["name"]: image["rows"][0]["specificity"] for image in document["images"] if image["rows"]}
    visible = {image["name"]: image["name"] for image in document["images"]}
    report.choose("sort", "m0")
    assert report.names() == sorted(specificities, key=specificities.get) + ["0005.png"]
    report.click('[data-field="desc"]')
    assert report.names() == sorted(specificities, key=lambda name: -specificities[name]) + ["0005.png"]
    report.choose("sort", "name")
    assert report.names() == sorted(visible, reverse=True, key=lambda name: (name[0] != "<", name))


def test_a_cell_of_the_confusion_matrix_and_a_class_are_filters(open_report):
    document, cards = make_document(24, failed=[5])
    report = open_report(document, cards)
    shown = {
        cell.get_attribute("data-cell"): int(cell.inner_text())
        for cell in report.page.locator(".confusion button").all()
    }
    images = [image for image in document["images"] if not image["error"]]
    pairs = [(image["predicted"] if image["predicted"] in image["labels"] else image["labels"][0]) for image in images]
    keys = [f"{truth},{image['predicted']}" for truth, image in zip(pairs, images)]
    assert shown == {key: keys.count(key) for key in keys}
    report.click('[data-cell="1,2"]')
    assert report.count() == shown["1,2"]
    report.click('[data-cell="1,2"]')
    assert report.count() == 24
    report.click(".classes tbody tr:last-child th button")
    assert report.count() == sum(3 in image["labels"] for image in document["images"])


def test_the_address_keeps_the_state(open_report):
    report = open_report(*make_document(24))
    report.choose("predicted", "1")
    report.choose("sort", "m0")
    report.click('#display [data-field="heat"]')
    report.page.wait_for_timeout(400)
    address = report.page.evaluate("() => location.hash")
    assert address == "#heat=0&predicted=1&sort=m0"
    names = report.names()
    report.open(address)
    assert (
        report.names() == names and report.page.get_attribute('#display [data-field="heat"]', "aria-pressed") == "false"
    )
    report.open("#predicted=99&alpha=x&text=constructor&open=nobody&__proto__=1&sort=none")
    assert report.count() == 24


def test_arrows_go_over_the_confusion_matrix(open_report):
    report = open_report(*make_document(24))
    stops = report.page.locator(".confusion button").evaluate_all("cells => cells.map(cell => cell.tabIndex)")
    assert sorted(stops)[-2:] == [-1, 0]  # the Tab key comes by once
    report.page.focus('[data-cell="0,0"]')
    report.press("ArrowDown", "ArrowRight")
    assert report.page.evaluate("() => document.activeElement.dataset.cell") == "1,1"
    report.press("Enter")
    assert 0 < report.count() < 24
    assert report.page.evaluate("() => document.activeElement.dataset.cell") == "1,1"  # it is drawn anew, focus stays


def test_methods_and_groups_of_the_evaluation_are_chosen(open_report):
    document, cards = make_document(4)
    document["settings"] += [{"zh": "Grad-CAM", "en": "Grad-CAM"}]
    for image in document["images"]:
        image["rows"] += [{**image["rows"][0], "setting": 1, "specificity": 1.25}]
    cards = [json.loads(card) for card in cards]
    cards = [json.dumps({**card, "maps": [*card["maps"], encode_map(1, levels(3, 3, 7))]}) for card in cards]
    group = {"split": None, "overall": {}, "macro": {}, "classes": {}}
    numbers = {"n": 3, "value": 0.5, "low": 0.25, "high": 0.75, "chance": 0.125}
    second = {**group, "setting": "Grad-CAM", "overall": {"pointing": numbers}}
    document["evaluation"] = {"groups": [{**group, "setting": document["settings"][0]["zh"]}, second]}
    report = open_report(document, cards, "#outline=0")
    before = report.drawn()
    report.press(".")
    assert (report.drawn() != before).any()
    assert report.page.input_value('#display [data-field="setting"]') == "1"
    report.page.select_option("#summary select", "1")
    report.settle()
    line = report.page.locator(".classes .several").first.inner_text().split()
    assert line == ["全部", "4", "4", "0.50", "[0.25,", "0.75]", "0.13"]
    report.press("ArrowRight")
    report.open("#setting=1&open=id0")
    assert "1.25" in report.page.inner_text("#facts dl")


# -- the words of the explained text

DESCRIPTIONS = [[["股骨", 0.05], ["，", None], ["未见", -0.1], ["骨折", 0.0]], [["<b>", 0.0123], ["\u202e&", -0.002]]]
OTHER_TEXT = [[["正常", 0.2]]]


def with_words(document, cards, *words):
    """The cards with the words of text 0, 1, ..., each a list of descriptions; 0.2 has the full colour."""
    of_texts = [{"text": text, "of": len(of_text), "descriptions": of_text} for text, of_text in enumerate(words)]
    words = {"peak": 0.2, "texts": of_texts}
    return document, [card and json.dumps({**json.loads(card), "words": words}) for card in cards]


def colours_of(locator):
    """(background, line below) of each element, #rrggbb; None where there is no line."""
    script = "nodes => nodes.map(getComputedStyle).map(style => [style.backgroundColor, style.borderBottomColor])"
    pairs = locator.evaluate_all(script)
    return [tuple(None if "rgba" in colour else as_hexadecimal(colour) for colour in pair) for pair in pairs]


def as_hexadecimal(colour):
    return "#" + bytes(map(int, re.findall(r"\d+", colour))).hex()


def test_the_words_of_the_shown_text_have_the_colours_of_pythons_figures(open_report):
    report = open_report(*with_words(*make_document(1, targets=[0, 1]), DESCRIPTIONS, OTHER_TEXT), "#open=id0&text=0")
    report.page.locator("#facts .word").first.wait_for()
    paragraphs = report.page.locator(".shaded p").all_inner_texts()
    assert paragraphs == ["股骨，未见骨折", "<b>\\u202e&"]
    values = [value for description in DESCRIPTIONS for _, value in description if value is not None]
    expected = [(shade(value, 0.2), line_shade(value, 0.2)) for value in values]  # the texts of an image share a scale
    assert colours_of(report.page.locator("#facts .word")) == expected
    steps = [(step - 6) / 6 for step in range(13)]
    legend = [(shade(share, 1.0), line_shade(share, 1.0)) for share in steps]
    assert colours_of(report.page.locator("#facts .shades > span")) == legend
    assert report.page.inner_text("#facts section .legend").split() == ["反对", "-0.2", "+0.2", "支持"]
    report.press("2")
    assert report.page.locator(".shaded p").all_inner_texts() == ["正常"]
    report.press("z")
    report.page.locator("#facts .word").first.wait_for()
    assert report.page.inner_text("#facts section .legend").split() == ["against", "-0.2", "+0.2", "for"]


def test_a_word_that_is_pointed_at_shows_its_number_and_rank(open_report):
    report = open_report(*with_words(*make_document(2, targets=[0, 1]), DESCRIPTIONS, OTHER_TEXT), "#open=id0&text=0")
    report.page.locator("#facts .word").first.wait_for()
    pointed = lambda: report.page.inner_text(".pointed")  # noqa: E731
    rest = pointed()
    for word, sentence in (
        ("未见", "未见：贡献 -0.1，名次 5 / 5（1 最支持）"), ("<b>", "<b>：贡献 +0.012，名次 2 / 5（1 最支持）"),
        ("骨折", "骨折：贡献 +0，名次 3 / 5（1 最支持）"),
    ):  # fmt: skip
        report.page.hover(f"#facts .word >> text='{word}'")
        assert pointed() == sentence
    report.page.mouse.move(5, 5)
    assert pointed() == rest
    report.page.focus("#facts .bars button >> nth=-1")
    report.press("Tab")
    assert pointed().startswith("股骨：贡献 +0.05，名次 1 / 5")
    report.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
    assert pointed().startswith("<b>：") and report.page.inner_text("#opened-name") == "0000.png"
    report.press("h")  # the facts are made anew
    assert pointed().startswith("<b>：")
    report.press("Tab", "Shift+Tab")
    assert pointed().startswith("<b>：")  # one stop, where one was
    report.press("Tab")
    assert pointed() == rest


def test_words_are_printed_and_what_has_none_shows_none(open_report):
    document, cards = with_words(*make_document(2, targets=[0, 1]), DESCRIPTIONS, OTHER_TEXT)
    plain = json.dumps({**json.loads(cards[1]), "words": None})
    report = open_report(document, [cards[0], plain], "#open=id0&text=0")
    report.page.locator("#facts .word").first.wait_for()
    report.press("p")
    report.page.locator("#print .item").first.wait_for(state="attached")
    assert report.page.locator("#print .word").count() == 5
    report.page.emulate_media(media="print")
    shown = report.page.inner_text("#print section")
    assert "未见" in shown and "+0.2 支持" in shown and "指着" not in shown
    report.page.emulate_media(media="screen")
    report.open("#open=id1&text=0")
    report.drawn("#opened canvas")
    assert report.page.locator(".word, .shades, .pointed").count() == 0
    report.open("#open=id0&text=3")  # a text that was not explained
    report.drawn("#opened canvas")
    assert report.page.locator(".word, .shades, .pointed").count() == 0


def test_the_page_says_that_descriptions_are_left_out_and_what_a_contrast_is(open_report):
    document, cards = with_words(*make_document(1, targets=[0]), DESCRIPTIONS)
    card = json.loads(cards[0])
    card["words"]["texts"][0]["of"] = 12
    report = open_report({**document, "contrast": True}, [json.dumps(card)], "#open=id0&text=0")
    report.page.locator("#facts .word").first.wait_for()
    section = report.page.inner_text("#facts section")
    assert "合计贡献最大的描述，至多 2 段" in section and section.startswith("词语对“不同于其他文本”的贡献")


# -- the opened image, keyboard, marks


def test_the_keyboard_alone_opens_marks_comments_and_closes(open_report):
    document, cards = make_document(20, targets=range(4))
    report = open_report(document, cards)
    report.press("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowDown")
    assert report.focused() == "card"
    label = report.page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert label.startswith("0005.png")
    report.press("Enter")
    assert report.page.is_visible("#opened") and report.page.inner_text("#opened-name") == "0005.png"
    report.press("ArrowRight", "m", "2")
    assert report.page.inner_text("#opened-name") == "0006.png"
    assert report.page.get_attribute('[data-mark="disagree"]', "aria-pressed") == "true"
    report.press("c")
    report.settle()
    report.page.keyboard.type("h看不清 1 m p")
    assert report.focused() == "comment"
    assert report.page.get_attribute('#display [data-field="heat"]', "aria-pressed") == "true"
    report.press("Escape")
    assert report.page.is_visible("#opened")
    report.press("3", "h")
    assert report.page.input_value('#display [data-field="text"]') == "2"
    assert report.page.get_attribute('#display [data-field="heat"]', "aria-pressed") == "false"
    report.press("Escape")
    assert not report.page.is_visible("#opened") and report.focused() == "card"
    assert "不同意" in report.page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    report.press("0")
    assert report.page.input_value('#display [data-field="text"]') == "predicted"
    report.press("?")
    assert report.page.is_visible("#help")
    report.press("Escape", "/")
    assert report.page.evaluate("() => document.activeElement.dataset.field") == "q"
    report.press("h")
    assert report.page.input_value('[data-field="q"]') == "h"


def spoken(report):
    """What the focused card is called."""
    return report.page.evaluate("() => document.activeElement.getAttribute('aria-label')")


def test_one_key_finds_what_matters_and_goes_to_its_first_image(open_report):
    document, cards = make_document(24, targets=range(4), failed=[5])
    report = open_report(document, cards)
    kinds = {
        "w": lambda image: image["probabilities"] and image["predicted"] not in image["labels"],
        "r": lambda image: any(row["case"] == "right_outside" for row in image["rows"]),
        "f": lambda image: image["error"],
        "a": lambda image: any(row["warning"] for row in image["rows"]),
    }
    for key, passes in kinds.items():
        report.press("End", key)  # one takes the place of another
        names = expected_ids(document, passes)
        assert report.count() == len(names) > 0 and spoken(report).startswith(names[0]), key
    report.press("a")
    assert report.count() == 24
    certain = {image["name"]: max(image["probabilities"]) for image in document["images"] if image["probabilities"]}
    report.press("u")
    assert spoken(report).startswith(min(certain, key=certain.get))
    report.press("w", "Enter")  # an order and a filter go together
    wrong = expected_ids(document, kinds["w"])
    assert report.page.inner_text("#opened-name") == min(wrong, key=certain.get)
    report.press("s")  # it closes the image
    specific = {image["name"]: image["rows"][0]["specificity"] for image in document["images"] if image["rows"]}
    assert spoken(report).startswith(min(wrong, key=specific.get))
    assert report.page.locator("#cards .fourth").first.inner_text().endswith(f"{min(specific[n] for n in wrong):.2f}")
    report.press("x")
    assert report.count() == 24 and report.page.locator(".chip").count() == 0
    report.press("k")
    assert report.count() == 0 and report.page.is_visible("#nothing")
    report.press("x", "c")
    report.settle()
    report.page.keyboard.type("k")
    report.press("Escape", "Escape", "k")
    assert report.count() == 1  # a comment is a mark too


def test_a_key_for_what_a_report_has_not_says_so(open_report):
    document, cards = make_document(4)
    for image in document["images"]:
        image["labels"] = []
    report = open_report(document, cards)
    report.press("w")
    assert report.count() == 4 and "没有这一项" in report.page.inner_text("#hint")
    report.press("?")
    keys = report.page.locator("#help kbd").all_inner_texts()
    assert "w" not in keys and {"u", "f", "x", "l", "z"} <= set(keys)


def test_keys_change_what_is_shown_of_all_images(open_report):
    document, cards = make_document(4, targets=range(4))
    report = open_report(document, cards, "#open=id1")
    assert report.page.inner_text(".alpha") == "60%"
    report.press("+", "=", "-", "+", "H")
    assert report.page.inner_text(".alpha") == "80%"
    assert report.page.get_attribute('[data-toggle="heat"]', "aria-pressed") == "false"
    report.press("]", "]")
    assert report.page.input_value('#display [data-field="text"]') == "first"
    report.press("[", "[", "[")
    assert report.page.input_value('#display [data-field="text"]') == "3"
    report.press("0")
    assert report.page.input_value('#display [data-field="text"]') == "predicted"
    report.press("z")
    assert report.page.inner_text("#opened [data-mark=agree]") == "✓ Agree"
    report.press("Escape", "v", "d")
    assert report.page.input_value('#display [data-field="size"]') == "300"
    assert report.page.locator("#summary table").count() == 0


def test_a_field_is_left_for_the_images(open_report):
    document, cards = make_document(24)
    report = open_report(document, cards)
    report.press("/")
    report.page.keyboard.type("0007")
    report.press("Enter")
    assert spoken(report).startswith("0007.png") and not report.page.is_visible("#opened")
    report.press("x", "End", "/", "Tab", "ArrowDown", "Escape")
    assert report.page.input_value('#filters [data-field="predicted"]') == "0"
    assert spoken(report).startswith("0000.png")  # the first: what is shown is another list
    report.click("#counts button")
    assert report.focused() == "link"
    report.press("ArrowRight")
    assert report.focused() == "card"


def test_an_image_that_leaves_the_list_leaves_the_focus_to_the_next(open_report):
    report = open_report(*make_document(6), "#mark=none")
    report.press("ArrowRight", "ArrowRight", "Enter", "m", "1", "Escape")
    assert report.count() == 5 and spoken(report).startswith("0002.png")


def test_numbers_of_another_text_are_named_and_a_faint_heatmap_too(open_report):
    document, cards = make_document(1, targets=[0, 1])
    document["images"][0]["rows"][0] |= {"specificity": 0.25, "measures": {"energy": 0.75}}
    document["images"][0]["rows"][1] |= {"specificity": 0.5}
    cells = levels(4, 4, seed=5)
    cards[0] = json.dumps({**json.loads(cards[0]), "maps": [encode_map(0, cells), encode_map(1, cells, peak=0.03)]})
    report = open_report(document, cards, "#text=1&open=id0")
    report.page.locator("#picture-note", has_text="最高只到共用色标的 3.0%").wait_for()
    lines = report.page.locator("#facts dl > *").all_inner_texts()
    names = lines[::2]
    assert names.index("文本特异性") < names.index("与标注比较的文本") < names.index("能量")
    numbers = dict(zip(names, lines[1::2]))
    assert numbers["文本特异性"] == "0.50" and numbers["能量"] == "0.750"
    assert numbers["与标注比较的文本"] == "正常假体"
    report.press("Escape")
    report.choose("scale", "own")
    assert "共用色标" not in report.page.inner_text("#cards .fourth")


def test_the_link_is_copied(open_report):
    report = open_report(*make_document(6), "#lang=en")
    report.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    report.press("f", "l")
    report.page.locator("#notes span", has_text="The link is copied").wait_for()
    assert report.page.evaluate("() => navigator.clipboard.readText()") == report.address + "#lang=en&failed=1"
    report.press("Escape")
    assert report.page.inner_text("#notes") == ""


def test_the_lists_patient_and_split_have_words(open_report):
    document, cards = make_document(4)
    document["columns"] = ["split", "patient"]
    report = open_report(document, cards, "#open=id0")
    for words in (("划分", "患者"), ("Split", "Patient")):
        assert report.page.locator("#filters .control > span").all_inner_texts()[-2:] == list(words)
        shown = report.page.locator("#facts dt").all_inner_texts()
        assert [word for word in shown if word in words] == list(words)
        report.press("z")


def test_the_tab_key_stays_in_the_dialog_and_reaches_all_of_it(open_report):
    report = open_report(*make_document(3, targets=range(4)), "#open=id1")
    stops = []
    while not stops or (stops.count("previous") < 2 and len(stops) < 40):
        report.page.keyboard.press("Tab")
        stops.append(report.page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
    assert {"previous", "next", "close", "comment"} <= set(stops) and any("可视化图" in stop for stop in stops)
    inside = report.page.evaluate("() => document.getElementById('opened').contains(document.activeElement)")
    assert inside and len(stops) == len(set(stops)) + 1
    assert report.page.get_attribute("#opened .links a", "href") == "%E7%89%87%E5%AD%90/clip_gradcam_0001.png"


def test_links_that_lead_elsewhere_are_none(open_report):
    document, cards = make_document(4)
    for image, path in zip(document["images"], ("../x.png", "/etc/passwd", "javascript:alert(1)", "a#b?c%.png")):
        image["figure"] = path
    report = open_report(document, cards)
    links = []
    for number in range(4):
        report.open(f"#open=id{number}")
        links += [report.page.locator(".links a").evaluate_all("links => links.map(link => link.getAttribute('href'))")]
    assert links == [[], [], ["javascript%3Aalert(1)"], ["a%23b%3Fc%25.png"]]


def exported(report, tmp_path, name="marks.csv"):
    with report.page.expect_download() as download:
        report.page.click("#actions button >> nth=1")
    path = tmp_path / name
    download.value.save_as(path)
    return path


def test_marks_survive_a_reload_and_go_out_and_come_in(open_report, tmp_path):
    document, cards = make_document(12)
    comment = '=HYPERLINK("x"), 第一行\n第二行'
    report = open_report(document, cards, "#open=id1")
    report.click('[data-mark="agree"]')
    report.page.fill("#comment", comment)
    report.press("Escape", "ArrowRight")
    report.click('[data-mark="unclear"]')
    report.open("#open=id1")
    assert report.page.input_value("#comment") == comment
    report.press("Escape")
    path = exported(report, tmp_path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbfid,name,mark,comment,time\r\n")
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    assert [(row["id"], row["mark"]) for row in rows] == [("id1", "同意"), ("id2", "存疑")]
    assert rows[0]["comment"] == "'" + comment
    report.page.evaluate("() => localStorage.clear()")
    report.open("#lang=en")
    assert "0 marked" in report.page.inner_text("#counts")
    report.page.set_input_files("#import", path)
    report.page.locator("#notes span").wait_for()
    assert report.page.inner_text("#notes span") == "2 marks imported"
    again = exported(report, tmp_path, "again.csv").read_text("utf-8-sig")
    assert list(csv.DictReader(io.StringIO(again, newline=""))) == [
        {**row, "mark": english} for row, english in zip(rows, ("Agree", "Unclear"))
    ]


def test_an_import_says_what_it_took_and_what_it_left(open_report, tmp_path):
    report = open_report(*make_document(4), "#open=id1")
    report.click('[data-mark="agree"]')
    report.press("Escape")
    path = tmp_path / "spreadsheet.csv"
    lines = ["id;mark;comment", "id1;不同意;", 'id2;unclear;"a ""b"""', "id9;同意;", "id3;perhaps;", ""]
    path.write_bytes("\r\n".join(lines).encode("gb18030"))
    report.page.set_input_files("#import", path)
    report.page.locator("#notes span").wait_for()
    assert report.page.inner_text("#notes span") == (
        "导入 2 条标记；1 条与原有的不同，以导入的为准；1 个编号不在这份报告中，没有导入；1 条的标记不认识，没有导入"
    )
    assert report.page.locator("#cards .mark").evaluate_all("marks => marks.map(mark => mark.title)") == [
        "不同意",
        "存疑",
    ]
    path.write_bytes(b"\x00\xff not a table")
    report.page.set_input_files("#import", path)
    report.settle()
    report.page.locator("#notes span", has_text="读不出").wait_for()


def test_ids_that_a_spreadsheet_took_for_numbers_are_found_where_there_is_one_of_them(open_report, tmp_path):
    document, cards = make_document(4)
    ids = ("001", "02", "2", "x03")
    images = [{**image, "id": of_image} for image, of_image in zip(document["images"], ids)]
    report = open_report({**document, "images": images}, cards)
    path = tmp_path / "spreadsheet.csv"
    lines = ["id,mark", "1,agree", "2,unclear", "002,agree", "x3,agree", "3,agree", "0,agree"]
    path.write_text("\n".join(lines))
    report.page.set_input_files("#import", path)
    report.page.locator("#notes span").wait_for()
    assert report.page.inner_text("#notes span") == "导入 2 条标记；4 个编号不在这份报告中，没有导入"
    rows = csv.DictReader(io.StringIO(exported(report, tmp_path).read_text("utf-8-sig")))
    assert [(row["id"], row["mark"]) for row in rows] == [("001", "同意"), ("2", "存疑")]


def test_a_browser_that_refuses_to_keep_marks_is_named(open_report):
    document, cards = make_document(2)
    report = open_report(document, cards)
    refuse = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    report.page.add_init_script(refuse)
    report.open("#open=id1")
    assert "不保存标记" in report.page.inner_text("#notes")
    report.click('[data-mark="agree"]')
    assert report.page.get_attribute('[data-mark="agree"]', "aria-pressed") == "true"


# -- hostile names, languages, print, many images


def test_hostile_names_are_shown_as_they_are(open_report):
    document, cards = make_document(len(HOSTILE))
    for image, name in zip(document["images"], HOSTILE):
        image |= {"name": name, "path": name, "values": [name, name]}
        image["error"] = {"zh": name, "en": name} if name == HOSTILE[1] else None
    document |= {
        "names": list(HOSTILE[:4]),
        "columns": list(HOSTILE[:2]),
        "title": {"zh": HOSTILE[1], "en": HOSTILE[0]},
    }
    report = open_report(document, cards, "#open=id0")
    expected = [name.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e") for name in HOSTILE]
    assert report.page.text_content("#opened-name") == expected[0]
    assert report.page.locator("#screen .name").all_text_contents() == expected
    assert report.page.text_content("#title") == report.page.title() == HOSTILE[1]
    assert report.page.locator("img:not(.bar)").count() == 0 and report.page.locator("#screen script").count() == 0


def said(report):
    """All words that a reader sees or hears, as one text."""
    script = """() => [...document.querySelectorAll("body *:not(script):not(noscript)")].flatMap((place) => [
        place.title, place.placeholder, place.getAttribute("aria-label"), place.getAttribute("alt"),
        ...[...place.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data)]).filter(Boolean)"""
    return "\n".join(report.page.evaluate(script))


def test_in_english_the_page_has_no_chinese_but_the_users_own(open_report):
    document, cards = make_document(12, targets=range(4), failed=[5], texts=("normal", "stem", "cup", "fracture"))
    numbers = {"n": 3, "value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1, "class_place": 0.2}
    line = dict.fromkeys(("accuracy", "auc", "pointing", "pointing_strict", "energy"), numbers)
    group = {
        "split": None,
        "setting": document["settings"][0]["zh"],
        "overall": line,
        "macro": line,
        "classes": {"stem": line},
    }
    document |= {
        "lang": "en",
        "evaluation": {"groups": [group, {**group, "split": "test"}]},
        "texts": [["a"], ["b"], ["c"], ["d"]],
    }
    for image in document["images"]:
        image |= {
            "path": "x.png",
            "values": ["a", "b"],
            "name": image["name"].encode("ascii", "ignore").decode() or "x",
        }
    report = open_report(document, cards, "#warning=1&q=0")
    report.click(".chip")
    texts = [said(report)]
    report.press("ArrowRight", "m")
    texts.append(said(report))
    report.press("1", "c")
    texts.append(said(report))
    report.press("Escape", "p", "?")
    report.page.locator("#print img").first.wait_for(state="attached")
    texts.append(said(report))
    for text in texts:
        assert [line for line in text.split("\n") if CHINESE.search(line)] in ([], ["\u4e2d\u6587"])
    report.press("Escape", "Escape")
    report.click("#language")
    assert report.page.inner_text("#summary h2") == "概要" and report.page.get_attribute("html", "lang") == "zh-CN"


def test_print_has_all_shown_images_or_the_opened_one(open_report, tmp_path):
    document, cards = make_document(30, failed=[5])
    report = open_report(document, cards, "#warning=1")
    report.press("p")
    report.page.locator("#print .item").first.wait_for(state="attached")
    while not report.page.evaluate("() => window.printed"):
        report.page.wait_for_timeout(50)
    names = report.page.locator("#print .name").all_text_contents()
    warned = [image["name"] for image in document["images"] if any(row["warning"] for row in image["rows"])]
    assert names == [name.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e") for name in warned]
    loaded = "pictures => pictures.map(picture => [picture.naturalWidth, picture.naturalHeight])"
    assert set(map(tuple, report.page.locator(".photograph img").evaluate_all(loaded))) == {(120, 90)}
    pdf = report.page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Subtype\s*/Image", pdf)) >= len(warned)  # each picture, at least
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    assert report.page.locator("#print *").count() == 0  # once it is printed
    by_menu = report.page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Subtype\s*/Image", by_menu)) >= len(warned)
    report.open("#open=id3")
    report.page.keyboard.press("Control+p")
    report.page.locator("#print.alone .item").wait_for(state="attached")
    assert report.page.locator("#print .name").all_text_contents() == ["0003.png"]


def test_two_thousand_images_are_read_from_their_files_as_they_come_into_view(open_report, tmp_path):
    document, cards = make_document(2)
    images = [{**document["images"][0], "id": str(n), "name": f"{n:04}.png"} for n in range(2000)]
    report = open_report({**document, "images": images}, cards[:1] * 1999 + [None], "#size=150", (1920, 1400))
    assert sum(url.endswith(".js") for url in report.requests) == 1
    seen, most = set(), 0
    while "1998.png" not in seen:
        assert len(seen) < 2000
        names = report.names()
        seen |= set(names)
        most = max(most, len(names))
        report.page.evaluate("() => window.scrollBy(0, 1.8 * innerHeight)")
        report.settle()
    assert len(seen) == 2000 and most < 200
    report.drawn(number=2)
    assert sum(url.endswith(".js") for url in report.requests) == 10
    report.page.locator("#cards .fourth", has_text="图像读不出").wait_for()


def test_missing_files_of_cards_are_named(open_report, tmp_path):
    document, cards = make_document(2)
    images = [{**document["images"][0], "id": str(n)} for n in range(301)]
    report = open_report({**document, "images": images}, cards[:1] * 301)
    file, away = (tmp_path / "report_files" / name for name in ("cards-001.js", "away"))
    file.rename(away)
    report.open("#open=1")
    report.page.locator("#notes span", has_text="report_files").wait_for()
    report.page.locator("#picture-note", has_text="图像读不出").wait_for()
    away.rename(file)
    report.press("Escape", "Enter")
    report.drawn("#opened canvas")
    assert report.page.inner_text("#picture-note") == ""
    report.problems = [problem for problem in report.problems if "ERR_FILE_NOT_FOUND" not in problem]


def test_nothing_lies_over_another_at_a_hospitals_screen(open_report):
    document, cards = make_document(12, targets=range(4))
    report = open_report(document, cards)
    for lang, width in itertools.product(("zh", "en"), (1366, 1920)):
        report.page.set_viewport_size({"width": width, "height": 700})
        report.open(f"#lang={lang}")
        script = """() => [...document.querySelectorAll("#head > *, #summary, #display > *, #filters, main")].map(
            (place) => place.getBoundingClientRect()).map((box) => [box.left, box.top, box.right, box.bottom])"""
        boxes = [box for box in report.page.evaluate(script) if box[2] > box[0]]
        for one, other in itertools.combinations(boxes, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (lang, width, one, other)
        assert report.page.evaluate("() => document.documentElement.scrollWidth") <= width
