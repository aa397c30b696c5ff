"""Annotations of a case: by its row, by a folder that mirrors the images, by what all cases share."""

import json
import os
import threading

import numpy as np
import pytest
from annotated import NAMES, TEXTS, assert_masks, case_of, read
from PIL import Image

from models.cases.annotations import Annotation, check_shared, fingerprint, read_annotations
from models.errors import InputError

SIZE = (8, 8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def corner(column):
    mask = np.zeros(SIZE, dtype=bool)
    mask[0, column] = True
    return mask


def mask_file(path, column=0):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.fromarray(corner(column)).save(path)
    return path


def labelme_file(path, column=0, label="骨折"):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    shapes = [{"label": label, "shape_type": "rectangle", "points": [[column, 0], [column, 0]]}]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"shapes": shapes, "imageHeight": 8, "imageWidth": 8}, file)
    return path


def column_of(image, labels=(2,), **options):
    """The column of the one pixel that an image's annotation in the folder `标注` has, None where there is none."""
    masks = read(["标注"], SIZE, labels=labels, image=image, **options).masks
    return int(masks[2].any(0).argmax()) if masks else None


def test_no_annotation():
    assert read([], SIZE) == Annotation({}, frozenset(), [], [])


def test_a_folder_mirrors_the_images(folder):
    labelme_file("标注/病人1/1.json", 1)
    labelme_file("标注/病人2/1.json", 2)
    labelme_file("标注/5.json", 5)
    mask_file("标注/病人2/6.png", 6)
    assert column_of("病人1/1.png") == column_of("影像/病人1/1.dcm") == 1
    assert column_of("病人2/1.png") == 2
    assert column_of("病人2/6.jpg") == column_of("6.jpg") == 6
    assert column_of("病人9/5.png") == 5
    assert column_of("病人3/1.png") is None
    assert column_of("病人3/6.jpg") is None  # another patient's, though the only 6
    assert column_of("7.png") is None


def test_two_candidates(folder):
    labelme_file("标注/一/1.json")
    labelme_file("标注/二/1.json")
    with pytest.raises(InputError) as error:
        column_of("1.png", path="图/1.png")
    assert str(error.value).startswith(f"标注文件夹 标注 中有 {os.path.join('标注', '一', '1.json')} 和 ")


def test_json_before_masks_and_never_the_image(folder):
    mask_file("标注/1.png", 3)
    mask_file("标注/2.PNG", 3)
    mask_file("标注/2.bmp", 4)
    labelme_file("标注/3.json", 5)
    mask_file("标注/3.png", 6)
    labelme_file("标注/.4.json")
    assert column_of("1.png", path="标注/1.png") is None
    assert column_of("1.png", path="图/1.png") == 3
    assert column_of("2.png", path="标注/2.PNG") == 4
    assert column_of("3.png", path="标注/3.png") == 5
    assert column_of("4.png") is None


def test_a_copy_of_the_image_beside_labelme_files_is_no_mask(folder):
    os.mkdir("标注")
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save("标注/1.png")
    with pytest.raises(InputError, match="像是一张有许多灰度的图像，不是掩膜"):
        read(["标注"], (16, 16), labels=[2], image="1.png")


def test_what_all_cases_share(folder):
    labelme_file("标注/1.json", 1)
    own = labelme_file("own.json", 2)
    case = case_of(image="1.png")
    assert_masks(read_annotations(case, NAMES, TEXTS, SIZE, "标注"), {2: corner(1)})
    assert_masks(read_annotations(case_of([own], image="1.png"), NAMES, TEXTS, SIZE, "标注"), {2: corner(2)})
    check_shared("标注")
    for shared in (own, mask_file("m.png")):
        with pytest.raises(InputError, match=f"^无法使用标注 {shared}：它只能标注一张图像"):
            check_shared(shared)
        with pytest.raises(InputError, match="COCO 文件或文件夹"):
            read_annotations(case, NAMES, TEXTS, SIZE, shared)
    with pytest.raises(InputError, match="^无法读取标注 none：No such file"):
        check_shared("none")


def test_several_files_of_a_case(folder):
    paths = [labelme_file("1.json", 1), mask_file("m.png", 2), labelme_file("2.json", 3, "松动")]
    assert_masks(read(paths, SIZE, labels=[2]), {2: corner(1) | corner(2), 1: corner(3)})
    with pytest.raises(InputError, match="^无法使用标注 m.png：有掩膜而没有标签"):
        read(paths, SIZE)


def test_files_that_went_since_the_list_was_read(folder):
    with pytest.raises(InputError, match="^无法读取标注 gone.json：No such file"):
        read(["gone.json"], SIZE)
    os.mkfifo("pipe.json")
    with pytest.raises(InputError, match="pipe.json：这是管道"):
        read(["pipe.json"], SIZE)


def test_a_fingerprint_changes_with_what_it_is_of(folder):
    one, other = labelme_file("标注/1.json", 1), labelme_file("标注/2.json", 1)

    def prints():
        return [
            fingerprint(case_of(), None),
            fingerprint(case_of(labels=[1])),
            fingerprint(case_of([one])),
            fingerprint(case_of([other])),
            fingerprint(case_of(["标注"], image="1.png"), other),
            fingerprint(case_of(image="2.png"), "标注"),
            fingerprint(case_of(image="3.png"), "标注"),
        ]

    before = prints()
    assert prints() == before and all(len(text) == 16 for text in before)
    assert len({*before[:4]}) == 4
    assert before[4:] == [before[2], before[3], before[0]]
    os.utime(one, ns=(1, 1))
    after = prints()
    assert [a == b for a, b in zip(before, after)] == [True, True, False, True, False, True, True]
    with open(other, "a") as file:
        file.write(" ")
    assert prints()[3] != after[3]
    os.remove(one)
    assert fingerprint(case_of([one])) not in before + after


def test_threads_read_the_same(folder):
    images = [{"id": number, "file_name": f"{number}.png", "width": 8, "height": 8} for number in range(8)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 0, 1, 1]} for n in range(8)]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "骨折"}]}
    with open("coco.json", "w") as file:
        json.dump(document, file)
    results = {}

    def work(number):
        results[number] = read([], SIZE, default="coco.json", image=f"{number % 8}.png")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(32):
        assert_masks(results[number], {2: corner(number % 8)})
