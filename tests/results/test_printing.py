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
from test_drawing import (
    NAMES,
    SIZES,
    assert_nothing_collides,
    curves_of,
    figure,
    figure_content,
    grid,
    grid_content,
    items_of,
    panels,
    texts_of,
)
from tiny import gradient_picture, tiny_result

import clip_gradcam_visualization as script
from models.errors import InputError
from models.explain.methods import METHODS
from models.results import page as pages
from models.results import parts
from models.results.drawing import draw_results
from models.results.figure import draw_figure, encode_figure
from models.results.grid import draw_grid
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
    elided,
    largest_dpi,
    moved,
    page_of,
    scaled,
    text_box,
    text_length,
)
from models.results.parts import BODY, PAGE_WIDTH
from models.results.result import Results
from models.results.saving import DENSITIES, OutputChoice, encode_outputs, save_results

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


# -- type that can be read in print -----------------------------------------------------------

PRINTED = 17 / 2.54 * 72  # points: the width that a page is printed at
WORDY = {"specificity": 0.05, "contrast": 1.0, "dot_product": True, "subtract": True, "independent": True}


def least_points(drawing):
    return min(text.size for text in texts_of(drawing)) * PRINTED / drawing.width


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_no_type_is_smaller_than_7_points_where_a_page_is_printed_17_cm_wide(lang):
    flat = {"heatmap": np.zeros(SIZES["4:1"], np.float32), "warning": "热力图为空"}
    for size in SIZES.values():
        assert least_points(figure(lang, names=NAMES["ten long"], size=size, faithfulness=curves_of(), **WORDY)) >= 7
        for kind in ("one", "two", "nine", "thirty"):
            count = len(NAMES[kind])
            options = {"specificities": [0.05] * count, "faithfulness": [curves_of()] * count}
            assert least_points(grid(lang, names=NAMES[kind], size=size, warnings=["空"] * count, **options)) >= 7
        assert least_points(grid(lang, size=size, methods=METHODS, specificities=[0.05] * len(METHODS))) >= 7
    assert least_points(figure(lang, size=SIZES["4:1"], **flat)) >= 7


def test_a_grid_of_many_tiles_grows_downwards():
    few, many = (grid(names=NAMES[kind], size=SIZES["1:1"]) for kind in ("nine", "thirty"))
    assert few.width <= many.width <= PAGE_WIDTH and many.height > 1.3 * few.height
    assert min(picture.width for picture in items_of(many, Picture)) >= 240


def test_every_line_of_names_of_two_lines_has_its_room_among_ten_bars():
    drawing = figure(names=NAMES["ten long"], size=SIZES["4:1"])
    names = sorted((text for text in texts_of(drawing) if text.anchor == "r"), key=lambda text: text.y)
    assert len(names) == 20 and min(np.diff([text.y for text in names])) >= parts.leading(BODY)


# -- whose image it is ------------------------------------------------------------------------


@pytest.mark.parametrize("lang, said", [("zh", "图像：{}"), ("en", "Image: {}")])
def test_the_footer_says_the_images_name(lang, said):
    for drawn, name in (("a b.png", "a b.png"), ("骨折🦴\n.png", "骨折?\\n.png"), ("<b>&$x$.dcm", "<b>&$x$.dcm")):
        for drawing in (figure(lang, name=drawn), grid(lang, name=drawn), grid(lang, name=drawn, methods=["gradcam"])):
            (line,) = [text for text in texts_of(drawing) if text.string == said.format(name)]
            assert line.y == min(text.y for text in texts_of(drawing) if text.colour == line.colour == parts.GREY)
    assert len(texts_of(figure(lang))) == len(texts_of(figure(lang, name="a.png"))) - 1


@pytest.mark.parametrize("name", ["髋" * 200 + ".dcm", "W" * 250 + "-12.png"])
def test_of_a_long_name_both_ends_stay(name):
    drawing = figure(name=name)
    (line,) = [text for text in texts_of(drawing) if text.string.startswith("图像：") and "…" in text.string]
    start, end = line.string.removeprefix("图像：").split("…")
    assert name.startswith(start) and name.endswith(end) and len(start) - len(end) in (0, 1) and len(end) > 8
    assert_nothing_collides(drawing)


@pytest.mark.parametrize(
    "text, limit, expected",
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abc…fg"),
        ("abcdefg", 5, "ab…fg"),
        ("髋关节片", 3, "髋…片"),
        ("ab", 1, "…"),
    ],
)
def test_what_is_too_long_is_cut_in_its_middle(text, limit, expected):
    assert elided(text, limit, len) == expected


def test_an_explanation_knows_the_name_of_its_file(clip, picture):
    paths = [picture, str(picture), Path(picture)]
    assert [script.explain(clip, path, ["a", "b"], img_size=64).name for path in paths] == ["image.png"] * 3
    with Image.open(picture) as image:
        assert script.explain(clip, image, ["a", "b"], img_size=64).name is None
    several = script.explain(clip, picture, ["a", "b"], img_size=64, method="all")
    assert {result.name for result in several} == {"image.png"}


# -- panels -----------------------------------------------------------------------------------


def marks_of(drawing):
    return [text for text in texts_of(drawing) if re.fullmatch(r"\([a-z]+\)", text.string)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_panels_are_marked_at_their_upper_left(size, lang):
    content = figure_content(names=NAMES["long"], size=SIZES[size], faithfulness=curves_of(), subtract=True)
    drawing = draw_figure(*content, lang, has_marks=True)
    assert_nothing_collides(drawing)
    marks = marks_of(drawing)
    assert [mark.string for mark in marks] == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    for mark, panel in zip(marks, drawing.panels, strict=True):
        left, _, right, bottom = bounds(panel)
        assert text_box(mark)[0] <= left + 20 and mark.x < (left + right) / 2
        assert mark.y <= min(text.y for text in panel if isinstance(text, Text) and not text.vertical) < bottom
    assert marks_of(draw_figure(*content, lang)) == []


def test_tiles_are_marked_too_in_their_order():
    drawing = draw_grid(*grid_content(names=NAMES["thirty"]), has_marks=True)
    assert_nothing_collides(drawing)
    marks, tiles = marks_of(drawing), items_of(drawing, Picture)[:-1]
    assert [mark.string for mark in marks[:2] + marks[-6:]] == [
        "(a)",
        "(b)",
        "(z)",
        "(aa)",
        "(ab)",
        "(ac)",
        "(ad)",
        "(ae)",
    ]
    for mark, tile in zip(marks, tiles, strict=True):
        assert tile.left - 40 < mark.x <= tile.left and tile.top - 40 < mark.y < tile.top


@pytest.mark.parametrize("dpi", [120, 300])
def test_each_panel_is_a_file_of_its_own(dpi):
    result = tiny_result([1])._replace(faithfulness=[curves_of()], pixels=gradient_picture(300, 450))
    files = encode_outputs(Results([result]), "out/a.png", OutputChoice(panels="files", dpi=dpi))
    assert [path.name for path in files.panels] == [f"a_panel_{letter}.png" for letter in "abcde"]
    assert [path.name for path in files.contents] == ["a.png", *(path.name for path in files.panels), "a_overlay.png"]
    drawing = draw_results(Results([result]), list(Results([result]).drawn()), "zh", True)
    page = np.asarray(Image.open(io.BytesIO(files.contents[files.figure])))
    for path, panel, words in zip(files.panels, drawing.panels, PANEL_WORDS, strict=True):
        with Image.open(io.BytesIO(files.contents[path])) as image:
            assert image.info["dpi"] == pytest.approx((dpi, dpi), abs=0.02)
            shown = np.asarray(image)
        own = page_of(panel)
        assert shown.shape[:2] == (round(own.height * dpi / 120), round(own.width * dpi / 120))
        assert words in "".join(text.string for text in texts_of(own)) and marks_of(own) == []
        for one, other in zip(items_of(own, Picture), (p for p in panel if isinstance(p, Picture)), strict=True):
            cut = [_cut(pixels, scaled(item, dpi / 120)) for pixels, item in ((shown, one), (page, other))]
            np.testing.assert_array_equal(*cut)
    assert encode_outputs(Results([result]), "a.png", OutputChoice(panels="marks")).panels == []


PANEL_WORDS = ("原始图像", "相对重要性", "叠加结果", "预测概率分布", "忠实度")


def _cut(page, picture):
    return page[picture.top : picture.bottom, picture.left : picture.right]


def test_the_panels_of_a_grid_have_their_captions_and_its_scale():
    drawing = grid(names=["正常", "松动"], size=(300, 450))
    original, *tiles = (page_of(panel) for panel in drawing.panels)
    assert "原始图像" in "".join(text.string for text in texts_of(original)) and len(items_of(original, Picture)) == 1
    for page, name in zip(tiles, ("正常", "松动"), strict=True):
        said = "".join(text.string for text in texts_of(page))
        assert name in said and "各图同一色标，可以比较" in said and len(items_of(page, Picture)) == 2
        assert_nothing_collides(page)


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(checkpoint, class_texts_file, tmp_path, monkeypatch):
    """A function that runs the command on `data` in an empty folder; returns the names of what is in `out`."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        Image.fromarray(gradient_picture(60 + number, 90)).save(tmp_path / "data" / f"{number}.png")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, image="data"):
        fixed = ["--model-path", checkpoint, "--image-path", image, "--class-texts-file", class_texts_file]
        assert script.main([*map(str, fixed), "--output-dir", "out", "--num-workers", "0", *arguments]) == code
        return sorted(path.name for path in Path("out").iterdir() if path.is_file())

    return run


@pytest.mark.parametrize("kind, overlay", [("pdf", "png"), ("svg", "png"), ("jpg", "jpg"), ("tif", "tif")])
def test_the_figures_of_a_folder_have_the_format_asked_for(run, kind, overlay):
    names = run("--figure-format", kind)
    results = [f"clip_gradcam_{number}{end}" for number in range(2) for end in (f".{kind}", f"_overlay.{overlay}")]
    assert names == sorted([*results, "report.html", "results.csv", "results.jsonl"])


@pytest.mark.parametrize(
    "arguments, figure_name",
    [((), "clip_gradcam_0.svg"), (("--output-name", "b"), "b.svg"), (("--output-name", "b.SVG"), "b.SVG")],
)
def test_one_image_takes_the_format_where_its_name_has_none(run, arguments, figure_name):
    names = run("--figure-format", "svg", *arguments, image="data/0.png")
    assert figure_name in names and len(names) == 2


def test_a_folder_at_a_density_with_panels_and_what_resume_compares(run, capsys):
    asked = ["--dpi", "240", "--panels", "files"]
    names = run(*asked)
    assert len(names) == 2 * 6 + 3 and "clip_gradcam_1_panel_d.png" in names
    with Image.open("out/clip_gradcam_0.png") as figure, Image.open("out/clip_gradcam_0_overlay.png") as overlay:
        assert figure.width == 2 * PAGE_WIDTH and figure.info["dpi"] == pytest.approx((240, 240), abs=0.02)
        assert overlay.size == (90, 60) and "dpi" not in overlay.info
    Path("out/clip_gradcam_0_panel_c.png").unlink()
    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    assert run(*asked, "--resume") == names
    assert all((Path("out") / name).read_bytes() == data for name, data in before.items())
    capsys.readouterr()
    for changed, said in (
        (["--dpi", "200", "--panels", "files"], "--dpi（上次 240，这次 200）"),
        (["--dpi", "240", "--panels"], "--panels（上次 files，这次 marks）"),
        ([*asked, "--figure-format", "pdf"], "--figure-format（上次 无，这次 pdf）"),
    ):
        assert run(*changed, "--resume", code=2) == names and said in capsys.readouterr().err


def test_the_evaluations_density_is_the_figures(run):
    Path("cases.csv").write_text("image,label\n0.png,正常\n1.png,松动\n", encoding="utf-8")
    asked = ["--cases", "cases.csv", "--dpi", "240"]

    def density(*arguments):
        run(*arguments)
        with Image.open("out/evaluation.png") as image:
            return round(image.info["dpi"][0]), image.width

    dpi, width = density(*asked)
    assert (dpi, density("--join")) == (240, (240, width)) and density("--join", "--dpi", "120") == (120, width // 2)


@pytest.mark.parametrize(
    "choice, said",
    [
        ({"dpi": 71}, "dpi 至少是 72"), ({"dpi": 9999}, "dpi 至多是 1200"),
        *(({"dpi": dpi}, f"dpi 应是整数，收到 {dpi!r}") for dpi in (None, 120.5, "300", np.nan)),
        ({"panels": "letters"}, "panels 不能是 .letters"),
        ({"figure_format": "bmp"}, "figure_format 不能是 'bmp'.*png、jpg、pdf"), ({"lang": "fr"}, "lang 不能是 'fr'"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused(tmp_path, choice, said):
    with pytest.raises(InputError, match=said):
        save_results(Results([tiny_result()]), tmp_path / "a.png", OutputChoice(**choice))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_files_name_is_refused(path):
    with pytest.raises(InputError, match="不含文件名"):
        tiny_result().save(path)


def test_a_page_of_too_many_pixels_is_refused_with_the_density_that_is_none(monkeypatch):
    """As the grid of a hundred texts has at 1200 dpi: two gigabytes, and more than any format takes."""
    drawing = Drawing(300, 200, [])
    monkeypatch.setattr(pages, "MOST_PIXELS", 600 * 400)
    assert largest_dpi(drawing) == 240 and largest_dpi(drawing._replace(width=301)) == 239
    assert Image.open(io.BytesIO(encode_figure(drawing, ".png", 240))).size == (600, 400)
    with pytest.raises(InputError, match="dpi 至多 240，收到 241"):
        encode_figure(drawing, ".png", 241)
    for suffix in (".pdf", ".svg"):  # they have no density
        assert encode_figure(drawing, suffix, 1200) == encode_figure(drawing, suffix, 72)


@pytest.mark.parametrize("names", ["nine", "thirty"])
def test_the_figure_of_one_text_can_have_every_density(names):
    """The highest there is, of a tall image, with curves and a warning."""
    tall = {"size": SIZES["1:4"], "warning": 4 * "热力图为空", "specificity": 0.05, "faithfulness": curves_of()}
    for lang in ("zh", "en"):
        assert largest_dpi(figure(lang, names=NAMES[names], **tall)) >= DENSITIES[1]


def test_an_evaluation_of_too_many_pixels_is_drawn_at_the_density_that_is_none(run, monkeypatch):
    """Rather than lost at the end of a run."""
    monkeypatch.setattr(pages, "MOST_PIXELS", 4_000_000)
    Path("cases.csv").write_text("image,label\n0.png,正常\n1.png,松动\n", encoding="utf-8")
    run("--cases", "cases.csv", "--dpi", "1200", "--overlay-only")
    with Image.open("out/evaluation.png") as image:
        assert 3_900_000 < image.width * image.height <= 4_000_000
