"""Lists of cases: what a row means, in every encoding and form; what is wrong is said with its line."""

import os

import pytest

from models.cases import tables
from models.cases.listing import BESIDE, Case, read_cases
from models.cases.texts import TextLookup
from models.errors import InputError

NAMES = ["正常", "髋臼杯松动", "骨折"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with three images, one of them in a Chinese folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "影像/甲.png"):
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.touch()
    return tmp_path


def write(text, name="cases.csv", encoding="utf-8"):
    with open(name, "w", encoding=encoding, newline="") as file:
        file.write(text)
    return name


def problem(text, names=NAMES, name="cases.csv", **options):
    with pytest.raises(InputError) as error:
        read_cases(write(text, name), names, **options)
    return str(error.value)


def images(case_list):
    return [case.image for case in case_list.cases]


def test_a_row_in_full(folder):
    (folder / "a.json").touch()
    path = write("image,label,annotation,patient,split,id,年龄\na.png,骨折; 0 ,a.json,P1,test,x-1, 61 \n")
    cases, columns, _ = read_cases(path, NAMES)
    assert columns == ("年龄",)
    assert cases == [Case("a.png", "a.png", "x-1", 2, [2, 0], ["a.json"], "P1", "test", ("61",))]


def test_without_other_columns_the_path_is_the_id_and_nothing_is_known(folder):
    cases, columns, _ = read_cases(write("image\n影像/../a.png\n./b.png\n"), NAMES)
    assert columns == ()
    assert cases[0] == Case("影像/../a.png", "影像/../a.png", "a.png", 2, [], [], None, None, ())
    assert (cases[1].path, cases[1].id) == ("b.png", "b.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_ends_of_lines(folder, encoding, delimiter, end):
    rows = [["图像", " 标签 ", "备注"], ["影像/甲.png", "骨折", "甲"], ["a.png", '"正常；骨折"', ""]]
    path = write(end.join(delimiter.join(row) for row in rows) + end, encoding=encoding)
    cases, columns, _ = read_cases(path, NAMES)
    assert columns == ("备注",)
    assert [(case.image, case.line, case.labels, case.others) for case in cases] == [
        ("影像/甲.png", 2, [2], ("甲",)),
        ("a.png", 3, [0, 2], ("",)),
    ]


def test_utf_16_of_the_other_order_too(folder):
    (folder / "cases.csv").write_bytes(b"\xfe\xff" + "影像,标签\na.png,骨折\n".encode("utf-16-be"))
    assert read_cases("cases.csv", NAMES).cases[0].labels == [2]


def test_an_encoding_that_is_none_and_zeros(folder):
    (folder / "cases.csv").write_bytes(b"image\n\xff\xff\xff.png\n")
    with pytest.raises(InputError, match="^列表 cases.csv 编码不是 UTF-8、带 BOM 的 UTF-16 或 GB18030"):
        read_cases("cases.csv", NAMES)
    assert "第 2 行含有空字符" in problem("image\na.png\0\n")


@pytest.mark.parametrize(
    "header",
    [
        "image,label,annotation,patient,split,id",
        " Image , LABEL,Annotation,PATIENT,Split, ID",
        "图像,标签,标注,患者,划分,编号",
        "影像,类别,掩膜,病人,数据集,编号",
        "图片,标签,标注,患者编号,划分,id",
        "文件名,诊 断,标注文件,住院号,划分,编号",
        "file_name,diagnosis,mask,Patient_ID,subset,id",
    ],
)
def test_names_of_columns(folder, header):
    (folder / "m.png").touch()
    cases, columns, _ = read_cases(write(f"{header}\na.png,骨折,m.png,P1,test,x\n"), NAMES)
    assert (cases, columns) == ([Case("a.png", "a.png", "x", 2, [2], ["m.png"], "P1", "test", ())], ())


def test_a_column_twice(folder):
    assert "image 列出现了两次" in problem("image,Image\na.png,b.png\n")
    assert "年龄 列出现了两次" in problem("image,年龄,年龄\na.png,1,2\n")


def test_of_two_names_of_a_column_the_first_counts_and_the_other_is_carried(folder):
    cases, columns, own = read_cases(write("文件名,诊断,标签,Image\nx,髋痛,骨折,a.png\n"), NAMES)
    assert (columns, own) == (("文件名", "诊断"), {"image": "Image", "label": "标签"})
    assert (cases[0].path, cases[0].labels, cases[0].others) == ("a.png", [2], ("x", "髋痛"))


def test_columns_without_a_name_are_passed_over(folder):
    cases, columns, _ = read_cases(write(",image,,age\n0,a.png,,61\n"), NAMES)
    assert (columns, cases[0].others) == (("age",), ("61",))


def test_no_column_of_images(folder):
    text = problem("Image_Path;label\na.png;0\n")
    assert text.startswith("列表 cases.csv 没有 image（图像）列，有的列是 Image_Path、label；最接近的是 image_path")


def test_a_text_file_of_paths(folder):
    cases, columns, _ = read_cases(write("a.png\n\n  影像/甲.png \r\n", "list.txt"), NAMES)
    assert [(case.image, case.line, case.id) for case in cases] == [
        ("a.png", 1, "a.png"),
        ("影像/甲.png", 3, "影像/甲.png"),
    ]
    assert columns == ()
    assert images(read_cases(write("图像,标签\na.png,0\n", "list.txt"), NAMES)) == ["a.png"]  # a table by its header


@pytest.mark.parametrize("text", ["", "\n \n", "image\n", "image,label\n,\n\n"])
def test_an_empty_list(folder, text):
    assert problem(text) == "列表 cases.csv 中没有图像"


def test_lines_are_those_of_the_file(folder):
    text = 'image,备注\n\na.png,"两\n行"\n,\n"b.png","一\n\n"\nnone.png,\n'
    assert problem(text) == "列表 cases.csv 有 1 处错误：第 9 行：找不到图像 none.png" + BESIDE
    cases, *_ = read_cases(write(text.replace("none.png,\n", "")), NAMES)
    assert [(case.line, case.others) for case in cases] == [(3, ("两\n行",)), (6, ("一",))]


def test_cells_missing_and_too_many(folder):
    cases, *_ = read_cases(write("image,label,age\na.png\nb.png,0,,,\n"), NAMES)
    assert [(case.labels, case.others) for case in cases] == [([], ("",)), ([0], ("",))]
    assert "第 2 行：有 3 格，表头只有 2 列" in problem("image,age\na.png,1,2\n")


def test_each_problem_with_its_line(folder):
    (folder / "m.png").touch()
    text = problem("image,label\nx.png,0\na.png,骨\n影像,0\n,0\n./a.png,0\nb.png,3\n")
    assert text == (
        "列表 cases.csv 有 6 处错误：第 2 行：找不到图像 x.png；"
        "第 3 行：标签 '骨' 不是类别文本，最接近的是 骨折；第 4 行：图像 影像 是文件夹，请每行一张图像；"
        "第 5 行：图像的路径是空的；第 6 行：图像 ./a.png 与第 3 行相同；另有 1 处" + BESIDE
    )
    assert "第 2 行：标签 '3' 不是类别文本，可用短名，或索引 0 到 2" in problem("image,label\na.png,3\n")
    assert "第 3 行：图像 影像/../a.png 与第 2 行相同" in problem("image\na.png\n影像/../a.png\n")
    assert "第 3 行：编号 1 与第 2 行相同" in problem("image,id\na.png,1\nb.png,1\n")
    assert "第 2 行：编号是空的" in problem("image,id\na.png,\n")
    assert "最接近的是 髋臼杯松动" in problem("image,label\na.png,髋臼松动\n")


def test_labels_by_name_first_and_each_once(folder):
    def labels(cell, names=NAMES):
        return read_cases(write(f'image,label\na.png,"{cell}"\n'), names).cases[0].labels

    assert labels("骨折；1; 2.0;骨折;") == [2, 1]
    assert labels("0", ["1", "0"]) == [1]
    assert labels("左;右", ["左", "左;右"]) == [1]
    assert labels(";") == []


def test_labels_that_are_needed(folder):
    assert "没有 label（标签）列" in problem("image\na.png\n", needs_labels=True)
    assert "第 3 行：没有标签" in problem("image,label\na.png,0\nb.png,\n", needs_labels=True)


def test_images_in_another_folder(folder):
    (folder / "lists").mkdir()
    (folder / "lists" / "b.png").touch()
    path = write("image\na.png\nb.png\n../影像/甲.png\n甲.png\n", "lists/cases.csv")
    with pytest.raises(InputError, match="找不到图像 a.png"):
        read_cases(path, NAMES, image_folders=["影像"])
    with pytest.raises(InputError, match="第 5 行：图像 甲.png 与第 4 行相同"):
        read_cases(path, NAMES, image_folders=[".", "影像"])
    cases, *_ = read_cases(write("image\na.png\nb.png\n甲.png\n", path), NAMES, image_folders=[str(folder), "影像"])
    assert [case.path for case in cases] == [str(folder / "a.png"), "lists/b.png", "影像/甲.png"]
    assert [case.id for case in cases] == ["../a.png", "b.png", "../影像/甲.png"]


def test_a_bare_name_anywhere_below_the_image_folders(folder):
    for name in ("原片/深/c.png", "原片/深/d.png", "原片/浅/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    below = {"image_folders": ["原片", "原片/深"]}  # a file that both reach is one
    (case, other), *_ = read_cases(write("image\nc.png\n浅\\d.png\n"), NAMES, **below)
    assert (case.path, case.id, other.path) == ("原片/深/c.png", "原片/深/c.png", "原片/浅/d.png")
    assert "第 2 行：图像 d.png 可能是 原片/深/d.png 或 原片/浅/d.png，请写出更长的路径" in problem(
        "image\nd.png\n", image_folders=["原片"]
    )
    assert "找不到图像 e.png" in problem("image\ne.png\n", image_folders=["原片"])
    assert "第 2 行：找不到图像 c.png。图像不在列表旁边时，请用 --image-path" in problem("image\nc.png\n")


def test_one_path_in_two_image_folders_is_not_guessed(folder):
    for name in ("甲/c.png", "乙/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert "第 2 行：c.png 可能是 甲/c.png 或 乙/c.png，请写出更长的路径" in problem(
        "image\nc.png\n", image_folders=["甲", "乙"]
    )
    (case,), *_ = read_cases(write("image\na.png\n"), NAMES, image_folders=[".", "甲"])
    assert case.path == "a.png"  # beside the list


def test_an_annotation_whose_name_holds_a_separator(folder):
    for name in ("m;1.png", "n.png"):
        (folder / name).touch()
    (one, two), *_ = read_cases(write("image,label,annotation\na.png,0,m;1.png\nb.png,0;1,n.png;a.png\n"), NAMES)
    assert (one.annotations, two.annotations) == (["m;1.png"], ["n.png", "a.png"])


def test_a_list_from_windows(folder):
    (folder / "影像" / "甲.json").touch()
    (case,), *_ = read_cases(write("image,annotation\r\n影像\\甲.png,影像\\甲.json\r\n"), NAMES)
    assert (case.path, case.image, case.id) == ("影像/甲.png", "影像\\甲.png", "影像/甲.png")
    assert case.annotations == ["影像/甲.json"]


def test_absolute_paths(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "c.png"
    other.touch()
    cases, *_ = read_cases(write(f"image\n{other}\n{folder}/影像//甲.png\n"), NAMES)
    assert [(case.path, case.id) for case in cases] == [
        (str(other), str(other)),
        (f"{folder}/影像//甲.png", "影像/甲.png"),
    ]


def test_splits(folder):
    path = write("image,split\na.png,test\ngone.png,train\nb.png, val \n")
    assert images(read_cases(path, NAMES, split=["val", "test"])) == ["a.png", "b.png"]
    assert "split 列中没有 Test，有的是：test、train" in problem(
        "image,split\na.png,test\nb.png,train\n", split=["test", "Test"]
    )
    assert "没有 split（划分）列" in problem("image\na.png\n", split=["test"])


def test_masks_are_one_per_label(folder):
    for name in ("m.png", "n.png", "s.JSON", "v.dcm"):
        (folder / name).touch()

    def annotations(labels, cell):
        return read_cases(write(f'image,label,annotation\na.png,"{labels}","{cell}"\n'), NAMES).cases[0].annotations

    assert annotations("0;1", "m.png；n.png") == ["m.png", "n.png"]
    assert annotations("0", "m.png") == ["m.png"]
    assert annotations("0;1", "s.JSON") == annotations("", "s.JSON") == ["s.JSON"]
    assert annotations("0;1", "影像") == ["影像"]
    assert annotations("", "v.dcm") == ["v.dcm"]
    assert annotations("0", "") == []
    with pytest.raises(InputError, match="第 2 行：标签有 2 个，掩膜有 1 个，"):
        annotations("0;1", "m.png")
    with pytest.raises(InputError, match="第 2 行：标签有 1 个，掩膜有 2 个，"):
        annotations("0", "m.png;n.png")
    with pytest.raises(InputError, match="第 2 行：有掩膜而没有标签"):
        annotations("", "m.png")
    with pytest.raises(InputError, match="第 2 行：找不到标注 o.png"):
        annotations("0", "o.png")


def test_hints_of_the_problems_that_are_shown_alone(folder, monkeypatch):
    """The closest of a thousand names takes milliseconds, and a list may have a million rows."""
    labels = []
    monkeypatch.setattr(TextLookup, "hint", lambda self, label: labels.append(label) or "；")
    for number in range(9):
        (folder / f"{number}.png").touch()
    assert "有 9 处错误" in problem("image,label\n" + "".join(f"{number}.png,x\n" for number in range(9)))
    assert labels == ["x"] * 5


def test_a_hundred_thousand_rows(folder):
    rows = [f"影像/{number % 1000:03}/../../{number:06}.png,{number % 3}" for number in range(100_000)]
    text = problem("image,label\n" + "\n".join(rows) + "\n")
    assert text.startswith("列表 cases.csv 有 100000 处错误：第 2 行：") and text.endswith("；另有 99995 处" + BESIDE)
    (folder / "p").mkdir()
    for number in range(1000):
        (folder / "p" / f"{number}.png").touch()
    os.symlink("p", "q")
    for number in range(99):
        os.symlink("p", f"p{number}")
    names = [f"p{number % 99}/{number // 99}.png" for number in range(99_000)] + [f"q/{n}.png" for n in range(1000)]
    cases, *_ = read_cases(write("\n".join(names), "list.txt"), NAMES)
    assert [case.id for case in cases] == names
    assert cases[-1].line == 100_000


def test_hostile_lists(folder, monkeypatch):
    assert "从第 2 行起不是合法的 CSV" in problem('image,note\na.png,"' + "x" * 200_000 + '"\n')
    assert "从第 3 行起不是合法的 CSV" in problem('image,note\na.png,1\nb.png,"no end\n')
    assert "第 2 行超过 1048576 个字符" in problem("image\n" + "," * (1 << 20) + "\n")
    assert "\\x1b[31m" in problem("image\n\x1b[31m.png\n")
    monkeypatch.setattr(tables, "MOST_ROWS", 2)
    assert "超过 2 行" in problem("image\na.png\nb.png\nc.png\n")
    monkeypatch.setattr(tables, "MOST_LINES", 3)
    assert "超过 3 行" in problem("image\n\n\n\n") and "超过 3 行" in problem("image\r\r\r\r")
    monkeypatch.setattr(tables, "LARGEST_LIST", 1 << 20)
    assert problem("image\n" * 200_000) == "列表 cases.csv 文件超过 1 MB，请分成几个文件"
    os.mkfifo("pipe.csv")
    for path, said in {"pipe.csv": "这是管道", "影像": "这是文件夹", "none.csv": "无法读取"}.items():
        with pytest.raises(InputError, match=said):
            read_cases(path, NAMES)
