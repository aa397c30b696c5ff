"""Figures for print: their density, text and images in PDF and SVG, the size of their type, panels as files."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_drawing import NAMES, curves_of, figure, items_of, panels, texts_of

import clip_gradcam_visualization as script
from models.results.figure import encode_figure
from models.results.page import (
    BLACK,
    WHITE,
    Box,
    Drawing,
    Line,
    Picture,
    Text,
    bounds,
    box_of,
    draw_pixels,
    moved,
    scaled,
    text_length,
)

# -- density ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, name", [(".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF"), (".JPEG", "JPEG")])
@pytest.mark.parametrize("dpi", [None, 72, 300])
def test_the_density_stands_in_the_file(suffix, name, dpi):
    drawing, options = figure(), [] if dpi is None else [dpi]
    with Image.open(io.BytesIO(encode_figure(drawing, suffix, *options))) as image:
        image.load()
        scale = (dpi or 120) / 120
        assert image.format == name and image.size == (round(drawing.width * scale), round(drawing.height * scale))
        assert image.info["dpi"] == pytest.approx((dpi or 120, dpi or 120), abs=0.02)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_the_density_changes_no_pixel(suffix):
    page = Drawing(40, 30, [Box(5, 5, 20, 20, "#c0392b"), Picture(22, 2, np.full((9, 9, 3), 77, np.uint8))])
    with Image.open(io.BytesIO(encode_figure(page, suffix))) as image:
        np.testing.assert_allclose(np.asarray(image), draw_pixels(page), atol=0 if suffix != ".jpg" else 60)


def test_300_dpi_is_two_and_a_half_times_as_large_to_the_pixel():
    drawing = figure(names=NAMES["nine"], faithfulness=curves_of(), specificity=0.05)
    page = draw_pixels(drawing, 300)
    assert page.shape[:2] == (round(2.5 * drawing.height), round(2.5 * drawing.width))
    for item in drawing.items:
        large = scaled(item, 2.5)
        tolerance = 1 + 2.5 * len(item.string) / 2 if isinstance(item, Text) else 1  # letters take whole pixels
        np.testing.assert_allclose(box_of(large), 2.5 * np.array(box_of(item)), atol=tolerance)
    red = (page == (0xC0, 0x39, 0x2B)).all(2)
    for box in (scaled(box, 2.5) for box in items_of(drawing, Box) if box.fill == "#c0392b"):
        assert red[box.top : box.bottom, box.left : box.right].all()


def test_more_of_the_image_shows_at_a_higher_density():
    """A checkerboard of the image's own pixels is grey in a panel and itself at the density that shows them all."""
    pixels = np.zeros((1000, 1500, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    drawing = figure(size=(1000, 1500), pixels=pixels, overlay=pixels)
    coarse, fine = (draw_pixels(drawing, dpi) for dpi in (120, 300))
    for picture in panels(drawing)[::2]:
        assert (picture.width, picture.height) == (600, 400)
        inner = coarse[picture.top : picture.bottom, picture.left : picture.right]
        assert inner.min() > 100 and inner.max() < 155
        large = scaled(picture, 2.5)
        np.testing.assert_array_equal(fine[large.top : large.bottom, large.left : large.right], pixels)


def test_letters_are_drawn_at_their_size_not_enlarged():
    text = Text(60, 40, "髋臼杯 Wag", 20, "m")
    large = draw_pixels(Drawing(300, 150, [Text(150, 100, text.string, 50, "m")]))
    np.testing.assert_array_equal(draw_pixels(Drawing(120, 60, [text]), 300), large)


def test_nothing_vanishes_at_a_low_density():
    thin = [Box(left, 2, left + 1, 9, BLACK) for left in range(3, 30, 4)]
    page = draw_pixels(Drawing(36, 12, [*thin, Line([(2, 10.5), (30, 10.5)], BLACK, 1)]), 72)
    columns = (page[2:5] == 0).all((0, 2))
    assert page.shape == (7, 22, 3) and columns.sum() == len(thin) and page[6].min() < 200


def test_items_move_and_know_their_bounds():
    items = [Text(10, 20, "髋", 20), Box(3, 4, 9, 8, BLACK), Line([(1, 2), (5, 60.5)], BLACK, 1)]
    items.append(Picture(40, 7, np.zeros((5, 6, 3), np.uint8)))
    assert bounds(items) == (1, 1, 46, 61) and bounds(moved(items, 100, -1)) == (101, 0, 146, 60)


# -- PDF --------------------------------------------------------------------------------------

WRITTEN = "价格 $5 & <b> fi é"


def tall_content():
    """A figure whose image has more pixels than its panel, and letters that mean something to XML and to TeX."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 900, 3), np.uint8)
    changes = {"pixels": pixels, "overlay": pixels[::-1], "heatmap": np.zeros((1200, 900), np.float32)}
    return figure(size=(1200, 900), names=[WRITTEN, "正常"], texts=[WRITTEN, "正常"], **changes), pixels


def image_sizes(data):
    """(width, height) of the images of a PDF."""
    blocks = [data[data.rfind(b"<<", 0, match.start()) :][:600] for match in re.finditer(rb"/Subtype /Image", data)]
    return [tuple(int(re.search(rb"/%s (\d+)" % side, block)[1]) for side in (b"Width", b"Height")) for block in blocks]


def streams(data):
    """The inflated streams of a PDF."""
    for match in re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        try:
            yield zlib.decompress(match[1])
        except zlib.error:
            yield match[1]


def test_a_pdf_keeps_its_letters_and_the_images_pixels():
    drawing, _ = tall_content()
    data = encode_figure(drawing, ".pdf")
    assert b"/CIDFontType2" in data and b"/ToUnicode" in data and b"/Type3" not in data
    maps = b"".join(stream for stream in streams(data) if b"begincmap" in stream).lower()
    assert all(f"<{ord(letter):04x}>".encode() in maps for letter in "价格原始图像")
    heatmap = panels(drawing)[1]
    sizes = image_sizes(data)
    assert sizes.count((900, 1200)) == 2 and (2 * heatmap.width, 2 * heatmap.height) in sizes


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler-utils is not installed")
def test_the_letters_of_a_pdf_can_be_selected(tmp_path):
    drawing, _ = tall_content()
    (tmp_path / "a.pdf").write_bytes(encode_figure(drawing, ".pdf"))
    done = subprocess.run(["pdftotext", "-raw", "a.pdf", "-"], cwd=tmp_path, capture_output=True, timeout=60)
    shown = re.sub(r"\s", "", done.stdout.decode())
    for text in texts_of(drawing):
        assert re.sub(r"\s", "", text.string) in shown, text.string


PROCESS = """
import sys
import numpy as np
from models.results.figure import encode_figure
from models.results.page import Drawing, Line, Picture, Text
letters = [Text(9, 30 + 25 * row, string, 22) for row, string in enumerate(("股骨柄松动 é", "Loosening, 15 ∛"))]
pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
items = [*letters, Line([(5, 5), (30, 9)], "#2471a3", 3), Picture(50, 60, pixels)]
sys.stdout.buffer.write(encode_figure(Drawing(300, 90, items), sys.argv[1]))
"""


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_files_are_the_same_bytes_in_every_process(suffix):
    """Whatever Python makes of hashes there."""

    def drawn(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(script.__file__).parent)}
        command = [sys.executable, "-c", PROCESS, suffix]
        return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout

    assert len(drawn("1")) > 1000 and drawn("1") == drawn("2")


# -- SVG --------------------------------------------------------------------------------------

SVG, HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def test_an_svg_keeps_its_letters_and_their_places():
    drawing = figure(names=[WRITTEN, "正常"], texts=[WRITTEN, "正常"], faithfulness=curves_of())
    root = ElementTree.fromstring(encode_figure(drawing, ".svg"))
    assert root.get("viewBox") == f"0 0 {drawing.width} {drawing.height}"
    assert float(root.get("width").removesuffix("in")) == pytest.approx(drawing.width / 120, abs=0.01)
    assert "'Noto Sans CJK SC'" in root.get("font-family") and root.get("font-family").endswith(", sans-serif")
    written = root.findall(f"{SVG}text")
    assert [element.text for element in written] == [text.string for text in texts_of(drawing)]
    for element, text in zip(written, texts_of(drawing), strict=True):
        assert element.get("font-size") == f"{text.size}px" and element.get("fill") == text.colour
        assert element.get("text-anchor") == {"l": "start", "m": "middle", "r": "end"}[text.anchor]
        assert float(element.get("textLength")) == pytest.approx(text_length(text.string, text.size), abs=0.01)
        turned = element.get("transform")
        assert (turned == f"translate({text.x} {text.y}) rotate(-90)") if text.vertical else turned is None
        assert text.vertical or (element.get("x"), element.get("y")) == (str(text.x), str(text.y))
    lines = [element.get("points") for element in root.findall(f"{SVG}polyline")]
    assert len(lines) == len(items_of(drawing, Line)) and "nan" not in "".join(lines)


def test_an_svg_has_the_images_own_pixels():
    drawing, pixels = tall_content()
    root = ElementTree.fromstring(encode_figure(drawing, ".svg"))
    shown = []
    for element, picture in zip(root.findall(f"{SVG}image"), items_of(drawing, Picture), strict=True):
        place = [int(element.get(side)) for side in ("x", "y", "width", "height")]
        assert place == [picture.left, picture.top, picture.width, picture.height]
        assert element.get("preserveAspectRatio") == "none"
        data = base64.b64decode(element.get(HREF).removeprefix("data:image/png;base64,"))
        shown.append(np.asarray(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(shown[0], pixels)
    np.testing.assert_array_equal(shown[3], pixels[::-1])


def test_images_in_vector_files_are_bounded():
    """A tile of a grid and the largest radiographs; a heatmap of few pixels is as smooth as on the page."""
    picture = Picture(0, 0, np.zeros((50, 9000, 3), np.uint8), (600, 4))
    assert picture.own_pixels().shape == (23, 4096, 3)
    heatmap = panels(figure(size=(60, 90)))[1]
    assert heatmap.own_pixels().shape == (2 * heatmap.height, 2 * heatmap.width, 3)


def test_boxes_of_an_svg_cover_the_pixels_that_they_cover_on_the_page():
    page = Drawing(20, 10, [Box(3, 2, 9, 7, "#c0392b"), Box(12, 2, 18, 7, WHITE, BLACK)])
    _, plain, framed = ElementTree.fromstring(encode_figure(page, ".svg")).findall(f"{SVG}rect")
    assert [plain.get(side) for side in ("x", "y", "width", "height")] == ["3", "2", "6", "5"]
    assert [framed.get(side) for side in ("x", "y", "width", "height")] == ["12.5", "2.5", "5", "4"]
    assert (plain.get("stroke"), framed.get("stroke"), framed.get("stroke-width")) == (None, BLACK, "1")
