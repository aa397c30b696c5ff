"""The report that a run leaves: what its page is told, against the tables; its files; what an anonymous one hides."""

import base64
import csv
import json
import os
import re
import stat
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from folders import contents, rows_of, write_images
from PIL import Image
from tiny import gradient_picture

from clip_gradcam_visualization import main
from models.report.page import CARDS_PER_FILE, IMAGES_INLINE
from models.runs.naming import Anonymous, Naming
from models.runs.records import PlannedImage
from models.runs.reporting import MOST_BY_DEFAULT, ReportChoice, report_choice
from models.runs.state import STATE_FOLDER

CARDS = Path("out", STATE_FOLDER, "cards")


def report_of(folder="out"):
    """(the document, {index: card}) of a report, of its side files too."""
    page = (Path(folder) / "report.html").read_text(encoding="utf-8")
    (document,) = re.findall('<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    inline = re.findall('class="card" data-index="([0-9]+)">(.*?)</script>', page, re.DOTALL)
    cards, document = {int(index): json.loads(card) for index, card in inline}, json.loads(document)
    for name in document["card_files"] or ():
        text = (Path(folder) / name).read_text(encoding="utf-8")
        first, of_file = re.fullmatch(r"addCards\((\d+), \[\n(.*),\n\]\);\n", text, re.DOTALL).groups()
        cards |= {index: card for index, card in enumerate(json.loads(f"[{of_file}]"), int(first)) if card}
    return document, cards


# -- whether there is one ---------------------------------------------------------------------

PLAIN, HIDDEN, NONE = ReportChoice(True), ReportChoice(True, True), ReportChoice()
CHOICES = [
    (None, False, 1, None, NONE), (None, False, 2, None, PLAIN), (None, False, MOST_BY_DEFAULT, None, PLAIN),
    (None, False, MOST_BY_DEFAULT + 1, None, NONE), (True, False, MOST_BY_DEFAULT + 1, None, PLAIN),
    (True, False, 1, None, PLAIN), (False, False, 9, None, NONE), (None, True, 1, None, HIDDEN),
    (True, True, 9, None, HIDDEN),
    # of a run that goes on, or is joined
    (None, False, 9, {"report": False}, NONE), (None, False, 1, {"report": True, "anonymous": True}, HIDDEN),
    (None, False, 9, {}, NONE), (None, False, 9, {"report": 1, "anonymous": "x"}, NONE),
    (True, False, 9, {"report": True, "anonymous": True}, PLAIN), (False, False, 9, {"report": True}, NONE),
    (None, True, 9, {"report": True}, HIDDEN),
]  # fmt: skip


@pytest.mark.parametrize("asked, anonymous, images, earlier, expected", CHOICES)
def test_whether_a_report_is_written(asked, anonymous, images, earlier, expected):
    assert report_choice(asked, anonymous, images, earlier) == expected


def test_one_image_has_none_unless_it_is_asked_for(run, capsys):
    run(images=["data/000.*"])
    assert not Path("out/report.html").exists() and not CARDS.exists()
    run("--report", images=["data/000.png"])
    assert "报告已保存：out/report.html（1 张图像，0.1 MB）" in capsys.readouterr().out
    run("--anonymous", "--no-report", code=2)
    assert "--anonymous 与 --no-report 只能二选一" in capsys.readouterr().err


def test_without_a_report_nothing_of_an_earlier_one_stays(run):
    run("--anonymous")
    others = [Path("out/report_files/mine.js"), Path("out/report_files/mine/cards-001.js"), CARDS / "mine.txt"]
    for path in (*others, Path("out/report_files/cards-001.js")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    run("--no-report")
    left = [path for path in Path("out").rglob("*") if path.is_file() and re.search("report|cards", str(path))]
    assert sorted(left) == sorted(others)


def test_others_files_of_the_reports_names_are_kept_until_they_are_written_over(run):
    Path("out").mkdir()
    for name in ("report.html", "report_key.csv"):
        Path("out", name).write_text("mine")
    run("--no-report")
    assert Path("out/report.html").read_text() == Path("out/report_key.csv").read_text() == "mine"


# -- what the page is told --------------------------------------------------------------------


@pytest.fixture
def study(home):
    """A list of six pictures: labels, patients, a mask and a point; one is no picture, one has an odd name."""
    write_images(home / "data", 1, start=2)
    Path("data/001.png").rename("data/<b>&\u2028'.png")
    Path("data/左 侧/001.png").write_bytes(b"")
    mask = np.zeros((24, 32), np.uint8)
    mask[6:18, 8:16] = 255
    Image.fromarray(mask).save("mask.png")
    point = {"label": "正常", "shape_type": "point", "points": [[5, 5]]}
    Path("point.json").write_text(json.dumps({"shapes": [point], "imageHeight": 24, "imageWidth": 32}))
    rows = [
        ("image", "label", "annotation", "patient", "split", "id", "年龄"),
        ("data/左 侧/000.png", "松动", "mask.png", "张三", "test", "病例甲", "63"),
        ("data/000.png", "正常;感染", "", "李四", "test", "case-2", ""),
        ("data/<b>&\u2028'.png", "感染", "", "张三", "train", "case-3", "=1+1"),
        ("data/左 侧/001.png", "正常", "", "王五", "train", "case-4", "65"),
        ("data/b/c/000.png", "正常", "point.json", "李四", "train", "case-5", "66"),
        ("data/002.png", "", "", "", "train", "case-6", "67"),
    ]
    with open("cases.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return rows


@pytest.fixture
def over(command, study):
    """A function that runs over the list; one image fails."""

    def run_over(*more, code=1, output="out"):
        arguments = command(output=output)
        place = arguments.index("--image-path")
        assert main([*arguments[:place], "--cases", "cases.csv", *more]) == code

    return run_over


def test_the_page_is_told_what_the_tables_say(over, study):
    over("--tolerance", "3")
    document, cards = report_of()
    rows, listed = {row["id"]: row for row in rows_of("out")}, study[1:]
    assert document["columns"] == ["patient", "split", "年龄"] and list(cards) == [0, 1, 2, 4, 5]
    assert [image["id"] for image in document["images"]] == [row[5] for row in listed]
    assert document["names"] == ["正常", "松动", "感染"] and document["lang"] == "zh"
    assert document["texts"] == [[name] for name in document["names"]]
    assert document["has_list"] and document["has_annotations"] and not document["tested"]
    assert document["tolerance"] == 3 and document["title"] == {"zh": "热力图报告：data", "en": "Heatmap report: data"}
    (setting,) = document["settings"]
    columns = {"rank": "rank", "similarity": "similarity", "specificity": "text_specificity", "case": "case"}
    columns |= {"distance": "distance", "area": "area_above_half", "target": "target_text_idx"}
    for image in document["images"]:
        row = rows[image["id"]]
        assert image["path"] == row["image"].replace("\u2028", "\\u2028")
        assert image["name"] == Path(image["path"]).name
        assert image["values"] == [row["patient"], row["split"], row["年龄"]]
        labels = [document["names"][label] for label in image["labels"]]
        assert labels == (row["label"].split(";") if row["label"] else [])
        if "error" in row:
            assert image["error"]["zh"] == row["error"] and (image["rows"], image["size"]) == ([], None)
            continue
        assert image["error"] is None and image["size"] == [row["width"], row["height"]] == [32, 24]
        assert document["names"][image["predicted"]] == row["predicted"] and image["figure"] == row["figure"]
        assert image["probabilities"] == row["probabilities"] and "overlays" not in image
        (of_page,) = image["rows"]
        assert {name: of_page[name] for name in columns} == {name: row.get(column) for name, column in columns.items()}
        assert of_page["peak"] == [row["peak_x"], row["peak_y"]] and setting["zh"] == row["setting"]
        assert (of_page["warning"] or {}).get("zh") == row["warning"]
        annotated = of_page["annotated"]
        assert (None if annotated is None else document["names"][annotated]) == row["annotated"]
        measures = {name: row.get(name) for name in ("energy", "iou_half", "iou_otsu", "contrast_to_noise")}
        assert of_page["measures"] == {name: value for name, value in measures.items() if value is not None}
    evaluation = json.loads(Path("out/evaluation.json").read_text(encoding="utf-8"))
    assert document["evaluation"] == evaluation and evaluation["groups"][0]["setting"] == setting["zh"]


def test_cards_have_the_maps_that_are_saved_and_the_outlines_of_all_annotated_texts(over):
    over("--all-texts", "--save-heatmap", "layer")
    document, cards = report_of()
    rows = [row for row in rows_of("out") if "error" not in row]
    saved = iter([np.load(Path("out", row["layer_heatmap"])) for row in rows])
    for card in cards.values():
        for of_map in card["maps"]:
            levels = np.frombuffer(base64.b64decode(of_map["levels"]), np.uint8).reshape(of_map["grid"])
            layer = next(saved)
            np.testing.assert_allclose(levels / 255 * layer.max(), layer, atol=0.5 / 255 * layer.max() + 1e-6)
        assert [of_map["row"] for of_map in card["maps"]] == [0, 1, 2]
        assert min(of_map["peak"] / of_map["own"] for of_map in card["maps"]) < 1  # one scale for the texts
    assert next(saved, None) is None
    ((mask,), (circle,)) = ([outline for outline in cards[index]["outlines"]] for index in (0, 4))
    (contour,) = mask["contours"]
    assert mask["text"] == 1 and {*contour[::2]} <= {0.25, 0.5} and {*contour[1::2]} <= {0.25, 0.75}
    assert circle["text"] == 0 and len(circle["contours"]) == 1
    assert [card["outlines"] for index, card in cards.items() if index not in (0, 4)] == [[]] * 3
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(cards[0]["jpeg"]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(picture, gradient_picture(24, 32), atol=60)
    assert abs(picture.astype(int) - gradient_picture(24, 32)).mean() < 6
    assert [row["target"] for row in document["images"][0]["rows"]] == [0, 1, 2]


def test_methods_are_settings_and_a_report_without_figures_links_overlays(over):
    over("--method", "all", "--no-figure", "--split", "test", "--lang", "en", code=0)
    document, cards = report_of()
    rows = rows_of("out")
    assert document["lang"] == "en" and len(document["settings"]) == len(rows) / 2 > 5
    assert document["settings"][0] == {
        "zh": "Local Grad-CAM，两层，点积，减去其他文本",
        "en": "Local Grad-CAM, two layers, dot product, other texts taken off",
    }
    for image, card in zip(document["images"], cards.values(), strict=True):
        own = [row for row in rows if row["id"] == image["id"]]
        assert image["figure"] is None and list(image["overlays"].values()) == [row["overlay"] for row in own]
        assert [row["setting"] for row in image["rows"]] == list(range(len(own))) and len(card["maps"]) == len(own)
        assert all(of_map["own"] == of_map["peak"] for of_map in card["maps"])  # each has its own scale


# -- however it was come to -------------------------------------------------------------------


def test_shards_a_resumption_and_a_joining_give_the_same_bytes(over):
    over("--batch-size", "1")
    expected = contents("out")
    assert "report.html" in expected
    (CARDS / "左 侧" / "clip_gradcam_000.json").unlink()
    (CARDS / "clip_gradcam_002.json").write_bytes(b"half")
    over("--batch-size", "1", "--resume")
    assert contents("out") == expected
    assert main(["--join", "--output-dir", "out"]) == 1 and contents("out") == expected
    for number in (2, 1):
        over("--batch-size", "1", "--shard", f"{number}/2", output="shards", code=number == 2)
        assert not Path("shards/report.html").exists()
    assert main(["--join", "--output-dir", "shards"]) == 1 and contents("shards") == expected


def test_what_is_done_again_is_what_has_no_card(over, capsys):
    over()
    (CARDS / "b" / "c" / "clip_gradcam_000.json").unlink()
    over("--resume")
    assert "完成 1 张（另有 4 张此前已完成）" in capsys.readouterr().out


def test_a_list_that_grows_goes_on_as_it_began(run):
    run(images=["data/000.*"])
    run("--resume", images=["data/000.*", "data/001.png"])
    assert len(rows_of("out")) == 2 and not Path("out/report.html").exists()
    run(images=["data/000.*", "data/001.png"])
    run("--resume", images=["data/*.png"])
    assert len(report_of()[0]["images"]) == 2


@pytest.mark.parametrize("flag, named", [("--no-report", "--report 或 --no-report"), ("--anonymous", "--anonymous")])
def test_another_report_is_made_by_joining_and_no_resumption(run, capsys, flag, named):
    run()
    before = contents("out")
    run("--resume", flag, code=2)
    assert f"--resume：与上次运行不同：{named}" in capsys.readouterr().err and contents("out") == before
    assert main(["--join", "--output-dir", "out", flag]) == 0
    assert ("report.html" in contents("out")) == (flag == "--anonymous") == ("report_key.csv" in contents("out"))
    assert main(["--join", "--output-dir", "out"]) == 0 and contents("out") == before


def test_many_images_have_cards_in_files_beside_the_page_and_fewer_none(run, home, capsys):
    write_images(home / "data" / "more", 296)
    run("--overlay-only")
    assert re.search(r"报告已保存：out/report.html（301 张图像，\d\.\d MB）", capsys.readouterr().out)
    document, cards = report_of()
    assert document["card_files"] == ["report_files/cards-001.js", "report_files/cards-002.js"]
    assert IMAGES_INLINE == 300 and CARDS_PER_FILE == 200 and list(cards) == list(range(301))
    for index in (0, 199, 200, 300):
        name = rows_of("out")[index]["overlay"].replace("_overlay.png", ".json")
        assert cards[index] == json.loads((CARDS / name).read_bytes())
    Path("out/report_files/mine.js").write_text("mine")
    plan = Path("out", STATE_FOLDER, "plan.jsonl")
    plan.write_text("".join(plan.read_text().splitlines(True)[:300]))
    assert main(["--join", "--output-dir", "out"]) == 0
    assert list(report_of()[1]) == list(range(300)) and os.listdir("out/report_files") == ["mine.js"]


def test_no_report_of_before_stays_where_the_new_one_cannot_be_written(run, capsys):
    """Least of all one with names where it was to tell none."""
    run()
    Path("out/report_key.csv").mkdir()
    assert main(["--join", "--output-dir", "out", "--anonymous"]) == 1
    assert "无法写入 out/report_key.csv" in capsys.readouterr().err and not Path("out/report.html").exists()


# -- of strangers -----------------------------------------------------------------------------


def test_a_bad_card_is_left_out_and_said(over, capsys):
    over()
    before, (good, bad) = report_of(), [CARDS / "clip_gradcam_000.json", CARDS / "clip_gradcam_002.json"]
    data = bad.read_bytes()
    bad.write_bytes(data.replace(b'"jpeg":"/9j/', b'"jpeg":"<svg'))
    assert main(["--join", "--output-dir", "out"]) == 1
    assert "报告中 1 张图像没有图：它们的卡片缺失或已损坏（002.png）" in capsys.readouterr().err
    document, cards = report_of()
    assert document == before[0] and cards == {index: card for index, card in before[1].items() if index != 5}
    assert b"<svg" not in Path("out/report.html").read_bytes()
    bad.unlink()
    bad.symlink_to(good.absolute())  # as large as is said, or not: a link is none of ours
    assert main(["--join", "--output-dir", "out"]) == 1 and 5 not in report_of()[1]


def change_lines(file, change):
    path = Path("out", STATE_FOLDER, file)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


LEADING_OUT = [
    "../thesis.png",
    "/etc/a.png",
    "a/../../b.png",
    "C:\\a.png",
    "..\\a.png",
    "javascript:alert(1)",
    "",
    "x\ud800.png",
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_of_the_folder_is_no_link(name):
    assert Naming([]).link(name) is None
    assert Naming([]).link(None) is None and Naming([]).link("") is None
    for fine in ("a.png", "左 侧/a:b#?.jpg", "..a.png"):
        assert Naming([]).link(fine) == fine


@pytest.mark.parametrize("name", ["../../../elsewhere", "/etc/passwd", "a\0b", "\ud800", "x" * 5000], ids=range(5))
def test_plans_and_rows_of_strangers_read_no_card_elsewhere_and_give_no_link(over, home, name):
    over()
    before = report_of()[0]
    (home / "elsewhere.json").write_bytes((CARDS / "clip_gradcam_000.json").read_bytes())
    size = (home / "elsewhere.json").stat().st_size

    def elsewhere(line):
        return [line[0], name, *line[2:]]

    def leading(line):
        line["files"] |= {f".clip_gradcam/cards/{name}.json": size}
        for row in line["rows"]:
            if "figure" in row:
                row |= {"figure": "../a.png", "overlay": "/a.png"}
        return line

    change_lines("plan.jsonl", elsewhere)
    change_lines("rows-0.jsonl", leading)
    main(["--join", "--output-dir", "out"])
    document, cards = report_of()
    assert cards == {} and [image["figure"] for image in document["images"]] == [None] * 6
    assert [image["id"] for image in document["images"]] == [image["id"] for image in before["images"]]


def test_a_plan_of_strangers_with_a_path_for_a_name_reads_no_card(run, home):
    run()
    change_lines("plan.jsonl", lambda line: [line[0], str(home / "out" / line[1]), *line[2:]])
    assert main(["--join", "--output-dir", "out"]) == 0
    document, cards = report_of()
    assert cards == {} and len(document["images"]) == 5


@pytest.mark.parametrize("odd", [{"target_text_idx": 7}, {"case": "</script>"}, {"case": "right_inside"}])
def test_rows_that_the_page_cannot_show_are_an_error_of_their_image(run, odd):
    run()

    def other(line):
        if "左" in line["image"]:
            line["rows"][0] |= odd
        return line

    change_lines("rows-0.jsonl", other)
    main(["--join", "--output-dir", "out"])
    document, cards = report_of()
    assert [image["error"] is None for image in document["images"]] == [True, True, True, False, False]
    assert list(cards) == [0, 1, 2] and "不是本工具写的" in document["images"][4]["error"]["zh"]


# -- anonymous --------------------------------------------------------------------------------


def spellings(text):
    """Bytes that would tell a text: as it is, percent-encoded, escaped, in base64 wherever it begins."""
    data = text.encode("utf-8")
    yield from (data, quote(text).encode(), json.dumps(text)[1:-1].encode())
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data)
        yield encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]


def test_an_anonymous_report_tells_nothing_of_whose_the_images_are(over, study, capsys):
    over("--anonymous")
    out = capsys.readouterr().out
    assert "编号与图像的对照表：out/report_key.csv；请与报告分开保管" in out
    document, cards = report_of()
    written = Path("out/report.html").read_bytes()
    told = [text for row in study[1:] for text in (row[0], Path(row[0]).name, row[2], row[3], row[5], row[6])]
    told += [Path(row[0]).stem for row in study[1:] if Path(row[0]).stem not in ("000", "001", "002")]
    told += ["左 侧", "data/", "年龄", os.getcwd(), "clip_gradcam_000", "report_key"]
    for text in filter(None, told):
        for spelling in spellings(text):
            assert len(spelling) < 3 or spelling not in written, (text, spelling)
    images = document["images"]
    assert [image["id"] for image in images] == [f"{number:03d}" for number in range(1, 7)] and len(cards) == 5
    assert document["columns"] == ["patient", "split"] and document["anonymous"]
    patients = ["P01", "P02", "P01", "P03", "P02", None]
    assert [image["values"] for image in images] == [
        [patient, row[4]] for patient, row in zip(patients, study[1:], strict=True)
    ]
    assert [image["labels"] for image in images] == [[1], [0, 2], [2], [0], [0], []]
    assert images[3]["error"] == {"zh": "原因见结果表", "en": "the results table says why"}
    key = Path("out/report_key.csv")
    lines = list(csv.reader(key.read_text(encoding="utf-8-sig").splitlines()))
    assert lines[0] == ["number", "id", "image", "patient"] and [line[0] for line in lines[1:]] == [
        image["id"] for image in images
    ]
    assert [[line[1], line[3]] for line in lines[1:]] == [[row[5], row[3]] for row in study[1:]]
    if os.name == "posix":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert main(["--join", "--output-dir", "out", "--report"]) == 1
    assert not key.exists() and report_of()[0]["images"][0]["id"] == "病例甲"


def test_marks_of_an_anonymous_report_belong_to_these_very_images(run):
    keys = []
    for flags in ([], ["--anonymous"]):
        for images in (["data"], ["data/000.png", "data/b"]):
            run(*flags, images=images)
            keys.append(report_of()[0]["run"])
    assert keys[0] == keys[1] and len(set(keys)) == 3  # ids are of the folder, numbers of the list
    run("--anonymous", "--lang", "en", images=["data/000.png", "data/b"])
    assert report_of()[0]["run"] == keys[-1]


@pytest.mark.parametrize(
    "warning, is_kept",
    [
        ("热力图几乎不随文本变化（文本特异性 0.01）", True),
        ("x 与 PAT-77 相同", False),
        ("标注中的 左髋 不是类别文本，没有参加评估", False),
        ("见 IMG_5", False),
        ("a/b", False),
        ("检查点没有说明输入图像的大小，按 224×224 处理", True),
    ],
)
def test_a_warning_that_may_name_the_image_is_not_said(warning, is_kept):
    columns = {"id": "2", "image": "d/img_5.png", "patient": "pat-77", "split": "224", "note": None}
    image = PlannedImage("/x/d/img_5.png", "clip_gradcam_img_5", True, columns)
    texts = {"zh": warning, "en": "fine"}
    said = Anonymous([image]).warning(image, texts)
    hidden = {"zh": "该图像有警告，见结果表", "en": "There is a warning about this image: see the results table"}
    assert said == (texts if is_kept else hidden)
