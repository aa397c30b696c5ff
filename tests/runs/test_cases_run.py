"""A run over a list of cases: what is explained, what stands in the tables, and the evaluation, computed once more."""

import csv
import io
import json
import math
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from folders import TEXTS, contents, rows_of
from PIL import Image, ImageDraw
from project import PROJECT
from sklearn.metrics import confusion_matrix, roc_auc_score

from clip_gradcam_visualization import main
from models.demo.findings import FINDINGS, KINDS
from models.demo.phantoms import draw_phantom
from models.demo.sentences import class_texts, short_name
from models.messages import Message
from models.runs.planning import Sources, plan_images

DEMO = PROJECT / "models" / "assets" / "demo" / "clip_starnet_bert.pth"
NAMES = list(class_texts())


def write_list(rows, name="cases.csv", encoding="utf-8"):
    with open(name, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return name


def labelme(size, *shapes):
    """LabelMe's JSON of (label, kind, points)."""
    shapes = [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes]
    return json.dumps({"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]}, ensure_ascii=False)


def outlines(mask):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0].tolist() for contour in contours if len(contour) > 2]


def table_of(name, folder="out"):
    text = (Path(folder) / name).read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


# -- phantoms whose truth is known ------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Twenty phantoms of all kinds at odd sizes, two of a patient, with LabelMe files and a list in GB18030."""
    folder, rows = tmp_path_factory.mktemp("研究"), []
    for i in range(20):
        kind, (height, width) = KINDS[i % 9], (300 + 37 * i % 90, 260 + 53 * i % 120)
        phantom = draw_phantom(2_970_000 + i, (kind,) if kind in FINDINGS else (), (height, width), kind == "native")
        place = folder / ("甲", "乙/深")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom.image.astype(np.uint16) * 16).save(place / f"{i}.png")
        mask = phantom.masks.get(kind, np.zeros((1, 1)))
        shapes = [(short_name(kind), "polygon", points) for points in outlines(mask)]
        if shapes:
            (place / f"{i}.json").write_text(labelme((height, width), *shapes), encoding="utf-8")
        image = f"{place.relative_to(folder)}/{i}.png"
        annotation = image.replace(".png", ".json") if shapes else ""
        row = {"image": image, "label": short_name(kind), "annotation": annotation, "patient": f"P{i // 2}"}
        rows.append({**row, "年龄": str(50 + i), "width": "7"})
    before = os.getcwd()
    os.chdir(folder)
    write_list(rows, "病例.csv", "gb18030")
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def evaluated(study):
    """(the study, its output folder, the rows)."""
    out, texts = study / "out", PROJECT / "class_texts_hip_prosthesis.json"
    flags = ["--model-path", str(DEMO), "--class-texts-file", str(texts), "--no-figure", "--save-heatmap", "layer"]
    assert main([*flags, "--cases", str(study / "病例.csv"), "--output-dir", str(out), "--num-workers", "0"]) == 0
    return study, out, rows_of(out)


GRID = 224
AREAS = ("iou_half", "iou_otsu", "energy", "contrast_to_noise")
BESIDE = ("chance", "class_place", "gaussian")


def plain_mask(file):
    document = json.loads(file.read_text(encoding="utf-8"))
    canvas = Image.new("1", (document["imageWidth"], document["imageHeight"]))
    for shape in document["shapes"]:
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    return np.array(canvas)


def plain_otsu(heatmap):
    """CheXlocalize's segmentation."""
    levels = np.uint8(255 * ((heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())))
    shown = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[1]
    canvas = Image.new("1", heatmap.shape[::-1])
    for contour in cv2.findContours(shown, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        if len(contour) > 1:
            ImageDraw.Draw(canvas).polygon([tuple(map(int, point[0])) for point in contour], outline=1, fill=1)
    return np.array(canvas)


def plain_areas(heatmap, inside):
    """AREAS, of weights [H, W] in [0, 1] for what lies inside."""

    def iou(shown):
        return (shown * inside).sum() / (shown.sum() + inside.sum() - (shown * inside).sum())

    means, variances = [], []
    for weights in (inside, 1 - inside):
        means.append((heatmap * weights).sum() / weights.sum())
        variances.append((heatmap**2 * weights).sum() / weights.sum() - means[-1] ** 2)
    energy = (heatmap * inside).sum() / heatmap.sum()
    noise = math.sqrt(sum(variances))
    return iou(heatmap > heatmap.max() / 2), iou(plain_otsu(heatmap)), energy, (means[0] - means[1]) / noise


def plain_peak(values):
    rows, columns = np.nonzero(values / values.max() >= 1 - 1e-6)
    return round(rows.mean()), round(columns.mean())


def plain_case(study, out, row, tolerance=15):
    """{measure: value} of one image, and its annotation on the grid."""
    right = float(row["predicted"] == row["label"])
    case = {"accuracy": right, "text_specificity": row["text_specificity"], "grid": None}
    file = study / row["image"].replace(".png", ".json")
    if not file.exists():
        return case
    mask, layer = plain_mask(file), np.load(out / row["layer_heatmap"])
    height, width = mask.shape
    heatmap = torch.nn.functional.interpolate(torch.tensor(layer)[None, None], (height, width), mode="bilinear")[0, 0]
    cell = np.unravel_index(layer.argmax(), layer.shape)
    y, x = (int((place + 0.5) * side / cells) for place, side, cells in zip(cell, mask.shape, layer.shape, strict=True))
    apart = np.hypot(*(np.argwhere(mask) - (y, x)).T * np.array([[GRID / height], [GRID / width]])).min()
    areas = plain_areas(heatmap.numpy(), mask.astype(float))
    case |= {name: round(value, 6) for name, value in zip(AREAS, areas, strict=True)}
    hit = float(round(apart, 6) <= tolerance)
    case |= {"pointing": hit, "pointing_strict": float(apart == 0), "right_inside": right * hit}
    case |= {"right_outside": right * (1 - hit), "wrong_inside": (1 - right) * hit}
    case["wrong_outside"] = (1 - right) * (1 - hit)
    shares = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    levels = np.maximum(np.rint(255 * shares), shares > 0)
    cells = levels >= min(0.25 * 255, levels.max())
    apart = cv2.distanceTransform((~cells).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    case["grid"] = levels, cells, apart <= tolerance
    return case


def add_baselines(cases, rows):
    """What looks at no image gets, as `measure/baseline` of each annotated case."""
    axis = (np.arange(GRID) + 0.5 - GRID / 2) / (GRID / 4)
    gaussian = np.exp(-(axis[:, None] ** 2 + axis**2) / 2)
    for case, row in zip(cases, rows, strict=True):
        if case["grid"] is None:
            continue
        levels, cells, near = case["grid"]
        area = (levels / 255).mean()
        chance = {name: area for name in ("pointing_strict", *AREAS)} | {"pointing": near.mean(), AREAS[-1]: 0.0}
        others = [
            other["grid"]
            for other, of_other in zip(cases, rows, strict=True)
            if other["grid"] and of_other["label"] == row["label"] and of_other["patient"] != row["patient"]
        ]
        blind = {"gaussian": (gaussian, gaussian)}
        if others:
            blind["class_place"] = sum(other[0] for other in others), sum(other[2].astype(float) for other in others)
        case |= {f"{name}/chance": value for name, value in chance.items()}
        for baseline, (heatmap, near_peak) in blind.items():
            hits = float(near[plain_peak(near_peak)]), float(cells[plain_peak(heatmap)])
            values = *hits, *plain_areas(heatmap, levels / 255)
            names = (f"{name}/{baseline}" for name in ("pointing", "pointing_strict", *AREAS))
            case |= zip(names, values, strict=True)


def plain_mean(cases, name, weights=None):
    """The mean of what the cases have of a measure; with weights [D, N] one of each draw, NaN where none is drawn."""
    weights = np.ones((1, len(cases))) if weights is None else weights
    values = np.array([np.nan if case.get(name) is None else case[name] for case in cases])
    has = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (weights[:, has] @ values[has]) / weights[:, has].sum(1)


def test_an_independent_program_gives_every_printed_digit(evaluated):
    study, out, rows = evaluated
    cases = [plain_case(study, out, row) for row in rows]
    add_baselines(cases, rows)
    patients = list(dict.fromkeys(row["patient"] for row in rows))
    rng, clusters = np.random.default_rng(0), [patients.index(row["patient"]) for row in rows]
    draws = [rng.integers(len(patients), size=len(patients)) for _ in range(1000)]
    weights = np.array([np.bincount(draw, minlength=len(patients)) for draw in draws])[:, clusters]
    probabilities = np.array([row["probabilities"] for row in rows])

    def of_class(name, measure, weights=None):
        """A measure of the images of one class; text specificity of those that are explained by it."""
        column = "target" if measure == "text_specificity" else "label"
        own = [i for i, row in enumerate(rows) if row[column] == name]
        if measure != "auc":
            return plain_mean([cases[i] for i in own], measure, None if weights is None else weights[:, own])
        true, scores = np.array([row["label"] == name for row in rows]), probabilities[:, NAMES.index(name)]
        every_draw = np.ones((1, len(rows))) if weights is None else weights
        return np.array(
            [
                roc_auc_score(true, scores, sample_weight=draw) if 0 < draw[true].sum() < draw.sum() else np.nan
                for draw in every_draw
            ]
        )

    def of_line(line, measure, weights=None):
        if line == "全部" and measure != "auc":
            return plain_mean(cases, measure, weights)
        if line in NAMES:
            return of_class(line, measure, weights)
        of_classes = np.array([of_class(name, measure, weights) for name in NAMES])
        return np.nanmean(of_classes[~np.isnan(of_classes).all(1)], 0)

    checked = 0
    for line in table_of("evaluation.csv", out):
        name, measure = line["class"], line["measure"]
        drawn = of_line(name, measure, weights)
        expected = {"value": of_line(name, measure)[0]}
        expected |= dict(zip(("low", "high"), np.nanpercentile(drawn, [2.5, 97.5]), strict=True))
        expected |= {kind: of_line(name, f"{measure}/{kind}")[0] for kind in BESIDE if line[kind]}
        for kind, value in expected.items():
            assert f"{float(line[kind]):.4f}" == f"{round(float(value), 9) + 0.0:.4f}", (name, measure, kind)
            checked += 1
    assert checked > 400
    confusion = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["groups"][0]["confusion"]
    expected = confusion_matrix([r["label"] for r in rows], [r["predicted"] for r in rows], labels=NAMES)
    assert confusion == expected.tolist()


def test_the_tables_columns_in_the_order_in_which_a_reader_needs_them(evaluated):
    _, out, rows = evaluated
    header = list(table_of("results.csv", out)[0])
    front = [
        "id",
        "image",
        "patient",
        "年龄",
        "list_width",
        "label",
        "predicted",
        "correct",
        "target_text_idx",
        "target",
    ]
    assert header[:10] == front and header[-9:] == [f"p{i} {name}" for i, name in enumerate(NAMES)]
    assert [row["id"] for row in rows] == [row["image"] for row in rows]
    assert rows[3]["年龄"] == "53" and rows[3]["list_width"] == "7" and rows[3]["width"] > 200
    assert all(row["correct"] == (row["predicted"] == row["label"]) for row in rows)


def test_the_case_of_each_row(evaluated):
    _, _, rows = evaluated
    for row in rows:
        if row["annotated"] is None:
            assert row["case"] is None and "distance" not in row
        else:
            right, inside = ("wrong", "right")[row["correct"]], ("outside", "inside")[row["distance"] <= 15]
            assert row["case"] == f"{right}_{inside}" and row["annotated"] == row["label"]
    assert sum(row["case"] is not None for row in rows) > 10


def test_another_tolerance_needs_no_new_run(evaluated, capsys):
    _, out, rows = evaluated
    furthest = max(row["distance"] for row in rows if row.get("distance") is not None)
    assert main(["--join", "--output-dir", str(out), "--tolerance", str(0)]) == 0
    strict = rows_of(out)
    assert {row["case"] for row in strict if row.get("distance", 0)} <= {"right_outside", "wrong_outside"}
    lines = {line["measure"]: line["value"] for line in table_of("evaluation.csv", out) if line["class"] == "全部"}
    assert lines["pointing"] == lines["pointing_strict"]
    assert main(["--join", "--output-dir", str(out), "--tolerance", str(furthest)]) == 0
    lines = {line["measure"]: line["value"] for line in table_of("evaluation.csv", out) if line["class"] == "全部"}
    assert float(lines["pointing"]) == 1.0
    assert main(["--join", "--output-dir", str(out)]) == 0 and rows_of(out) == rows


# -- what is explained and measured, on a model that is not trained -----------------------------


@pytest.fixture
def cases(home):
    """A list of the first four pictures: labels, and LabelMe files of some."""
    place = "data/左 侧/000"
    for name in ("data/000", place):
        Path(f"{name}.json").write_text(labelme((24, 32), ("松动", "rectangle", [[0, 0], [31, 23]])), encoding="utf-8")
    rows = [
        {"image": "data/001.png", "label": "感染;1", "annotation": "", "split": "test"},
        {"image": "data/000.png", "label": "松动", "annotation": "data/000.json", "split": "test"},
        {"image": f"{place}.png", "label": "正常", "annotation": f"{place}.json", "split": "train"},
        {"image": "data/b/c/000.png", "label": "", "annotation": "", "split": "train"},
    ]
    return write_list(rows)


def shown(rows, *columns):
    return [tuple(row.get(column) for column in columns) for row in rows]


@pytest.fixture
def over(command):
    """A function that runs over a list instead of a folder and returns the rows."""

    def run_over(*more, code=0, output="out"):
        arguments = command(output=output)
        place = arguments.index("--image-path")
        assert main([*arguments[:place], *more]) == code
        return rows_of(output) if (Path(output) / "results.jsonl").exists() else []

    return run_over


def test_rows_come_in_the_lists_order_with_labels_and_without_evaluation_where_there_are_none(over, cases, home):
    rows = over("--cases", cases)
    assert [row["image"] for row in rows] == ["data/001.png", "data/000.png", "data/左 侧/000.png", "data/b/c/000.png"]
    assert [row["label"] for row in rows] == ["感染;松动", "松动", "正常", None]
    assert [row["split"] for row in rows] == ["test", "test", "train", "train"]
    assert {line["split"] for line in table_of("evaluation.csv")} == {"test", "train"}
    Path("names.txt").write_text("data/000.png\n\ndata/001.png\n", encoding="utf-8")
    assert [row["id"] for row in over("--cases", "names.txt")] == ["data/000.png", "data/001.png"]
    assert not list(Path("out").glob("evaluation*"))  # those of the run before are gone too


def test_each_images_own_labels_are_explained(over, cases, clip, home):
    rows = over("--cases", cases, "--target", "label", "--split", "test", "--batch-size", "2")
    assert shown(rows, "image", "target") == [
        ("data/001.png", "感染"),
        ("data/001.png", "松动"),
        ("data/000.png", "松动"),
    ]
    assert [row["overlay"] for row in rows] == [
        "clip_gradcam_001_overlay_2.png", "clip_gradcam_001_overlay_1.png", "clip_gradcam_000_overlay.png"
    ]  # fmt: skip
    alone = over("--cases", cases, "--target-text-idx", "松动", "--split", "test", output="alone")
    columns = ("similarity", "probability", "peak_x", "peak_y", "energy", "iou_half")
    assert shown(rows[1:], *columns) == [pytest.approx(row, abs=1e-4, nan_ok=True) for row in shown(alone, *columns)]
    over("--cases", cases, "--target", "label", code=2)


def test_of_several_labels_each_annotation_is_right_where_its_own_text_is_predicted(over, home):
    whole = [[0, 0], [31, 23]]
    shapes = [(name, "rectangle", whole) for name in TEXTS]
    Path("all.json").write_text(labelme((24, 32), *shapes), encoding="utf-8")
    rows = [{"image": "data/000.png", "label": ";".join(TEXTS), "annotation": "all.json"}]
    rows = over("--cases", write_list(rows), "--target", "label")
    assert [row["target"] for row in rows] == TEXTS and all(row["correct"] for row in rows)
    for row in rows:
        assert row["case"].startswith("right" if row["target"] == row["predicted"] else "wrong")
    cases = {line["measure"]: line["value"] for line in table_of("evaluation.csv") if line["class"] == "全部"}
    assert float(cases["right_inside"]) + float(cases["right_outside"]) == pytest.approx(1 / 3, abs=1e-4)
    assert {line["target"] for line in table_of("evaluation.csv")} == {"label"} and cases["accuracy"] == "1.0"


def test_images_that_are_right_for_the_wrong_reason_are_named(over, home, capsys):
    over("--cases", write_list([{"image": "data/000.png"}]))
    (row,) = rows_of("out")
    far = [[31 if row["peak_x"] < 16 else 0, 23 if row["peak_y"] < 12 else 0]]
    Path("far.json").write_text(labelme((24, 32), (row["predicted"], "point", far)), encoding="utf-8")
    listed = [{"image": "data/000.png", "annotation": "far.json"}, {"image": "data/b/c/000.png", "annotation": ""}]
    Path("data/b/c/000.png").write_bytes(b"")
    over("--cases", write_list(listed), "--tolerance", "1", code=1)
    shown = capsys.readouterr()
    assert "预测正确而峰在标注外：data/000.png（见结果表的 case 列）" in shown.out
    assert "另有 1 张图像失败，没有计入" in shown.out
    assert [row.get("case") for row in rows_of("out")] == ["right_outside", None]
    assert main(["--join", "--output-dir", "out", "--lang", "en"]) == 1
    lines = table_of("evaluation.csv")
    assert lines[0]["class"] == "all" and lines[0]["setting"].endswith("dot product, other texts taken off")
    heading = table_of("evaluation_table.csv")[0]
    assert heading["Class"] == "all" and heading["Hit (tolerance)"] == "0.00 (0.00–0.00)"


def test_one_annotation_is_not_two_images(over, command, home, capsys):
    """By its bare name it would be; where the folders agree, or the list names it, it is whose it is."""
    Path("ann").mkdir()
    document = labelme((24, 32), ("松动", "point", [[3, 3]]))
    Path("ann/000.json").write_text(document, encoding="utf-8")
    message = "按文件名，ann/000.json 同时是 data/000.png 和 data/b/c/000.png 的标注"
    for folders in (["--annotations", "ann"], ["--annotations", "ann", "--image-path", "data"]):
        listed = ["--cases", write_list([{"image": "data/000.png"}, {"image": "data/b/c/000.png"}])]
        over(*([] if "--image-path" in folders else listed), *folders, code=2)
        assert message in capsys.readouterr().err
    coco = {"images": [{"id": 1, "file_name": "000.png", "height": 24, "width": 32}], "annotations": []}
    Path("coco.json").write_text(json.dumps({**coco, "categories": []}), encoding="utf-8")
    over(*listed, "--annotations", "coco.json", code=2)
    assert "coco.json 中的 000.png 同时是 data/000.png 和 data/b/c/000.png 的标注" in capsys.readouterr().err
    Path("ann/c").mkdir()
    Path("ann/000.json").rename("ann/c/000.json")
    assert shown(over(*listed, "--annotations", "ann"), "annotated") == [(None,), ("松动",)]
    named = [{"image": name, "annotation": "ann/c/000.json"} for name in ("data/000.png", "data/b/c/000.png")]
    assert len(over("--cases", write_list(named))) == 2


def test_owners_of_annotations_are_looked_up_and_not_compared_one_by_one(home, monkeypatch):
    """As thousands of entries of a COCO file would be, whose messages are of one sentence, were these the keys."""
    names = [f"{number}.png" for number in range(9)]
    entries = [{"id": number, "file_name": name, "height": 24, "width": 32} for number, name in enumerate(names)]
    content = {"images": entries, "annotations": [], "categories": []}
    Path("coco.json").write_text(json.dumps(content), encoding="utf-8")
    for name in names:
        Path("data", name).write_bytes(Path("data/000.png").read_bytes())
    compared = []
    monkeypatch.setattr(Message, "__eq__", lambda one, other: compared.append(one) or one is other)
    plan = plan_images(Sources([str(Path("data", name)) for name in names], annotations="coco.json"), "out", TEXTS)
    assert len(plan.images) == 9 and compared == []


def test_what_contradicts_the_list_or_shows_nothing_is_a_warning(over, home):
    outside = ("感染", "rectangle", [[90, 90], [95, 95]])
    text = labelme((24, 32), ("松动", "rectangle", [[1, 1], [9, 9]]), outside)
    Path("a.json").write_text(text, encoding="utf-8")
    (row,) = over("--cases", write_list([{"image": "data/000.png", "label": "正常", "annotation": "a.json"}]))
    assert "感染 的标注是空的，或在图像之外；标注中的 松动 不是该图像的标签" in row["warning"]


def test_short_names_that_are_one_are_refused_before_the_model(over, cases, capsys):
    texts = ["--class-texts", "正常", "松动", "松动 ", "--model-path", "nowhere.pth"]
    over("--cases", cases, *texts, code=2)
    assert "类别的短名 松动 出现了两次" in capsys.readouterr().err


def test_the_first_settings_wrong_reasons_of_each_split(over, cases, monkeypatch, capsys):
    from models.runs import evaluating

    rows = [("甲", "a", "x", "right_outside"), ("乙", "a", "x", "right_inside"), ("甲", "b", "y", "right_inside")]
    rows += [("乙", "b", "y", "right_outside"), ("甲", "c", "y", "right_outside"), ("甲", "d", None, "wrong_outside")]
    rows = [dict(zip(("setting", "id", "split", "case"), row, strict=True)) for row in rows]

    class Rows:
        def rows(self, tolerance):
            return iter(rows)

    where = "预测正确而峰在标注外（划分 {}）：{}（见结果表的 case 列）"
    lines = [where.format(split, image) for split, image in (("x", "a"), ("y", "c"))]
    assert evaluating._wrong_reasons(Rows(), 15, "甲") == lines


def test_how_a_list_is_read_is_said_and_what_it_lacks(over, home, capsys):
    Path("a.json").write_text(labelme((24, 32), ("松动", "point", [[3, 3]])), encoding="utf-8")
    rows = [{"文件名": "data/000.png", "标注": "a.json", "住院号": "7", "疾病": "松动"}]
    rows.append({"文件名": "data/001.png", "标注": "", "住院号": "", "疾病": "正常"})
    over("--cases", write_list(rows))
    shown = capsys.readouterr()
    assert (
        "病例列表 cases.csv：2 个病例；图像＝文件名，标注＝标注，患者＝住院号；没有 标签 列；原样带入结果表：疾病"
        in shown.out
    )
    assert "列表没有 label（标签）列：有标注的文本算作标签" in shown.err
    assert "patient（患者）列有 1 行是空的，例如第 3 行：置信区间只能按图像重抽" in shown.err


def test_a_label_that_is_missing_is_said_before_the_model(over, cases, capsys):
    over("--cases", cases, "--target", "label", "--model-path", "nowhere.pth", code=2)
    assert "第 5 行：没有标签" in capsys.readouterr().err
    over("--cases", cases, "--target", "label", "--split", "test", "--method", "all", code=2)
    assert "--method all 一次只比较一个文本，而 data/001.png 有 2 个标签" in capsys.readouterr().err


def test_of_a_wrong_prediction_the_labels_annotation_counts(over, home):
    """All of the picture is annotated as one text, then as another: every heatmap lies inside."""
    rows = []
    for label in TEXTS:
        Path(f"{label}.json").write_text(labelme((24, 32), (label, "rectangle", [[0, 0], [31, 23]])), encoding="utf-8")
        Path(f"{label}.png").write_bytes(Path("data/000.png").read_bytes())
        rows.append({"image": f"{label}.png", "label": label, "annotation": f"{label}.json"})
    over("--cases", write_list(rows))
    for row in rows_of("out"):
        right = "right" if row["predicted"] == row["label"] else "wrong"
        assert (row["case"], row["annotated"], row["annotation_area"]) == (f"{right}_inside", row["label"], 1.0)
        assert row["energy"] == pytest.approx(1) and row["distance"] == 0 and row["contrast_to_noise"] is None
    predicted = rows_of("out")[0]["predicted"]
    other = next(name for name in TEXTS if name != predicted)
    rows = over("--cases", "cases.csv", "--target-text-idx", other)
    assert [row["annotated"] for row in rows] == [name if name == other else None for name in TEXTS]
    rows = over("--cases", "cases.csv", "--all-texts")
    measured = [(row["target"], row["annotated"]) for row in rows if row["annotated"]]
    pairs = [pair for name in TEXTS for pair in dict.fromkeys([(name, name), (predicted, name)])]
    assert sorted(measured) == sorted(pairs)
    overall = [line for line in table_of("evaluation.csv") if line["class"] == "全部" and line["measure"] == "pointing"]
    assert overall[0]["n"] == "3"


def test_points_alone_count_for_hits_only(over, home):
    points = [(name, "point", [[x, y]]) for name in TEXTS for x in range(32) for y in range(24)]
    Path("p.json").write_text(labelme((24, 32), *points), encoding="utf-8")
    (row,) = over("--cases", write_list([{"image": "data/000.png", "label": "松动", "annotation": "p.json"}]))
    assert row["distance"] == 0 and row["annotated"] == row["predicted"]
    assert shown([row], "energy", "iou_half", "iou_otsu", "contrast_to_noise") == [(None,) * 4]


def test_figures_show_the_annotation_and_overlays_do_not(over, cases, monkeypatch):
    from models.runs import run as running

    genuine, drawn = running.encode_outputs, []
    monkeypatch.setattr(running, "encode_outputs", lambda r, *rest: drawn.append(r) or genuine(r, *rest))

    def outlines(*more):
        drawn.clear()
        over("--cases", cases, "--split", "test", *more)
        return {tuple(o and (o.text, *np.ptp(o.contours[0], axis=0)) for o in r.outlines) for (r, *_) in drawn}

    whole = (1, 32, 24)  # 松动
    assert outlines("--target-text-idx", "松动") == {(whole,), (None,)}
    with_it = contents("out")
    assert outlines("--target-text-idx", "松动", "--no-figure") == {()}
    assert outlines("--all-texts") == {(None, None, None), (None, whole, None)}
    predicted = rows_of("out")[0]["predicted"]
    assert outlines("--method", "all") == {(whole,), (None,)} and predicted != "松动"  # the label's, as it is measured
    Path("data/000.json").unlink()
    Path(cases).write_text(Path(cases).read_text(encoding="utf-8").replace("data/000.json", ""), encoding="utf-8")
    assert outlines("--target-text-idx", "松动") == {(None,)}
    without = contents("out")
    pictures = [name for name in with_it if name.startswith("clip_gradcam") and name.endswith(".png")]
    assert [name for name in pictures if with_it[name] != without[name]] == ["clip_gradcam_000.png"]
    assert "clip_gradcam_000_overlay.png" in pictures


def test_annotations_without_a_list(run, home, capsys):
    for name, label in (("000", "松动"), ("001", "松动")):
        shape = (label, "rectangle", [[0, 0], [31, 23]])
        Path(f"data/{name}.json").write_text(labelme((24, 32), shape, ("左", "point", [[1, 1]])), encoding="utf-8")
    rows = run("--annotations", "data", "--target-text-idx", "松动")
    assert shown(rows[:3], "id", "label", "annotated") == [
        ("000.png", "松动", "松动"), ("001.png", "松动", "松动"), ("b/c/000.png", None, None)
    ]  # fmt: skip
    assert "标注中的 左 不是类别文本，没有参加评估" in rows[0]["warning"]
    assert "有标签 2 张，有标注 2 张" in capsys.readouterr().out
    Path("empty").mkdir()
    run("--annotations", "empty")
    assert "empty 中没有任何一张图像的标注" in capsys.readouterr().err
    run("--annotations", "data/000.json", code=2)
    assert "COCO" in capsys.readouterr().err


def test_an_annotation_that_cannot_be_used_is_the_images_error_and_its_mending_resumed(over, cases, capsys):
    before = Path("data/000.json").read_bytes()
    Path("data/000.json").write_text("{", encoding="utf-8")
    over("--cases", cases, code=1)
    assert "失败: data/000.png：无法使用标注 data/000.json：不是合法的 JSON" in capsys.readouterr().err
    Path("data/000.json").write_bytes(before)
    rows = over("--cases", cases, "--resume")
    assert "完成 1 张（另有 3 张此前已完成）" in capsys.readouterr().out and rows[1]["annotated"] == "松动"
    over("--cases", cases, output="undisturbed")
    assert contents("out") == contents("undisturbed")


def test_only_changed_cases_are_done_again(over, cases, capsys):
    over("--cases", cases)
    text = Path(cases).read_text(encoding="utf-8").replace("train", "val").replace(",正常,", ",感染,")
    Path(cases).write_text(text, encoding="utf-8")
    rows = over("--cases", cases, "--resume")
    assert "完成 1 张（另有 3 张此前已完成）" in capsys.readouterr().out  # another label; a split is no reason
    assert shown(rows, "label", "split")[2:] == [("感染", "val"), (None, "val")]
    over("--cases", cases, output="undisturbed")
    assert contents("out") == contents("undisturbed")


def test_a_list_narrowed_to_a_folder_and_a_folder_to_a_list(over, cases, capsys):
    rows = over("--cases", cases, "--image-path", "data/左 侧", "data/b")
    assert [row["image"] for row in rows] == ["data/左 侧/000.png", "data/b/c/000.png"]
    err = capsys.readouterr().err
    assert "列表中有 2 张图像不在 --image-path 之中" in err and "--image-path 中有 1 张图像不在列表之中" in err
    Path("other").mkdir()
    Path("other/x.png").write_bytes(Path("data/000.png").read_bytes())
    over("--cases", cases, "--image-path", "other", code=2)
    assert "没有一张在 --image-path 之中" in capsys.readouterr().err


def test_a_list_is_said_to_be_wrong_before_the_model(over, home, capsys):
    rows = [
        {"image": "data/000.png", "label": "松"},
        {"image": "no.png", "label": "1"},
        {"image": "data/000.png", "label": ""},
    ]
    over("--cases", write_list(rows), "--model-path", "nowhere.pth", code=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(
        "第 2 行：标签 '松'.*第 3 行：找不到图像 no.png.*第 4 行：图像.*相同", error
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split", "test"], "--split 需要病例列表 --cases"),
        (["--target", "label"], "--target label 需要病例列表 --cases"),
        (["--tolerance", "-1"], "--tolerance 应在 0 到 224 之间"),
        (["--tolerance", "nan"], "--tolerance 应在 0 到 224 之间"),
        (["--target", "label", "--all-texts"], "只能二选一"),
    ],
)
def test_flags_that_do_not_go_together(run, capsys, flags, message):
    run(*flags, code=2)
    assert message in capsys.readouterr().err


def test_shards_of_a_list_join_to_what_one_run_leaves(over, cases):
    for number in (2, 1):
        over("--cases", cases, "--shard", f"{number}/2", "--batch-size", "1")
    assert main(["--join", "--output-dir", "out"]) == 0
    over("--cases", cases, "--batch-size", "1", output="undisturbed")
    assert contents("out") == contents("undisturbed") and "evaluation.json" in contents("out")


def test_methods_are_groups_of_their_own_and_an_english_page_is_english(over, cases, monkeypatch):
    from models.runs import evaluating

    genuine, drawn = evaluating.draw_evaluation, []
    monkeypatch.setattr(evaluating, "draw_evaluation", lambda e, *rest: drawn.append(e) or genuine(e, *rest))
    over("--cases", cases, "--split", "test", "--method", "all", "--lang", "en")
    settings = [group["setting"] for group in drawn[0]["groups"]]
    assert settings[0] == "Local Grad-CAM, two layers, dot product, other texts taken off" and "Grad-CAM" in settings
    groups = json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))["groups"]
    assert [group["setting"] for group in groups] == settings and len(settings) > 7
