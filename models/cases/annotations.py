"""What experts drew into a case's image, as masks: from mask files, LabelMe, COCO, DICOM SEG, or a folder of these.

read_annotations(case, names, texts, (H, W)).masks -> {index of a text: bool [H, W]}
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ..class_texts import ClassText
from ..errors import InputError, reason
from ..images.dicom import is_dicom
from ..images.reading import DICOM_SUFFIXES
from ..inputs import check_regular_file
from ..messages import Joined, Message
from .coco import Coco, is_coco
from .files import LARGEST_JSON, ReadOnce, parse_json, read_within
from .folders import annotation_in
from .labelme import is_labelme, labelme_outlines, without_image
from .listing import Case, check_mask_count
from .masks import read_mask
from .segmentations import segmentation_outlines
from .shapes import Outlines, Shape
from .texts import TextLookup, quoted

JSON, DICOM, MASK = "json", "dicom", "mask"
_BEFORE_JSON = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # marks of encodings, the other bytes of UTF-16, blanks
_LONGEST_BLANK = 4096  # bytes before a JSON file's first brace
LABELS_SHOWN = 5


class Annotation(NamedTuple):
    masks: dict[int, np.ndarray]  # index of a text -> bool [H, W], not empty
    points_only: frozenset[int]  # texts that points alone annotate: they have no area
    ignored: list[str]  # labels of shapes that are no text, each once
    empty: list[str] = ()  # labels of texts of which nothing lies in the image


def read_annotations(
    case: Case,
    names: Sequence[str],
    texts: Sequence[ClassText],
    size: tuple[int, int],
    default: str | None = None,
) -> Annotation:
    """The annotation of a case's image, whose size as read is `size` (H, W); empty where there is none.

    `names`, `texts`: of the K texts; labels of shapes are a name, a description or an index. `default`: a COCO file or
    a folder of annotations, for a case whose row names none.

    Raises InputError, naming the annotation's file, where it cannot be used, or has labels of which none is a text.
    """
    lookup = TextLookup(names, texts)
    masks, with_area, ignored, empty = {}, set(), {}, {}
    if not case.annotations and default is not None:
        check_shared(default)
    files = [(file, _kind(file)) for file in _files(case, default)]
    labels_of_masks = _labels_of_masks(files, case, names)
    for file, kind in files:
        with _naming(file):
            outlines = _outlines(file, kind, case, tuple(size), labels_of_masks)
            _check_labels(outlines, lookup)
            for shape in outlines.shapes:
                label = lookup.find(shape.label)
                mask = None if label is None else shape.draw()
                if mask is None:
                    ignored[shape.label] = None
                elif mask.any():
                    masks[label] = masks[label] | mask if label in masks else mask
                    with_area |= {label} if shape.has_area else set()
                else:
                    empty[shape.label] = None
    return Annotation(masks, frozenset(masks.keys() - with_area), list(ignored), list(empty))


def check_shared(default: str) -> None:
    """InputError where `default` is neither a folder nor a COCO file: others annotate one image alone."""
    if os.path.isdir(default):
        return
    kind = _kind(default)
    with _naming(default):
        if kind != JSON or not isinstance(_document(default), Coco):
            raise InputError(
                "它只能标注一张图像；各图像共用的标注应是 COCO 文件或文件夹，单独的标注请写在列表的 annotation 列"
            )


def matched_by_name(case: Case, shared: str) -> str | Message | None:
    """What of an annotation that several images share is a case's by its name: a file of a folder, an entry of COCO.

    None where there is none, or the annotation is neither. Raises InputError as `read_annotations`.
    """
    if os.path.isdir(shared):
        return annotation_in(shared, case.path, case.image)
    document = _document(shared) if _kind(shared) == JSON else None
    entry = document.entry_of(case.path, case.image) if isinstance(document, Coco) else None
    return None if entry is None else Message("{} 中的 {}", shared, entry[1]["file_name"])


def fingerprint(case: Case, default: str | None = None) -> str:
    """16 hex digits of what the annotations of a case are: its labels, and path, size and time of each file.

    No file is opened. Where it is another, the case's heatmaps are to be measured again.
    """
    content: list = [case.labels]
    try:
        for path in _files(case, default):
            status = os.stat(path)
            content.append((path, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError) as error:  # reading says it
        content.append(str(error))
    return hashlib.sha256(ascii(content).encode()).hexdigest()[:16]


def _files(case: Case, default: str | None) -> list[str]:
    """The files that annotate a case, of folders the one that is the image's."""
    paths = case.annotations or ([] if default is None else [default])
    files = (annotation_in(path, case.path, case.image) if os.path.isdir(path) else path for path in paths)
    return [file for file in files if file is not None]


@contextlib.contextmanager
def _naming(file: str):
    """What goes wrong while it lasts names the annotation's file."""
    try:
        yield
    except InputError as error:
        raise InputError("无法使用标注 {}：{}", file, error) from error
    except OSError as error:
        raise InputError("无法读取标注 {}：{}", file, reason(error)) from error


def _kind(file: str) -> str:
    """What a file is by its beginning; InputError where it cannot be read."""
    check_regular_file(file, Message("无法读取标注 {}", file))
    with _naming(file), open(file, "rb") as opened:
        if opened.read(_LONGEST_BLANK).lstrip(_BEFORE_JSON).startswith(b"{"):
            return JSON
        is_segmentation = is_dicom(opened) or file.lower().endswith(DICOM_SUFFIXES)
        return DICOM if is_segmentation else MASK


def _labels_of_masks(files: list[tuple[str, str]], case: Case, names: Sequence[str]) -> Iterator[str]:
    """The names of the case's labels, one for each mask in turn; InputError where these are not as many."""
    masks = [file for file, kind in files if kind == MASK]
    for file in masks[:1]:
        with _naming(file):
            check_mask_count(len(masks), len(case.labels))
    return iter([names[label] for label in case.labels])


def _outlines(file: str, kind: str, case: Case, size: tuple[int, int], labels_of_masks: Iterator[str]) -> Outlines:
    """What a file outlines in the case's image."""
    if kind == MASK:
        label = next(labels_of_masks)
        return Outlines([Shape(label, partial(read_mask, file, size))], [label])
    if kind == DICOM:
        return segmentation_outlines(file, case.path, size)
    document = _document(file)
    if isinstance(document, Coco):
        return document.outlines(case.path, case.image, size)
    return labelme_outlines(document, size)


def _read_document(file: str) -> Coco | dict:
    document = parse_json(read_within(file, LARGEST_JSON))
    if is_coco(document):
        return Coco(document)
    if not is_labelme(document):
        raise InputError("既不是 LabelMe（有 shapes）也不是 COCO（有 images 和 annotations）的 JSON")
    return without_image(document)


_document = ReadOnce(_read_document)


def _check_labels(outlines: Outlines, lookup: TextLookup) -> None:
    """InputError where a file has labels, but none that is a text: it is of other findings, or they are misspelt."""
    if outlines.labels and all(lookup.find(label) is None for label in outlines.labels):
        labels = list(dict.fromkeys(outlines.labels))
        shown = Joined("、", map(quoted, labels[:LABELS_SHOWN]))
        shown = Message("{}…", shown) if len(labels) > LABELS_SHOWN else shown
        raise InputError("其中的标签 {} 都不是类别文本，{}请改成类别的短名", shown, lookup.hint(labels[0]))
