"""Cases for tests of annotations, and masks written as rows of characters."""

import numpy as np

from models.cases.annotations import read_annotations
from models.cases.listing import Case

NAMES = ["正常", "松动", "骨折"]
TEXTS = ["假体位置良好。", "假体周围透亮线。", "骨皮质中断。"]


def case_of(annotations=(), labels=(), image="a.png", path=None):
    annotations = [str(annotation) for annotation in annotations]
    return Case(str(path or image), image, image, 2, list(labels), annotations, None, None, ())


def read(annotations, size, labels=(), default=None, **image):
    return read_annotations(case_of(annotations, labels, **image), NAMES, TEXTS, size, default)


def drawing(rows):
    """Rows of characters, "#" inside -> bool [H, W]."""
    return np.array([[character == "#" for character in row] for row in rows.split()])


def assert_masks(annotation, masks):
    """An annotation's masks are these, {index: bool [H, W]}."""
    assert list(annotation.masks) == list(masks)
    for index, mask in masks.items():
        assert annotation.masks[index].dtype == bool
        np.testing.assert_array_equal(annotation.masks[index], mask)
