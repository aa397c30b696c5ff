"""How well a map points: phantoms with the masks of their findings, and what counts as a hit."""

import multiprocessing
from functools import partial

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..evaluation.measures import GRID, TOLERANCE, peak
from .dataset import normalise, random_size
from .findings import FINDINGS, KINDS
from .phantoms import draw_phantom

PROXIMAL, DISTAL = ("cup_loose", "wear", "dislocation"), ("stem_loose", "fracture", "infection")


def squash(image, size):
    """uint8 [H, W] -> [size, size] by area, as for training."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def squash_as_the_tool(image, size):
    """The same with the tool's own filter (`preprocess` of models.images.preprocessing)."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def draw_case(job, resize=squash):
    """(seed, findings, native, img_size) -> image uint8 [S, S] and {finding: bool [224, 224]}."""
    cv2.setNumThreads(1)
    seed, findings, native, img_size = job
    phantom = draw_phantom(seed, findings, random_size(seed, 500, 900), native)
    return resize(phantom.image, img_size), {name: shrink(mask, GRID) for name, mask in phantom.masks.items()}


def shrink(mask, size):
    """bool [H, W] -> bool [size, size]: pixels that the mask covers at least a quarter of."""
    return cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.25


def dilate(mask, pixels=TOLERANCE):
    """bool [H, W] grown by OpenCV's disk of `pixels`: its rows are rounded, so that some are half a pixel longer."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1,) * 2)
    return cv2.dilate(mask.astype(np.uint8), disk) > 0


def single_jobs(seeds, count, img_size):
    """`count` phantoms, the nine kinds in turn, at most one finding each."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    jobs = [
        (seeds.start + i, (kind,) if kind in FINDINGS else (), kind == "native", img_size)
        for i, kind in enumerate(kinds)
    ]
    return kinds, jobs


def double_jobs(seeds, count, img_size):
    """`count` phantoms with two findings, one at the cup or head and one at the femur."""
    both = [(PROXIMAL[i % 3], DISTAL[i // 3 % 3]) for i in range(count)]
    return both, [(seeds.start + 500_000 + i, pair, False, img_size) for i, pair in enumerate(both)]


def draw_cases(jobs, resize=squash):
    """-> images uint8 [N, S, S], masks [N] of {finding: bool [224, 224]}."""
    with multiprocessing.Pool(2) as pool:
        images, masks = zip(*pool.map(partial(draw_case, resize=resize), jobs, chunksize=8), strict=True)
    return np.stack(images), masks


def is_hit(heatmap, mask):
    """Whether the heatmap's peak lies within TOLERANCE of the mask; a flat map never hits."""
    return peaks_in(heatmap, dilate(mask))


def peaks_in(heatmap, region):
    """Whether the heatmap's peak lies in the region, bool [H, W]; a flat map has none."""
    return bool(heatmap.max() > heatmap.min() and region[peak(heatmap)])


@torch.no_grad()
def quick_validation(ask, singles, doubles, batch=32):
    """(accuracy, pointing, both of two), for watching the training. singles, doubles: (kinds, (images, masks)).

    ask: pixels [B, 3, S, S] -> similarities [B, 9] of the kinds' descriptions and their maps [B, 9, h, w].
    """
    answers, hits = [], []
    for kinds, (images, masks) in (singles, doubles):
        for i in range(0, len(kinds), batch):
            similarities, maps = ask(normalise(torch.from_numpy(images[i : i + batch])[:, None].float() / 255))
            maps = F.interpolate(maps, size=(GRID,) * 2, mode="bilinear").numpy()
            answers += similarities.argmax(-1).tolist()
            hits += [
                {name: is_hit(maps[j][KINDS.index(name)], mask) for name, mask in masks[i + j].items()}
                for j in range(len(maps))
            ]
    return summarise(answers, hits, singles[0])


def summarise(answers, hits, kinds):
    """(accuracy, pointing, both of two) of answers and {kind: hit}; the first belong to images of these `kinds`."""
    n = len(kinds)
    right = [KINDS[answer] == kind for answer, kind in zip(answers, kinds, strict=False)]
    by_kind = {
        k: (
            np.mean([r for r, q in zip(right, kinds, strict=True) if q == k]),
            np.mean([h[k] for h in hits[:n] if k in h] or [np.nan]),
        )
        for k in KINDS
    }
    return {
        "accuracy": float(np.mean(right)),
        "pointing": float(np.mean([v for h in hits[:n] for v in h.values()])),
        "both": float(np.mean([all(h.values()) for h in hits[n:]])),
        "by_kind": by_kind,
    }


def print_validation(validation, step):
    shown = {name: tuple(round(float(v), 2) for v in pair) for name, pair in validation["by_kind"].items()}
    print(
        f"validation, step {step}: accuracy {validation['accuracy']:.3f}  pointing {validation['pointing']:.3f}  "
        f"both of two {validation['both']:.3f}  {shown}",
        flush=True,
    )
