"""A result in Python: what is equal, what it says of itself, what it draws and saves."""

import numpy as np
import pytest
from tiny import tiny_result

from models.explain.faithfulness import Faithfulness
from models.images.preprocessing import Region
from models.results.outlines import Outline
from models.results.result import ImageResult, Results

# -- what is equal ----------------------------------------------------------------------------


def rich_result(**changes) -> ImageResult:
    """A result with something in each field, NaN among it; made anew in each call."""
    result, curve = tiny_result([0, 2]), np.linspace(0, 1, 21, dtype=np.float32)
    result.maps[0, 0, 0] = np.nan
    rich = {
        "flaws": [None, "空"],
        "specificities": [float("nan"), None],
        "cautions": ["小心"],
        "region": Region(15.0, 0.0, 75.0, 60.0),
        "faithfulness": [Faithfulness(0.1, 0.2, float("nan"), curve, curve, curve), None],
        "outlines": [Outline(0, [np.array([[0.5, 1.5], [3.0, 4.0]])]), None],
        "also": (tiny_result([1]),),
        "name": "a.png",
    }
    return result._replace(**{**rich, **changes})


def compared(one, other):
    """What == and != say: a tuple's own != does not ask a class's ==."""
    return one == other, one != other


def test_results_of_equal_values_are_equal_nan_too():
    assert compared(rich_result(), rich_result()) == (True, False)
    assert rich_result() in [tiny_result(), rich_result()]
    assert Results([rich_result()]) == Results([rich_result()]) != Results([tiny_result()])


OTHER_CURVE = [Faithfulness(0.1, 0.2, float("nan"), *[np.zeros(21, np.float32)] * 3), None]
DIFFERENT = {
    "pixels": np.zeros((60, 90, 3), np.uint8),
    "maps": np.zeros((2, 3, 4), np.float32),
    "question": tiny_result(names=["正常", "松动", "骨折"]).question,
    "probabilities": np.float32([0.2, 0.3, 0.5]),
    "similarities": np.float32([0.1, 0.2, np.nan]),
    "targets": [0, 1],
    "source": ("starnet_s1", "stages.3.2", 3, 4),
    "flaws": [None, None],
    "specificities": [float("nan"), 0.5],
    "cautions": (),
    "region": None,
    "faithfulness": OTHER_CURVE,
    "independent": True,
    "fused_layers": 2,
    "subtracted": 0.45,
    "is_default": True,
    "tells_presence": False,
    "outlines": [Outline(0, [np.array([[0.5, 1.5], [3.0, 4.5]])]), None],
    "also": (tiny_result([2]),),
    "lang": "en",
    "name": "b.png",
}


@pytest.mark.parametrize("field", ImageResult._fields)
def test_results_that_differ_in_one_field_are_not_equal(field):
    assert compared(rich_result(**{field: DIFFERENT[field]}), rich_result()) == (False, True)


@pytest.mark.parametrize("other", [None, 1, "a", (), tuple(tiny_result()), [tiny_result()]], ids=type)
def test_a_result_equals_nothing_but_a_result(other):
    assert compared(tiny_result(), other) == compared(other, tiny_result()) == (False, True)


def test_what_is_equal_by_values_that_can_change_has_no_hash():
    for thing in (tiny_result(), Results([tiny_result()])):
        with pytest.raises(TypeError, match="unhashable type: 'ImageResult'"):
            hash(thing)
