"""Means and areas under the ROC curve, and their 95 % intervals by drawing patients or images with replacement.

The draws: `rng = numpy.random.default_rng(0)`, for each group anew; 1000 times `rng.integers(P, size=P)`, which are
indices of the P patients (or images) in the order in which they first appear. Each measure is computed again of what
was drawn, a patient that is drawn twice counting twice. Where it cannot be, as no image of the class was drawn, that
draw is left out for it. The interval is `numpy.percentile(draws, [2.5, 97.5])`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DRAWS, INTERVAL = 1000, (2.5, 97.5)  # percentiles
CHUNK = 1 << 22  # numbers in memory at a time


class Units(NamedTuple):
    """What is measured of each of N images, annotations or heatmaps."""

    clusters: np.ndarray  # int [N]: index of the patient or image that is drawn
    classes: np.ndarray  # int [N]: index of the text
    values: np.ndarray  # float [N, M], NaN where not measured


class Scores(NamedTuple):
    """Of N images with labels, how likely each of K texts is."""

    clusters: np.ndarray  # int [N]
    labels: np.ndarray  # bool [N, K]
    probabilities: np.ndarray  # float [N, K]


def draw_counts(clusters: int, widest: int) -> Iterator[np.ndarray]:
    """How often each of `clusters` was drawn, float [D, P] for some draws at a time, so that [D, `widest`] is small."""
    rng, most = np.random.default_rng(0), max(1, CHUNK // max(clusters, widest))
    for start in range(0, DRAWS, most):
        draws = (rng.integers(clusters, size=clusters) for _ in range(min(most, DRAWS - start)))
        yield np.array([np.bincount(draw, minlength=clusters) for draw in draws], float)


def means(units: Units, counts: np.ndarray, texts: int) -> np.ndarray:
    """float [D, K + 2, M]: the means of each of D draws, for each class, of all units, and of the classes' means."""
    sums, sizes = np.zeros((2, len(counts), texts, units.values.shape[1]))
    measured = ~np.isnan(units.values)
    values = np.where(measured, units.values, 0)
    for index in np.unique(units.classes):
        rows = np.flatnonzero(units.classes == index)
        weights = counts[:, units.clusters[rows]]
        sums[:, index], sizes[:, index] = weights @ values[rows], weights @ measured[rows]
    with np.errstate(invalid="ignore"):
        of_classes, overall = sums / sizes, sums.sum(1, keepdims=True) / sizes.sum(1, keepdims=True)
    return np.concatenate([of_classes, overall, nanmean(of_classes, 1)], 1)


def areas_under_curves(scores: Scores, counts: np.ndarray) -> np.ndarray:
    """float [D, K + 2]: of each draw, for each class against the rest, and twice their mean.

    Mann-Whitney: the share of pairs of an image with the label and one without in which the former's probability is
    higher, ties counting half.
    """
    areas = np.full((len(counts), scores.labels.shape[1]), np.nan)
    for index in np.flatnonzero(scores.labels.any(0) & ~scores.labels.all(0)):
        positive, probability = scores.labels[:, index], scores.probabilities[:, index]
        negatives = np.flatnonzero(~positive)
        negatives = negatives[np.argsort(probability[negatives])]
        below = counts[:, scores.clusters[negatives]].cumsum(1)
        below = np.concatenate([np.zeros((len(counts), 1)), below], 1)
        places = [np.searchsorted(probability[negatives], probability[positive], side) for side in ("left", "right")]
        weights = counts[:, scores.clusters[positive]]
        pairs = weights.sum(1) * below[:, -1]
        wins = (weights * (below[:, places[0]] + below[:, places[1]])).sum(1) / 2
        np.divide(wins, pairs, out=areas[:, index], where=pairs > 0)
    mean = nanmean(areas, 1)
    return np.concatenate([areas, mean, mean], 1)


def nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is no NaN along an axis that is kept; NaN where all is."""
    measured = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(measured, values, 0).sum(axis, keepdims=True) / measured.sum(axis, keepdims=True)


def interval(draws: np.ndarray) -> list[float]:
    """[low, high] of the draws that are no NaN; of none, NaN."""
    draws = draws[~np.isnan(draws)]
    return np.percentile(draws, INTERVAL).tolist() if len(draws) else [np.nan, np.nan]
