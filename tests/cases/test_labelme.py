"""LabelMe's JSON: each shape as LabelMe itself draws it, at the image's size."""

import base64
import io
import json
import math

import numpy as np
import pytest
from annotated import NAMES, TEXTS, assert_masks, drawing, read
from PIL import Image, ImageDraw

from models.cases import files, shapes
from models.cases.annotations import Annotation
from models.errors import InputError

SIZE = (20, 30)


def shape(label, kind, *points, **other):
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **other}


@pytest.fixture
def save(tmp_path):
    def save(*shapes, size=SIZE, encoding="utf-8", name="a.json", **other):
        height, width = size
        document = {"version": "5.4.1", "shapes": shapes, "imageData": "A" * 99, "imagePath": "a.png", **other}
        document = {**document, "imageHeight": height, "imageWidth": width, **other}
        (tmp_path / name).write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
        return tmp_path / name

    return save


def refusal(path):
    with pytest.raises(InputError) as error:
        read([path], SIZE)
    text = str(error.value)
    assert text.startswith(f"无法使用标注 {path}：")
    return text.removeprefix(f"无法使用标注 {path}：")


def labelme_mask(size, kind, points):
    """As labelme.utils.shape_to_mask."""
    mask = Image.fromarray(np.zeros(size, dtype=np.uint8))
    draw, xy = ImageDraw.Draw(mask), [tuple(point) for point in points]
    if kind == "circle":
        (cx, cy), (px, py) = xy
        d = math.sqrt((cx - px) ** 2 + (cy - py) ** 2)
        draw.ellipse([cx - d, cy - d, cx + d, cy + d], outline=1, fill=1)
    elif kind == "rectangle":
        draw.rectangle(xy, outline=1, fill=1)
    else:
        draw.polygon(xy=xy, outline=1, fill=1)
    return np.array(mask, dtype=bool)


SHAPES = {
    "polygon": [(2.3, 1.8), (25.5, 4.2), (20.1, 17.9), (11, 9.5), (3.7, 18.2)],
    "rectangle": [(4.4, 3.6), (17.2, 12.9)],
    "circle": [(12.5, 9.5), (16.25, 12.0)],
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_as_labelme_draws_it(save, kind):
    path = save(shape("骨折", kind, *SHAPES[kind]))
    assert_masks(read([path], SIZE), {2: labelme_mask(SIZE, kind, SHAPES[kind])})


def test_shapes_drawn_by_hand(save):
    triangle = save(shape("松动", "polygon", (1, 1), (4, 1), (1, 4)), size=(6, 6))
    expected = drawing("""
        ......
        .####.
        .###..
        .##...
        .#....
        ......""")
    assert_masks(read([triangle], (6, 6)), {1: expected})
    box = save(shape("松动", "rectangle", (4, 2), (1, 1)), size=(4, 6))
    assert_masks(read([box], (4, 6)), {1: drawing("...... .####. .####. ......")})


def test_labels_are_names_texts_or_indices_and_shapes_of_one_are_united(save):
    one, other = [(1, 1), (5, 5)], [(8, 8), (12, 12)]
    path = save(
        shape(" 松动 ", "rectangle", *one),
        shape(TEXTS[1], "rectangle", *other),
        shape(2, "rectangle", *one),
        shape("2", "rectangle", *other),
        shape("左", "line", *one),
        shape("左", "rectangle", *one),
    )
    union = labelme_mask(SIZE, "rectangle", one) | labelme_mask(SIZE, "rectangle", other)
    annotation = read([path], SIZE)
    assert_masks(annotation, {1: union, 2: union})
    assert (annotation.points_only, annotation.ignored) == (frozenset(), ["左"])


def test_a_point_is_its_pixel_and_has_no_area(save):
    path = save(
        shape(NAMES[0], "point", (3.9, 2.1)),
        shape(NAMES[1], "point", (0, 0)),
        shape(NAMES[1], "rectangle", (1, 1), (2, 2)),
        shape(NAMES[2], "point", (30, 5)),
    )
    annotation = read([path], SIZE)
    first, second = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
    first[2, 3] = second[0, 0] = second[1:3, 1:3] = True
    assert_masks(annotation, {0: first, 1: second})
    assert annotation.points_only == {0}


def test_coordinates_of_another_size(save):
    path = save(shape("骨折", "rectangle", (2, 3), (5, 6)), shape("松动", "point", (14.9, 9.9)), size=(10, 15))
    point = np.zeros(SIZE, dtype=bool)
    point[19, 29] = True
    assert_masks(read([path], SIZE), {2: labelme_mask(SIZE, "rectangle", [(4, 6), (10, 12)]), 1: point})
    path = save(shape("骨折", "rectangle", (2, 3), (5, 6)), size=SIZE[::-1])
    assert refusal(path).startswith("标注文件中图像的大小是 20×30，图像是 30×20，宽高比不同")
    path = save(shape("骨折", "rectangle", (2, 3), (5, 6)), imageHeight=None, imageWidth=None)
    assert_masks(read([path], SIZE), {2: labelme_mask(SIZE, "rectangle", [(2, 3), (5, 6)])})


def test_a_mask_in_its_box(save):
    cross = drawing(".#. ### .#.")
    data = io.BytesIO()
    Image.fromarray(cross.astype(np.uint8)).save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    expected = np.zeros(SIZE, dtype=bool)
    expected[4:7, 10:13] = cross
    assert_masks(read([save(shape("骨折", "mask", (10, 4), (12, 6), mask=text))], SIZE), {2: expected})
    path = save(shape("骨折", "mask", (10, 4), (12, 6), mask=text))
    assert_masks(read([path], (40, 60)), {2: expected.repeat(2, 0).repeat(2, 1)})
    at_border = np.zeros(SIZE, dtype=bool)
    at_border[18:, 28:] = cross[:2, :2]
    assert_masks(read([save(shape("骨折", "mask", (28, 18), (30, 20), mask=text))], SIZE), {2: at_border})
    assert "与它的两个点不符" in refusal(save(shape("骨折", "mask", (10, 4), (13, 6), mask=text)))
    assert "不是 base64 的 PNG" in refusal(save(shape("骨折", "mask", (10, 4), (12, 6), mask="*")))
    assert "不是 base64 的 PNG" in refusal(save(shape("骨折", "mask", (10, 4), (12, 6))))


def test_old_files_without_types_and_in_other_encodings(save):
    triangle = [(1, 1), (9, 1), (1, 9)]
    old = {"label": "骨折", "points": triangle}
    for encoding in ("utf-8-sig", "utf-16", "gb18030"):
        assert_masks(read([save(old, encoding=encoding)], SIZE), {2: labelme_mask(SIZE, "polygon", triangle)})


def test_json_by_its_content(save):
    path = save(shape("骨折", "rectangle", (1, 1), (2, 2)), name="标注.png")
    assert list(read([path], SIZE).masks) == [2]


def test_what_lies_outside(save):
    outside = save(shape("骨折", "rectangle", (40, 1), (50, 9)), shape("松动", "circle", (-90, -90), (-85, -90)))
    assert read([outside], SIZE) == Annotation({}, frozenset(), [], ["骨折", "松动"])
    half = save(shape("骨折", "rectangle", (25, 15), (45, 35)))
    assert_masks(read([half], SIZE), {2: labelme_mask(SIZE, "rectangle", [(25, 15), (45, 35)])})


def test_enormous_numbers(save):
    everywhere = save(shape("骨折", "rectangle", (-1e308, -1e308), (1e308, 1e308)))
    assert_masks(read([everywhere], SIZE), {2: np.ones(SIZE, dtype=bool)})
    for kind in ("circle", "polygon", "point"):
        points = [(1e308, -1e308), (-1e308, 1e308), (1e300, 1e300)][: {"circle": 2, "polygon": 3, "point": 1}[kind]]
        assert set(read([save(shape("骨折", kind, *points))], SIZE).masks) <= {2}


@pytest.mark.parametrize(
    "points",
    [
        [(math.nan, 1), (2, 2)],
        [(math.inf, 1), (2, 2)],
        [(1, 1), (2,)],
        [(1, 1), None],
        [(1, 1), (2, "x")],
        [(1, 1), (2, 10**400)],
        [1, 2],
        None,
        {"x": 1},
    ],
)
def test_coordinates_that_are_none(save, points):
    path = save({"label": "骨折", "shape_type": "rectangle", "points": points})
    assert "坐标应是成对的有限的数" in refusal(path)


def test_shapes_that_are_none(save):
    assert "'骨折' 的形状是 'linestrip'，没有面积或不支持；支持 polygon、rectangle、circle、point、mask" in refusal(
        save(shape("骨折", "linestrip", (1, 1), (2, 2)))
    )
    assert "形状 polygon 有 2 个点，至少有 3 个" in refusal(save(shape("骨折", "polygon", (1, 1), (2, 2))))
    assert "形状 circle 有 3 个点，应有 2 个" in refusal(save(shape("骨折", "circle", (1, 1), (2, 2), (3, 3))))
    assert "'骨折' 的形状是" in refusal(save(shape("骨折", ["polygon"], (1, 1))))
    assert "shapes 中有一项没有 label" in refusal(save("x"))
    assert "shapes 中有一项没有 label" in refusal(save(shape(None, "point", (1, 1))))


def test_labels_of_which_none_is_a_text(save):
    path = save(shape("假体松动", "point", (1, 1)), shape("左", "point", (1, 1)))
    assert refusal(path) == "其中的标签 '假体松动'、'左' 都不是类别文本，最接近的是 松动；请改成类别的短名"
    assert read([save()], SIZE) == Annotation({}, frozenset(), [], [])


def test_sizes_that_are_none(save):
    one = shape("骨折", "point", (1, 1))
    for width in (0, -3, "30", math.nan, 10**30, None):
        assert "图像的宽或高不是正数" in refusal(save(one, imageWidth=width))
    assert "图像过大（3000000×2000000" in refusal(save(one, size=(2_000_000, 3_000_000)))


def test_damaged_and_enormous_files(save, tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    for text, said in {
        '{"shapes": [': "不是合法的 JSON：第 1 行第 13 列",
        '{"a":' * 100_000: "不是合法的 JSON",
        '{"shapes": [' + "9" * 5000 + "]}": "不是合法的 JSON",
        "{}": "既不是 LabelMe（有 shapes）也不是 COCO",
        '{"shapes": {}}': "既不是 LabelMe",
        '{"a": [' + "[]," * 4_000_000 + "[]]}": "内容过多",
    }.items():
        path.write_text(text)
        assert said in refusal(path)
    path.write_bytes(b"{\xff\xff")
    assert "编码不是" in refusal(path)
    monkeypatch.setattr(shapes, "MOST_SHAPES", 1)
    assert "有 2 个形状，至多 1 个" in refusal(save(*[shape("骨折", "point", (1, 1))] * 2))
    monkeypatch.setattr(shapes, "MOST_POINTS", 2)
    assert "有 3 个点，至多 2 个" in refusal(save(shape("骨折", "polygon", *[(1, 1)] * 3)))
    with open(path, "r+b") as file:
        file.truncate(files.LARGEST_JSON + 1)
    assert "文件超过 256 MB" in refusal(path)
