"""Evidence for a heatmap: how the score falls as its pixels are hidden, and rises as they are shown.

Deletion and insertion of Petsiuk et al. 2018 (RISE, arXiv 1806.07421), in steps of 5 %: the pixels are ranked
by the map. Deletion hides the highest first: the faster the score falls, the lower the area, the better.
Insertion shows the highest first on an empty image: the higher the area, the better. An area by itself says
little, since a mask alone changes the score: what counts is its margin over random maps.

**Random maps** are random values on the map's own grid, resized as the map is. Random pixels would make an easy
opponent: they shred an image that loses a blob of the same area with much less harm. Each step hides a part of
another random map, and the step that mirrors it what the first one left. So one set of images serves both ways
(to insert a map is to delete its reverse, and half of these maps are the reverses of the other half), and chance
averages out along the curve: for the demo checkpoint, 9 images hit the expected area to within 0.03 (standard
deviation), 19 images of a single random map to within 0.06. Between these steps of 10 % the curve is interpolated,
which shifts its area by less than 0.01 there.

**Ties.** Much of a map is zero after the ReLU, and its order is open. It is taken as one more random map has it.
The order of the pixels in memory would favour whatever lies below; noise from pixel to pixel would shred the image,
and a map would win in deletion and lose in insertion by what it does not say. This way the empty part of a map does as
well as chance. What is still equal (half a cell in each corner) goes row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from ..heavy import torch
from .heatmap import as_map, is_flat

STEPS = 20  # of 5 % of the pixels
RANDOM_STEPS = 10
BATCH = 10
LEVELS = 1 << 16  # of a map's values: what differs by less may be rounding, and counts as equal


class Faithfulness(NamedTuple):
    """Areas under the curves, by the trapezoid rule over [0, 1], in the unit of the score; and the curves."""

    deletion: float  # lower is better
    insertion: float  # higher is better
    random: float  # of random maps, expected to be the same for deletion and insertion
    deletion_curve: np.ndarray  # float32 [STEPS + 1], the score with 0, 5, ..., 100 % of the pixels hidden
    insertion_curve: np.ndarray  # float32 [STEPS + 1], the score with 0, 5, ..., 100 % of the pixels shown
    random_curve: np.ndarray  # float32 [STEPS + 1], hidden as random maps have it; read backwards: shown

    @property
    def deletion_margin(self) -> float:
        """How much better than chance the map deletes; below 0, worse."""
        return self.random - self.deletion

    @property
    def insertion_margin(self) -> float:
        """How much better than chance the map inserts; below 0, worse."""
        return self.insertion - self.random


class _Masked(NamedTuple):
    """An image of which only the pixels of these ranks are left, the highest of a map having rank 0."""

    ranks: torch.Tensor  # int32 [h, w]
    first: int
    end: int


def measure_faithfulness(
    score: Callable, image: torch.Tensor, raw_maps, columns: Sequence[int], batch: int = BATCH, seed: int = 0
) -> list[Faithfulness | None]:
    """Deletion and insertion of T maps of one image; None for a flat map, which ranks nothing.

    `score`: images [n, 3, h, w] -> [n, K], called without gradients on at most `batch` images. `image`: the model's
    input [1, 3, h, w]; a hidden pixel is 0, the data set's mean after normalisation. `raw_maps` [T, gh, gw]:
    at the layer, before the ReLU. `columns` [T]: the column of the score that each map explains.

    Scores 2 + 9 + 38 T images, the 11 shared by all maps. `seed` chooses the random maps: averages over many
    images need one for each.
    """
    with torch.no_grad():
        maps = as_map(raw_maps).cpu()
        ranking = [t for t in range(len(maps)) if not is_flat(maps[t])]
        if not ranking:
            return [None] * len(maps)
        total = 2 + RANDOM_STEPS - 1 + 2 * (STEPS - 1) * len(ranking)
        masked = _masked_images(maps[ranking], tuple(image.shape[-2:]), seed)
        scores = np.concatenate(list(_score_all(score, image, masked, total, batch)))
    shared, own = np.split(scores, [2 + RANDOM_STEPS - 1])
    own = own.reshape(len(ranking), 2, STEPS - 1, -1)  # maps x (deletion, insertion) x steps x K
    tested: list[Faithfulness | None] = [None] * len(maps)
    for t, curves in zip(ranking, own):
        tested[t] = _faithfulness(shared[:, columns[t]], *curves[..., columns[t]])
    return tested


def _faithfulness(shared: np.ndarray, deletion: np.ndarray, insertion: np.ndarray) -> Faithfulness:
    """From the scores of (whole, empty, random ...) and of the inner steps to curves and areas."""
    whole, empty, *random = shared
    ends = np.linspace(0, 1, RANDOM_STEPS + 1), [whole, *random, empty]
    curves = (
        np.array([whole, *deletion, empty], np.float32),
        np.array([empty, *insertion, whole], np.float32),
        np.interp(np.linspace(0, 1, STEPS + 1), *ends).astype(np.float32),
    )
    return Faithfulness(*(_area(curve) for curve in curves), *curves)


def _area(curve: np.ndarray) -> float:
    """By the trapezoid rule over [0, 1], both ends included."""
    return float((curve[1:].astype(np.float64) + curve[:-1]).mean() / 2)


def _masked_images(maps: torch.Tensor, size: tuple[int, int], seed: int) -> Iterator[_Masked]:
    """The whole image, the empty one, those of the random maps; then each map's deletion and its insertion."""
    pixels = size[0] * size[1]
    cuts = [round(step * pixels / STEPS) for step in range(STEPS + 1)]
    generator = np.random.default_rng(seed)
    ties, *random_maps = torch.from_numpy(generator.random((1 + RANDOM_STEPS // 2, *maps.shape[1:]), np.float32))
    random_ranks = [_ranks(random_map, ties, size) for random_map in random_maps]
    yield _Masked(random_ranks[0], 0, pixels)
    yield _Masked(random_ranks[0], 0, 0)
    for step in range(1, RANDOM_STEPS):
        hidden = cuts[step * STEPS // RANDOM_STEPS]
        mirrored = step > RANDOM_STEPS // 2
        ranks = random_ranks[(RANDOM_STEPS - step if mirrored else step) - 1]
        yield _Masked(ranks, 0, pixels - hidden) if mirrored else _Masked(ranks, hidden, pixels)
    for raw_map in maps:
        ranks = _ranks(raw_map, ties, size)
        yield from (_Masked(ranks, cut, pixels) for cut in cuts[1:-1])
        yield from (_Masked(ranks, 0, cut) for cut in cuts[1:-1])


def _ranks(raw_map: torch.Tensor, ties: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Map [gh, gw] before the ReLU -> the rank of each pixel, int32 [h, w], 0 the highest; equal ones as in `ties`."""
    both = torch.stack([raw_map.relu() / raw_map.max(), ties])[None]
    values, ties = torch.nn.functional.interpolate(both, size, mode="bilinear", align_corners=False)[0].flatten(1)
    keys = (values * LEVELS).round().long() * LEVELS + (ties * (LEVELS - 1)).long()
    order = torch.argsort(keys, descending=True, stable=True)  # integers: ten times as fast as floats
    ranks = torch.empty_like(order, dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    return ranks.reshape(size)


def _score_all(score, image, masked: Iterator[_Masked], total: int, batch: int) -> Iterator[np.ndarray]:
    """The scores [n, K] of all masked images, in the fewest batches that are as large as each other."""
    calls = -(-total // batch)
    for call in range(calls):
        chosen = list(islice(masked, total // calls + (call < total % calls)))
        shown = torch.stack([(m.ranks >= m.first) & (m.ranks < m.end) for m in chosen])[:, None]
        images = (image * shown.to(image.device)).contiguous(memory_format=torch.channels_last)
        yield score(images).float().cpu().numpy()
