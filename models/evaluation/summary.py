"""The evaluation of a run: what its table's rows say of all images, of each class and of each setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError, shortened
from .baselines import BASELINES, LOCALISATION, measure_baselines
from .bootstrap import DRAWS, Scores, Units, areas_under_curves, draw_counts, interval, means
from .measures import GRID, TOLERANCE

CASES = (
    "right_inside",
    "right_outside",
    "wrong_inside",
    "wrong_outside",
)  # annotated text predicted or not; a hit or not
OF_HEATMAPS = ("text_specificity", "deletion_margin", "insertion_margin")  # columns of the table
MEASURES = (
    *("accuracy", "auc", "pointing", "pointing_strict", "iou_half", "iou_otsu", "energy", "contrast_to_noise"),
    *CASES,
    *OF_HEATMAPS,
)
LINES = ("overall", "macro")
MOST_GROUPS = 200  # each takes a fraction of a second, and of a minute with 1000 texts


def evaluate(
    rows: Iterable[Mapping],
    coverages: Mapping[tuple[str, int], str],
    names: Sequence[str],
    tolerance: float = TOLERANCE,
) -> dict:
    """What the rows of a run's table say of its images, as a dict for JSON; numbers to 4 decimals.

    `rows`: as in results.jsonl, with `label_indices`, `annotated` and what was measured on it; those with an error are
    left out. `coverages`: `pack_coverage`'s text of each (image's id, index of the annotated text). `names`: K short
    names. `tolerance`: in pixels of the grid.

    {"grid", "tolerance", "draws", "groups": one for each split and setting, never mixed}, a group being
    {"split": None where there is none, "method", "setting", "images", "labelled", "annotated": counts of images,
    "patients": count, None where not each image has one; then the images are drawn for the intervals,
    "class_sizes": images with each label [K], "confusion": images by [true class][predicted] [K][K],
    "cases": annotations by CASES, "overall", "macro": {measure: numbers}, "classes": {name: {measure: numbers}}},
    numbers being {"n", "value", "low", "high"} and, for localisation, those of BASELINES that there are.

    An image's true class is what was predicted where it is among the labels, else the first label. Accuracy is of
    labelled images, by true class; AUC by label, and overall the classes' mean; localisation and CASES are of
    annotations, by annotated text; OF_HEATMAPS of heatmaps, by explained text. "macro" is the mean of the classes
    that have a value, n their number; AUC's n is the number of images with the label. A measure without a value is left
    out. Baselines see the annotations of one split; see `measure_baselines`. Intervals: see `bootstrap`.

    Raises InputError where rows or coverages are none of ours, or of more than MOST_GROUPS splits and settings.
    """
    splits: dict[str | None, dict[str, _Group]] = {}
    indices = {name: index for index, name in enumerate(names)}
    try:
        for row in rows:
            if row.get("error") is None:
                settings = splits.setdefault(row.get("split"), {})
                settings.setdefault(row["setting"], _Group(row["method"])).add(row, indices)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "结果中有一行不是本工具写的，或已损坏（{}）：请换一个输出目录", shortened(repr(error), 80)
        ) from error
    count = sum(map(len, splits.values()))
    if count > MOST_GROUPS:
        raise InputError(
            "划分和设置共 {} 组，至多评估 {} 组：请检查列表的 split 列，它应只有几种值", count, MOST_GROUPS
        )
    groups = []
    for split, settings in splits.items():
        baselines = _baselines(settings.values(), coverages, tolerance)
        for setting, group in settings.items():
            about = {"split": split, "method": group.method, "setting": setting}
            groups.append({**about, **_evaluate_group(group, baselines, names, tolerance)})
    return {"grid": GRID, "tolerance": tolerance, "draws": DRAWS, "groups": groups}


class _Image(NamedTuple):
    patient: str | None
    predicted: int
    labels: tuple[int, ...]
    probabilities: np.ndarray  # [K], NaN for None

    @property
    def is_right(self) -> bool:
        return self.predicted in self.labels

    @property
    def true_class(self) -> int:
        return self.predicted if self.is_right else self.labels[0]


MEASURED = ("distance", *LOCALISATION[2:])  # columns of the table


class _Annotation(NamedTuple):
    is_own: bool  # measured on the heatmap of its own text
    values: np.ndarray  # of MEASURED, NaN for None


class _Group:
    """The rows of one split and setting: their images, annotations and heatmaps, each once."""

    def __init__(self, method: str):
        self.method = method
        self.images: dict[str, _Image] = {}
        self.annotations: dict[tuple[str, int], _Annotation] = {}  # by (id, annotated text)
        self.heatmaps: dict[tuple[str, int], np.ndarray] = {}  # OF_HEATMAPS, NaN for none, by (id, explained text)

    def add(self, row: Mapping, indices: Mapping[str, int]) -> None:
        """Raises KeyError, TypeError, ValueError where it is no row of the table."""
        image, target, annotated = row["id"], row["target_text_idx"], row.get("annotated")
        texts = range(len(indices))
        if target not in texts or not (annotated is None or annotated in texts):
            raise ValueError("target_text_idx, annotated")
        if image not in self.images:
            self.images[image] = _read_image(row, indices)
        self.heatmaps.setdefault((image, target), np.array([row.get(column) for column in OF_HEATMAPS], float))
        if annotated is not None:
            before = self.annotations.get((image, annotated))
            if before is None or (target == annotated and not before.is_own):
                values = np.array([row.get(column) for column in MEASURED], float)
                self.annotations[image, annotated] = _Annotation(target == annotated, values)

    @property
    def patients(self) -> dict[str, str]:
        """The patient of each image that has one."""
        return {image: about.patient for image, about in self.images.items() if about.patient}


def _read_image(row: Mapping, indices: Mapping[str, int]) -> _Image:
    probabilities, labels = np.array(row["probabilities"], float), tuple(row.get("label_indices") or ())
    if len(probabilities) != len(indices) or not all(label in range(len(indices)) for label in labels):
        raise ValueError("label_indices, probabilities")
    return _Image(row.get("patient"), indices[row["predicted"]], labels, probabilities)


def _baselines(groups: Iterable[_Group], coverages: Mapping, tolerance: float) -> dict[tuple[str, int], np.ndarray]:
    """float [3, 6], LOCALISATION of BASELINES, for each annotation of a split."""
    patients, annotations = {}, {}
    for group in groups:
        patients |= group.patients
        annotations |= group.annotations
    return dict(zip(annotations, measure_baselines(list(annotations), patients, coverages, tolerance)))


# -- the numbers of a group


class _Section(NamedTuple):
    """Measures of the same units."""

    measures: tuple[str, ...]
    units: Units


def _evaluate_group(group: _Group, baselines: Mapping, names: Sequence[str], tolerance: float) -> dict:
    images, by_patient = group.images, len(group.patients) == len(group.images)
    clusters = _numbered(group.patients.values() if by_patient else images)
    of_image = dict(zip(images, clusters))
    sections = [
        _accuracy(group, of_image),
        _localisation(group, of_image, tolerance),
        _Section(OF_HEATMAPS, _units(group.heatmaps, of_image, list(group.heatmaps.values()), len(OF_HEATMAPS))),
    ]
    labelled = [image for image in images.values() if image.labels]
    beside = _of_baselines(group, sections[1].units, baselines)
    lines = _lines(sections, _scores(group, of_image, len(names)), beside, max(clusters) + 1, len(names))
    return {
        "images": len(images),
        "labelled": len(labelled),
        "annotated": len({image for image, _ in group.annotations}),
        "patients": max(clusters) + 1 if by_patient else None,
        "class_sizes": [sum(index in image.labels for image in labelled) for index in range(len(names))],
        "confusion": _confusion(labelled, len(names)),
        "cases": {
            name: int(np.nansum(column)) for name, column in zip(CASES, sections[1].units.values.T[len(LOCALISATION) :])
        },
        **dict(zip(LINES, lines[len(names) :])),
        "classes": {name: line for name, line in zip(names, lines) if line},
    }


def _numbered(keys: Iterable) -> list[int]:
    """Each key's number, in the order in which they first appear."""
    numbers: dict = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _units(keys: Iterable[tuple[str, int]], of_image: Mapping[str, int], values, measures: int = 1) -> Units:
    """Units by (id, text) with `measures` values of each."""
    images, texts = np.array([(of_image[image], text) for image, text in keys], int).reshape(-1, 2).T
    return Units(images, texts, np.array(values, float).reshape(-1, measures))


def _accuracy(group: _Group, of_image: Mapping[str, int]) -> _Section:
    right = {(image, about.true_class): about.is_right for image, about in group.images.items() if about.labels}
    return _Section(("accuracy",), _units(right, of_image, list(right.values())))


def _localisation(group: _Group, of_image: Mapping[str, int], tolerance: float) -> _Section:
    """LOCALISATION and CASES of the annotations; a heatmap without a peak never hits."""
    keys = group.annotations
    values = np.array([annotation.values for annotation in keys.values()], float).reshape(-1, len(MEASURED))
    hit, strict_hit = values[:, 0] <= tolerance, values[:, 0] == 0
    right = np.array([group.images[image].predicted == text for image, text in keys], bool)
    cases = np.column_stack([right & hit, right & ~hit, ~right & hit, ~right & ~hit]).astype(float)
    cases[np.array([not group.images[image].labels for image, _ in keys], bool)] = np.nan
    values, measures = np.column_stack([hit, strict_hit, values[:, 1:], cases]), (*LOCALISATION, *CASES)
    return _Section(measures, _units(keys, of_image, values, len(measures)))


def _of_baselines(group: _Group, localisation: Units, baselines: Mapping) -> Units:
    """The baselines of a group's annotations, values [N, 3 * 6], of what was measured."""
    values = np.array([baselines[key] for key in group.annotations], float)
    values = values.reshape(-1, len(BASELINES), len(LOCALISATION))
    missing = np.isnan(localisation.values[:, None, : len(LOCALISATION)])
    return localisation._replace(
        values=np.where(missing, np.nan, values).reshape(-1, len(BASELINES) * len(LOCALISATION))
    )


def _scores(group: _Group, of_image: Mapping[str, int], texts: int) -> Scores:
    """Of the images with labels and all probabilities."""
    images = {image: about for image, about in group.images.items() if about.labels}
    images = {image: about for image, about in images.items() if np.isfinite(about.probabilities).all()}
    probabilities = np.array([about.probabilities for about in images.values()]).reshape(-1, texts)
    labels = np.zeros(probabilities.shape, bool)
    for row, about in enumerate(images.values()):
        labels[row, list(about.labels)] = True
    return Scores(np.array([of_image[image] for image in images], int), labels, probabilities)


def _lines(sections: Sequence[_Section], scores: Scores, baselines: Units, clusters: int, texts: int) -> list[dict]:
    """{measure: numbers} of each of K classes, of all units, and of the classes' means."""

    def measure(counts) -> np.ndarray:
        """float [D, K + 2, M] of D draws."""
        of_sections = [means(section.units, counts, texts) for section in sections]
        return np.concatenate([*of_sections, areas_under_curves(scores, counts)[..., None]], 2)

    widest = max(texts * len(MEASURES), len(scores.labels), *(len(section.units.values) for section in sections))
    draws = np.concatenate([measure(counts) for counts in draw_counts(clusters, widest)])
    once = np.ones((1, clusters))
    values = measure(once)[0]
    sizes = np.concatenate([*(_sizes(section.units, texts) for section in sections), _sizes_of_areas(scores)], 1)
    beside = means(baselines, once, texts).reshape(texts + 2, len(BASELINES), len(LOCALISATION))
    columns = {name: column for column, name in enumerate(_columns(sections))}
    lines = []
    for line in range(texts + 2):
        of_line = {}
        for name in MEASURES:
            column = columns[name]
            if not np.isnan(values[line, column]):
                low, high = interval(draws[:, line, column])
                numbers = {"value": values[line, column], "low": low, "high": high}
                if name in LOCALISATION:
                    numbers |= dict(zip(BASELINES, beside[line, :, LOCALISATION.index(name)]))
                of_line[name] = {"n": int(sizes[line, column]), **_rounded(numbers)}
        lines.append(of_line)
    return lines


def _columns(sections: Sequence[_Section]) -> list[str]:
    return [*(name for section in sections for name in section.measures), "auc"]


def _sizes(units: Units, texts: int) -> np.ndarray:
    """int [K + 2, M]: how many units gave each class's mean and the overall one, and how many classes have one."""
    sizes = np.zeros((texts, units.values.shape[1]), int)
    np.add.at(sizes, units.classes, ~np.isnan(units.values))
    return np.concatenate([sizes, sizes.sum(0, keepdims=True), (sizes > 0).sum(0, keepdims=True)])


def _sizes_of_areas(scores: Scores) -> np.ndarray:
    """int [K + 2, 1]: images with each label, with any, and classes that have an area."""
    sizes = scores.labels.sum(0)
    return np.array([*sizes, len(scores.labels), ((sizes > 0) & (sizes < len(scores.labels))).sum()])[:, None]


def _rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """To 4 decimals, without what is no number.

    By way of 9: a mean of few values of 6 decimals often lies in the middle of two, where its last bit, which depends
    on the order of the sum, would decide.
    """
    return {name: round(round(float(value), 9), 4) + 0.0 for name, value in numbers.items() if not np.isnan(value)}


def _confusion(labelled: Iterable[_Image], texts: int) -> list[list[int]]:
    """Images by [true class][predicted], [K][K]."""
    counts = Counter((image.true_class, image.predicted) for image in labelled)
    return [[counts[true, predicted] for predicted in range(texts)] for true in range(texts)]
