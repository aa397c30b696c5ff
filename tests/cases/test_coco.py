"""COCO's JSON: outlines drawn as LabelMe's, runs as pycocotools has them, of the image that the file means."""

import json

import numpy as np
import pytest
from annotated import NAMES, TEXTS, assert_masks, read
from PIL import Image, ImageDraw
from pycocotools import mask as reference

from models.cases import annotations, coco
from models.cases.annotations import Annotation
from models.cases.shapes import Frame
from models.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
SIZE = (20, 30)


def entry(number, file_name, size=SIZE):
    return {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}


def annotation(image, category, number=1, **other):
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **other}


def box(image, category, x=4, y=2, width=3, height=5):
    return annotation(image, category, bbox=[x, y, width, height])


def filled(x=4, y=2, width=3, height=5):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


CATEGORIES = [{"id": 10 + index, "name": name} for index, name in enumerate((*NAMES, "左"))]


@pytest.fixture
def save(tmp_path):
    def save(images, entries, categories=CATEGORIES, **other):
        document = {"info": {}, "images": images, "annotations": entries, "categories": categories, **other}
        (tmp_path / "coco.json").write_text(json.dumps(document), encoding="utf-8")
        return str(tmp_path / "coco.json")

    return save


def refusal(path, **image):
    with pytest.raises(InputError) as error:
        read([path], SIZE, **image)
    return str(error.value).removeprefix(f"无法使用标注 {path}：")


def test_polygons_as_labelme_draws_them(save):
    points = [(2.3, 1.8), (25.5, 4.2), (20.1, 17.9), (11, 9.5)]
    path = save([entry(5, "a.png")], [annotation(5, 10, segmentation=[list(sum(points, ()))])])
    canvas = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
    assert_masks(read([path], SIZE), {0: np.array(canvas)})


def runs_of(mask):
    """The lengths of runs down the columns, outside first."""
    column = mask.T.ravel()
    changes = np.flatnonzero(np.diff(column)) + 1
    return np.diff([0, *([0] if column[0] else []), *changes, len(column)]).tolist()


def test_runs_as_pycocotools_encodes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = map(int, rng.integers(1, 200, 2))
        mask = rng.random((height, width)) < rng.choice([0, 0.001, 0.5, 1])
        counts = reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        for written in (counts, runs_of(mask)):
            decoded = coco.decode_runs({"size": [height, width], "counts": written}, Frame(width, height, mask.shape))
            np.testing.assert_array_equal(decoded, mask)


def test_boxes_polygons_and_runs_of_an_image(save):
    runs = reference.encode(np.asfortranarray(filled(20, 10).astype(np.uint8)))
    runs = {"size": list(SIZE), "counts": runs["counts"].decode()}
    two = [[4, 2, 6, 2, 6, 6, 4, 6], [20, 10, 22, 10, 22, 14, 20, 14]]  # the outline included
    path = save(
        [entry(5, "a.png"), entry(6, "b.png")],
        [
            box(5, 10),
            annotation(5, 10, segmentation=runs, iscrowd=1),
            annotation(5, 12, segmentation=two, bbox=[0, 0, 30, 20]),  # the box does not count
            box(6, 11),
            annotation(5, 13, segmentation=[]),
        ],
    )
    both = filled() | filled(20, 10)
    result = read([path], SIZE)
    assert_masks(result, {0: both, 2: both})
    assert (result.ignored, result.points_only) == (["左"], frozenset())
    assert_masks(read([path], SIZE, image="b.png"), {1: filled()})
    assert read([path], SIZE, image="c.png") == Annotation({}, frozenset(), [], [])


def test_a_box_without_segmentation_as_pycocotools(save):
    path = save([entry(5, "a.png")], [annotation(5, 11, bbox=[3.6, 2.2, 7.7, 9.1])])
    expected = reference.decode(reference.frPyObjects(np.array([[3.6, 2.2, 7.7, 9.1]]), *SIZE))[..., 0].astype(bool)
    assert_masks(read([path], SIZE), {1: expected})


def test_another_size(save):
    half = (10, 15)
    runs = reference.encode(np.asfortranarray(filled()[::2, ::2].astype(np.uint8)))
    runs = {"size": list(half), "counts": runs["counts"].decode()}
    path = save([entry(5, "a.png", half)], [box(5, 11, 2, 1, 4, 3), annotation(5, 12, segmentation=runs)])
    expected = filled()[::2, ::2].repeat(2, 0).repeat(2, 1)
    assert_masks(read([path], SIZE), {1: filled(4, 2, 8, 6), 2: expected})
    assert "宽高比不同" in refusal(save([entry(5, "a.png", SIZE[::-1])], [box(5, 11)]))
    runs["size"] = list(half[::-1])
    path = save([entry(5, "a.png")], [annotation(5, 12, segmentation=runs)])
    assert "RLE 的大小是 10×15，图像是 30×20，宽高比不同" in refusal(path)


def test_categories_are_names_or_texts(save):
    categories = [{"id": "x", "name": f" {TEXTS[2]}"}, {"id": 7, "name": "1"}]
    path = save([entry(5, "a.png")], [box(5, "x"), box(5, 7), box(5, 1)], categories)
    result = read([path], SIZE)
    assert_masks(result, {2: filled(), 1: filled()})
    assert result.ignored == ["category_id 1"]
    path = save([entry(5, "a.png"), entry(6, "b.png")], [box(6, 13)])
    assert refusal(path).startswith("其中的标签 '左' 都不是类别文本，")
    assert read([save([entry(5, "a.png")], [])], SIZE) == Annotation({}, frozenset(), [], [])


def test_the_image_by_the_end_of_its_path(save):
    names = ["1.png", "p1/1.png", "data/p3/1.png", "data/p4/1.png", "x/p4/1.png", "C:\\\\d\\p5\\1.png"]
    path = save(
        [entry(number, name) for number, name in enumerate(names)],
        [box(number, 11, x=number) for number in range(len(names))],
    )

    def place(image, **options):
        masks = read([path], SIZE, image=image, **options).masks
        return int(masks[1].any(0).argmax()) if masks else None

    assert place("1.png") == 0
    assert place("p1/1.png") == place("../any/p1/1.png") == place("1.png", path="/d/p1/1.png") == 1
    assert place("p2/1.png") == 0  # a bare name is any folder's
    assert place("data/p3/1.png") == 2
    assert place("2.png") is None


def test_an_image_that_the_file_does_not_have_is_no_other_of_its_name(save):
    path = save(
        [entry(1, "d/p1/1.png"), entry(2, "d/p4/2.png"), entry(3, "x/p4/2.png"), entry(4, "3.png"), entry(5, "3.png")],
        [box(1, 11)],
    )
    assert read([path], SIZE, image="p2/1.png").masks == {}
    assert_masks(read([path], SIZE, image="p1/1.png"), {1: filled()})
    assert_masks(read([path], SIZE, image="1.png", path="e/1.png"), {1: filled()})
    assert refusal(path, image="p4/2.png").startswith("无法知道 p4/2.png 是 'd/p4/2.png' 和 'x/p4/2.png' 中的哪一个")
    assert refusal(path, image="3.png").startswith("无法知道 3.png 是 '3.png' 和 '3.png' 中的哪一个")


def test_one_file_for_all_cases_is_parsed_once(save, monkeypatch):
    path = save([entry(5, "a.png"), entry(6, "b.png")], [box(5, 10), box(6, 11)])
    parsed = []
    parse = annotations.parse_json
    monkeypatch.setattr(annotations, "parse_json", lambda data: parsed.append(1) or parse(data))
    for _ in range(3):
        assert_masks(read([], SIZE, default=path), {0: filled()})
        assert_masks(read([], SIZE, default=path, image="b.png"), {1: filled()})
    assert len(parsed) == 1
    save([entry(5, "a.png"), entry(6, "b.png")], [box(5, 12, 1, 1)])
    assert_masks(read([], SIZE, default=path), {2: filled(1, 1)})


def test_a_broken_file_is_parsed_once_too(tmp_path, monkeypatch):
    path = tmp_path / "coco.json"
    path.write_text("{")
    parsed = []
    parse = annotations.parse_json
    monkeypatch.setattr(annotations, "parse_json", lambda data: parsed.append(1) or parse(data))
    assert refusal(path) == refusal(path)
    assert len(parsed) == 1


RUNS = {"size": list(SIZE), "counts": [600]}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"segmentation": [[1, 1, 2, 2]]}, "至少三个点"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, "多边形应是"),
        ({"segmentation": [1, 1, 2, 2, 3, 3]}, "多边形应是"),
        ({"segmentation": [[1, 1, 2, 2, 3, None]]}, "成对的有限的数"),
        ({"segmentation": [[1, 1, 2, 2, 3, float("nan")]]}, "成对的有限的数"),
        ({"segmentation": "x"}, "多边形的列表或 RLE"),
        ({}, "既没有 segmentation，也没有 bbox"),
        ({"bbox": [1, 2, 3]}, "既没有 segmentation，也没有 bbox"),
        ({"bbox": [1, 2, 10**400, 3]}, "成对的有限的数"),
        ({"bbox": [1.5, 2, 10**400, 3]}, "成对的有限的数"),
        ({"segmentation": {}}, "size 应是"),
        ({"segmentation": {**RUNS, "size": [0, 5]}}, "size 应是"),
        ({"segmentation": {**RUNS, "size": [200_000, 300_000]}}, "图像过大"),
        ({"segmentation": {**RUNS, "counts": [599]}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": [-1, 601]}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": [2**63 - 1, 2**63 - 1, 602]}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": [2**70]}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": [[600]]}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": None}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": ""}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": "字"}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": "Ph"}}, "counts 不是"),  # ends within a number
        ({"segmentation": {**RUNS, "counts": "o" * 30 + "0"}}, "counts 不是"),
        ({"segmentation": {**RUNS, "counts": " "}}, "counts 不是"),
    ],
)
def test_annotations_that_are_none(save, other, said):
    text = refusal(save([entry(5, "a.png")], [annotation(5, 10, number="n", **other)]))
    assert text.startswith("标注 'n'：") and said in text


@pytest.mark.parametrize(
    "document",
    [
        {"images": [1], "annotations": []},
        {"images": [{"id": 1}], "annotations": []},
        {"images": [{"id": 1, "file_name": 3}], "annotations": []},
        {"images": [{"id": [1], "file_name": "a.png"}], "annotations": []},
        {"images": [], "annotations": [{"id": 1, "image_id": [], "category_id": 1}]},
        {"images": [], "annotations": ["x"]},
        {"images": [], "annotations": [], "categories": 3},
        {"images": [], "annotations": [], "categories": [{"name": "x"}]},
    ],
)
def test_damaged_files(tmp_path, document):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    assert "COCO 文件已损坏，请重新导出" in refusal(path)


def test_enormous_polygons(save):
    zigzag = [number for step in range(300) for number in ((-1e308, 1e308)[step % 2], step % 20)]
    result = read([save([entry(5, "a.png")], [annotation(5, 10, segmentation=[zigzag])])], SIZE)
    assert set(result.masks) <= {0}
    result = read([save([entry(5, "a.png")], [annotation(5, 10, bbox=[-1e300, -1e300, 2e300, 2e300])])], SIZE)
    assert_masks(result, {0: np.ones(SIZE, dtype=bool)})
