"""Lists of cases, and annotations: LabelMe, COCO, masks, DICOM segmentations, folders of these."""

import base64
import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path
from random import Random

import pydicom

from .dicom import CODES, dicom_bomb, dicom_lengths, dicom_syntax, dicom_tags
from .images import IMAGE_FORMATS, disguised
from .mutate import (
    ODD_TEXTS,
    OURS,
    TEXTS_FILE,
    VALID,
    command,
    json_bytes,
    mutate_bytes,
    mutate_tree,
    number,
    odd_text,
    odd_value,
    own_cache,
    some,
    valid_bytes,
    valid_files,
    write,
)

HEADER = ["image", "label", "annotation", "patient", "split", "id", "年龄"]
ROWS = [
    ["a.png", "松动", "a.json", "P1", "test", "1", "70"],
    ["b.png", "正常;感染", "coco.json", "P1", "test", "2", "=1+1"],
    ["c.dcm", "1", "c_seg.dcm", "P2", "train", "3", ""],
    ["d.png", "感染", "masks/png/grey", "P3", "train", "4", "60"],
]
COLUMN_NAMES = (*HEADER, "图像", "标签", "标注", "掩膜", "患者", "IMAGE", "names", "probabilities", "error", "file")
CELLS = (
    "a.png", "./a.png", "b.png", "sub/../a.png", "../in/a.png", "../outside/thesis.txt", "pipe", "loop", "folder",
    "link.png", "linked", ".", "..", "/", "/dev/zero", "/dev/stdin", "/proc/self/mem", "~/a.png", "*.png", "a" * 300,
    "a/" * 3000, "http://a/b.png", "C:\\a.png", "coco.json", "a.json", "c_seg.dcm", "masks/png/grey", "masks",
    "a.json;a.json", "masks/png/grey;masks/gif/grey", ";" * 5000, "a.json；b.json", "松动", "正常；松动", "松动;松动",
    "2.0", "3", "-1", "٣", "9" * 30, "正常;x", "test", "train", "P1", *ODD_TEXTS,
)  # fmt: skip


def _table(random: Random) -> list[list[str]]:
    """The valid rows with cells, columns and rows changed."""
    rows = [list(row) for row in [HEADER, *ROWS]]
    for _ in some(random):
        action, row = random.randrange(8), random.choice(rows)
        place = random.randrange(len(row) + 1)
        if action == 0:
            rows.insert(random.randrange(len(rows) + 1), random.choice((list(row), [], ["", " "], ["a.png"] * 9)))
        elif action == 1 and len(rows) > 1:
            rows.remove(row)
        elif action == 2:
            del row[place:]
        elif action == 3:
            rows[0][place : place + 1] = [random.choice((*COLUMN_NAMES, *ODD_TEXTS))]
        else:
            row[place : place + 1] = [random.choice(CELLS)]
    return rows


def _as_csv(random: Random, rows: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    quoting = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    delimiter, end = random.choice(",,,\t;"), random.choice(("\n", "\r\n", "\r"))
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    encodings = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "gb18030", "utf-16-be", "utf-32", "big5", "utf-7")
    return stream.getvalue().encode(random.choice(encodings), "replace")


def _large_list(random: Random) -> bytes:
    return random.choice(
        (
            lambda: "image\n" + "a.png\n" * 100_000,
            lambda: "image\n" + "\n".join(f"{n}.png" for n in range(50_000)),
            lambda: "\n" * 3_000_000 + "a.png",
            lambda: "image" + ",x" * 400_000 + "\na.png\n",
            lambda: ",".join(["image", *map(str, range(50_000))]) + "\na.png\n",
            lambda: "image,label\na.png," + "松动;" * 100_000,
            lambda: "image,x\na.png," + "长" * random.choice((1000, 140_000, 1_100_000)),
            lambda: 'image,x\na.png,"' + '""' * random.choice((100, 60_000, 600_000)) + '"',
            lambda: 'image,x\na.png,"' + "a\n" * 200_000,
            lambda: "image,annotation\na.png," + "a.json;" * 30_000,
            lambda: "image,label\n" + "".join(f"a.png,{n}松\n" for n in range(100_000)),
        )
    )().encode()


def _plant() -> None:
    """The valid cases in `in`, and beside them what is no file."""
    own_cache()
    shutil.copytree(VALID / "cases", "in")
    os.mkdir("in/folder")
    os.mkfifo("in/pipe")
    os.symlink("loop", "in/loop")
    os.symlink("a.png", "in/link.png")
    os.symlink("../outside", "in/linked")


def case_command(random: Random, *more: str, cases: str = "in/cases.csv") -> list[str]:
    """A command over a list; mostly as the only shard, whose evaluation waits: that takes the most time."""
    flags = ["--shard", "1/1"] if random.random() < 0.85 else random.choice(([], [], ["--lang", "en"]))
    target = ["--target", "label"] if random.random() < 0.15 else []
    argv = command(random, "--num-workers", "0", "--cases", str(cases), *flags, *target, *more)
    at = argv.index("--image-path")
    return argv[:at] + argv[at + 2 :]


def make_case_list(random: Random) -> list[str]:
    _plant()
    data = random.choice(
        (
            lambda: mutate_bytes(random, valid_bytes("cases/cases.csv")),
            *[lambda: _as_csv(random, _table(random))] * 6,
            lambda: mutate_bytes(random, _as_csv(random, _table(random))),
            lambda: "\n".join(random.choices(CELLS, k=5)).encode("utf-8", "replace"),
            lambda: disguised(random, b""),
            lambda: _large_list(random),
        )
    )()
    path = write(f"in/list{random.choice(('.csv', '.csv', '.txt', '.tsv', ''))}", data)
    if random.random() < 0.1:
        path = random.choice(
            ("in/pipe", "in/loop", "in/folder", "in", "/dev/zero", "/dev/stdin", "in/missing", "in/a.png")
        )
    more = random.choice(
        (
            *[[]] * 6,
            ["--split", random.choice(("test", "train", *ODD_TEXTS[3:]))],
            ["--image-path", random.choice(("in", "in/a.png", "in/*.png", "in/folder", "in/linked"))],
            ["--annotations", random.choice(("in", "in/coco.json", "in/a.json", "in/pipe", "in/loop", "in/missing"))],
        )
    )
    return case_command(random, *more, cases=path)


# -- annotations ---------------------------------------------------------------------------------


def _annotated(random: Random, path: str, image: str = "a.png") -> list[str]:
    """A command whose image is annotated by a file below `in`, by the list's column or for all cases."""
    with_label = random.choice(("", "松动", "松动", "正常;感染"))
    if random.random() < 0.7:
        rows = [
            ["image", "label", "annotation"],
            [image, with_label, os.path.relpath(path, "in")],
            ["b.png", "正常", ""],
        ]
        more = []
    else:
        rows, more = [["image", "label"], [image, with_label], ["b.png", "正常"]], ["--annotations", path]
    write("in/list.csv", "\n".join(",".join(row) for row in rows).encode())
    return case_command(random, *more, cases="in/list.csv")


def _coordinate(random: Random):
    return random.choice(
        (0, -1, 0.5, 1e9, -1e300, 1e308, 5e-324, 2**63, 10**400, 64, True, "1", None, [1], number(random))
    )


def _odd_of_annotations(random: Random):
    """What a JSON of annotations may hold in place of something else."""
    points = [[_coordinate(random), _coordinate(random)] for _ in range(random.choice((1, 2, 3, 50)))]
    return random.choice(
        (
            odd_value(random),
            _coordinate(random),
            points,
            [value for pair in points for value in pair],
            {
                "size": [number(random), number(random)],
                "counts": random.choice(([1], "04", "P" * 50, "o" * 9, [2**62] * 4)),
            },
            [[_coordinate(random)] * 6] * random.choice((1, 2, 300)),
            random.choice(("polygon", "rectangle", "circle", "point", "mask", "line", "linestrip", "points")),
        )
    )


def _labelme_png(random: Random, document: dict) -> dict:
    """The mask in a document as another picture, whole or not."""
    shape = next(shape for shape in document["shapes"] if shape["shape_type"] == "mask")
    restructure = random.choice((IMAGE_FORMATS["png"][1], mutate_bytes, disguised))
    data = base64.b64encode(restructure(random, base64.b64decode(shape["mask"]))).decode()
    shape["mask"] = data if random.random() < 0.9 else mutate_bytes(random, data.encode()).decode("latin1")
    return document


def _large_labelme(random: Random, document: dict) -> dict:
    shape = random.choice(document["shapes"])
    return random.choice(
        (
            lambda: document | {"shapes": document["shapes"] * 3000},
            lambda: document | {"shapes": [shape] * 300},
            lambda: (
                document
                | {"shapes": [shape | {"shape_type": "polygon", "points": [[n % 64, n % 47] for n in range(300_000)]}]}
            ),
            lambda: (
                document
                | {
                    "shapes": [shape | {"shape_type": "polygon", "points": [[n % 64, n % 47] for n in range(90_000)]}]
                    * 3
                }
            ),
            lambda: document | {"imageData": "A" * 5_000_000, "shapes": [shape]},
            lambda: document | {"imageHeight": 48000, "imageWidth": 64000},
            lambda: document | {"shapes": [shape | {"label": odd_text(random)} for _ in range(40)]},
        )
    )()


def _large_coco(random: Random, document: dict) -> dict:
    annotation = random.choice(document["annotations"])
    sizes = random.choice(((48, 64), (4800, 6400), (6000, 8000)))
    height, width = sizes
    return random.choice(
        (
            lambda: document | {"annotations": [annotation] * random.choice((200, 20_000))},
            lambda: document | {"images": document["images"] * random.choice((2, 20_000))},
            lambda: document | {"annotations": [annotation | {"segmentation": [[n % 64 for n in range(200_000)]]}]},
            lambda: document | {"annotations": [annotation | {"segmentation": [[0, 0, 0, 40, 50, 40]] * 9000}]},
            lambda: (
                document
                | {"annotations": [annotation | {"segmentation": {"size": list(sizes), "counts": [0, height * width]}}]}
            ),
            lambda: (
                document
                | {
                    "annotations": [
                        annotation | {"segmentation": {"size": list(sizes), "counts": [1] * (height * width)}}
                    ]
                }
            ),
            lambda: (
                document
                | {"annotations": [annotation | {"segmentation": {"size": list(sizes), "counts": "1" * 400_000}}]}
            ),
            lambda: document | {"categories": document["categories"] * 50_000},
            lambda: document | {"images": [image | {"width": 64000, "height": 48000} for image in document["images"]]},
        )
    )()


def _json(random: Random, name: str, large, *others) -> bytes:
    """A valid JSON of annotations, changed by its bytes, by its tree, or as `large` and `others` do."""
    document = json.loads(valid_bytes(name))
    encodings = ("utf-16", "gb18030", "utf-8-sig", "utf-32", "utf-16-be")
    return random.choice(
        (
            lambda: mutate_bytes(random, valid_bytes(name)),
            *[lambda: json_bytes(random, mutate_tree(random, document, _odd_of_annotations))] * 6,
            lambda: json_bytes(random, large(random, document)),
            lambda: json.dumps(document, ensure_ascii=False).encode(random.choice(encodings)),
            lambda: (
                b" " * random.choice((10, 5000))
                + random.choice((b"[", b'{"a":')) * random.choice((900, 100_000, 5_000_000))
            ),
            *(lambda other=other: json_bytes(random, other(random, document)) for other in others),
        )
    )()


def make_labelme(random: Random) -> list[str]:
    _plant()
    return _annotated(
        random, write("in/a.json", _json(random, "cases/a.json", _large_labelme, _labelme_png, _labelme_png))
    )


def make_coco(random: Random) -> list[str]:
    _plant()
    return _annotated(random, write("in/coco.json", _json(random, "cases/coco.json", _large_coco)))


def make_mask(random: Random) -> list[str]:
    _plant()
    kind = random.choice(("png", "png", "tiff", "tiff", "bmp", "gif", "jpeg"))
    data = valid_bytes(random.choice(valid_files(random.choice((f"cases/masks/{kind}", f"images/{kind}")))))
    mutate = random.choice((mutate_bytes, *[IMAGE_FORMATS[kind][1]] * 3, disguised))
    return _annotated(
        random, write(f"in/mask/a{random.choice(('.png', '.tif', '.gif', '.bmp', '.jpg'))}", mutate(random, data))
    )


SEGMENTATION_VALUES = {
    "US": (0, 1, 2, 3, 8, 16, 47, 65535),
    "IS": ("0", "-1", "2", "10001", "abc", "", "1e9"),
    "CS": (*CODES, "SEG", "BINARY", "FRACTIONAL"),
    "UI": ("1.2.3", "", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"),
    "LO": ("松动", "正常", "x", "", "a" * 500, "\x1b[31m"),
    "SQ": ([], [pydicom.Dataset()], [pydicom.Dataset()] * 3),
}


def _segmentation_elements(random: Random, data: bytes) -> bytes:
    """Elements at any depth replaced, taken out or doubled."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    for _ in some(random):
        place = dataset
        while True:
            element = random.choice(list(place) or [None])
            if element is None or element.VR != "SQ" or not element.value or random.random() < 0.2:
                break
            place = random.choice(element.value)
        if element is None or random.random() < 0.3:
            place.pop(element.tag if element else 0, None)
        elif element.VR == "SQ" and random.random() < 0.3:
            element.value = pydicom.Sequence(list(element.value) * random.choice((2, 3, 12_000)))
        elif element.VR in SEGMENTATION_VALUES:
            with contextlib.suppress(ValueError, OverflowError):  # what pydicom itself does not take
                element.value = random.choice(SEGMENTATION_VALUES[element.VR])
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, implicit_vr=False, little_endian=True)
    except Exception:  # nor write
        return mutate_bytes(random, data)
    return stream.getvalue()


def make_segmentation(random: Random) -> list[str]:
    _plant()
    data = valid_bytes(random.choice(valid_files("cases/segmentations")))
    mutate = random.choice(
        (mutate_bytes, *[_segmentation_elements] * 5, dicom_tags, dicom_syntax, dicom_lengths, dicom_bomb)
    )
    return _annotated(random, write("in/seg/c.dcm", mutate(random, data)), random.choice(("c.dcm", "c.dcm", "a.png")))


def _put(random: Random, place: Path) -> None:
    """An annotation, an image, a link, a pipe or a folder at a place."""
    names = ("a.json", "coco.json", "c_seg.dcm", "masks/png/grey", "a.png")
    data = valid_bytes(f"cases/{random.choice(names)}")
    targets = (place.name, "/dev/zero", os.path.abspath("outside"), "..", os.path.abspath("in/a.png"))
    place.parent.mkdir(parents=True, exist_ok=True)
    random.choice(
        (
            *[lambda: place.write_bytes(data)] * 4,
            lambda: place.write_bytes(mutate_bytes(random, data)),
            lambda: os.mkfifo(place),
            lambda: place.mkdir(),
            *[lambda: place.symlink_to(random.choice(targets))] * 2,
        )
    )()


def make_annotation_folder(random: Random) -> list[str]:
    """A folder of annotations among what else may stand in one."""
    _plant()
    folder = Path("in/drawn")
    folder.mkdir()
    names = ("a.json", "a.png", "b.json", "sub/a.json", "in/a.json", "A.JSON", ".a.json", "a", "b.tif", "x/in/b.png")
    names += ("a\x1b[31m.json", "中 文.json", "a.b.json", "a.json/a.json", "deep/" * 60 + "a.json", "c.dcm")
    for name in random.sample(names, random.choice((0, 1, 2, 4, 8))):
        with contextlib.suppress(OSError):  # an earlier one stands in its way
            _put(random, folder / name)
    for _ in range(random.choice((0, 0, 0, 2000))):
        write(folder / f"{random.randrange(10**9)}.json", b"{}")
    return _annotated(random, random.choice(("in/drawn", "in/drawn", "in", "in/linked", "in/drawn/a.json")))


ANNOTATIONS = {
    "labelme": make_labelme,
    "coco": make_coco,
    "mask": make_mask,
    "segmentation": make_segmentation,
    "annotation-folder": make_annotation_folder,
}

CASE_RUN = ["--model-path", OURS, "--cases", str(VALID / "cases/cases.csv"), "--class-texts-file", TEXTS_FILE, "--cpu"]
CASE_RUN += ["--output-dir", "out", "--overlay-only", "--num-workers", "0"]
