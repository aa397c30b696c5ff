"""Phantoms to train on: drawn once with their twins, put together in batches, augmented."""

import math
import multiprocessing

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from ..images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from .findings import FINDINGS, KINDS
from .phantoms import draw_phantom

# One seed draws one hip. The ranges never meet: training / choosing settings / the published numbers / samples.
SEEDS = {
    "train": range(0, 1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "test": range(2_000_000, 3_000_000),
    "pairs": range(3_000_000, 4_000_000),
    "samples": range(4_000_000, 5_000_000),
}
PAIRED = FINDINGS[:-1]  # kinds that are also drawn without their finding; the spacer has no such twin


def random_size(seed, low, high):
    """(height, width): side between low and high, sides in the ratio 0.72 to 1.35."""
    rng = np.random.default_rng([seed, 50])
    side, ratio = rng.uniform(low, high), math.sqrt(rng.uniform(0.72, 1.35))
    return round(side * ratio), round(side / ratio)


def draw_for_training(job):
    """(seed, kind, with_finding, img_size) -> image uint8 [S, S], region uint8 [S/4, S/4]: mask, or the subject."""
    cv2.setNumThreads(1)
    seed, kind, with_finding, img_size = job
    wanted = (kind,) if kind in FINDINGS else ()
    phantom = draw_phantom(seed, wanted if with_finding else (), random_size(seed, 340, 520), kind == "native", wanted)
    image = cv2.resize(phantom.image, (img_size, img_size), interpolation=cv2.INTER_AREA)
    region = phantom.masks[kind] if with_finding and wanted else phantom.subject
    quarter = cv2.resize(region.astype(np.float32) * 255, (img_size // 4,) * 2, interpolation=cv2.INTER_AREA)
    return image, np.round(quarter).astype(np.uint8)


def draw_dataset(seeds, per_kind, img_size):
    """{kind: (images [n, 2, S, S], regions [n, 2, S/4, S/4])} uint8; index 1 is the twin without the finding."""
    dataset, start = {}, seeds.start
    with multiprocessing.Pool(2) as pool:
        for kind in (kind for kind in KINDS if kind != "normal"):
            twins = (True, False) if kind in PAIRED else (True,)
            jobs = [(start + i, kind, twin, img_size) for i in range(per_kind) for twin in twins]
            start += per_kind
            drawn = pool.map(draw_for_training, jobs, chunksize=32)
            images, regions = (
                np.stack(part).reshape(per_kind, len(twins), *part[0].shape) for part in zip(*drawn, strict=True)
            )
            dataset[kind] = torch.from_numpy(images), torch.from_numpy(regions)
            print(f"drew {len(jobs)} phantoms: {kind}", flush=True)
    return dataset


def sample_batch(dataset, recipe, rng):
    """images uint8 [B, S, S], regions uint8 [B, s, s], labels [B] (index into KINDS).

    Per finding `findings_per_batch` images, a third of them (rounded up) next to their twin without the finding.
    """
    images, regions, labels = [], [], []
    for kind, (pictures, masks) in dataset.items():
        n = recipe["findings_per_batch"] if kind in PAIRED else recipe["others_per_batch"]
        chosen = torch.from_numpy(rng.choice(len(pictures), n, replace=False))
        take = [(chosen, 0, kind)] + ([(chosen[: -(-n // 3)], 1, "normal")] if kind in PAIRED else [])
        for index, twin, name in take:
            images.append(pictures[index, twin])
            regions.append(masks[index, twin])
            labels += [KINDS.index(name)] * len(index)
    return torch.cat(images), torch.cat(regions), torch.tensor(labels)


def augment(images, regions, size, rng):
    """Mirror, turn, zoom, shift; brightness, contrast, gamma. uint8 -> [B, 3, size, size] normalised, [B, s, s]."""
    b = len(images)
    angle, zoom = torch.from_numpy(rng.uniform(-0.12, 0.12, b)), torch.from_numpy(rng.uniform(0.9, 1.1, b))
    mirror = torch.from_numpy(rng.choice([-1.0, 1.0], b))
    cos, sin, shift = torch.cos(angle) * zoom, torch.sin(angle) * zoom, torch.from_numpy(rng.uniform(-0.1, 0.1, (b, 2)))
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], 1).view(b, 2, 3).float()
    grey = images[:, None].float() / 255
    if size < grey.shape[-1]:  # antialias before sampling a smaller image
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", antialias=True)
    grid = F.affine_grid(theta, (b, 1, size, size), align_corners=False)
    grey = F.grid_sample(grey, grid, padding_mode="border", align_corners=False)
    s = regions.shape[-1]
    masks = F.grid_sample(
        regions[:, None].float() / 255, F.affine_grid(theta, (b, 1, s, s), align_corners=False), align_corners=False
    )
    column = [
        torch.from_numpy(rng.uniform(low, high, (b, 1, 1, 1))).float()
        for low, high in ((0.8, 1.3), (0.85, 1.15), (-0.06, 0.06))
    ]
    grey = (grey.clamp(1e-4, 1) ** column[0] * column[1] + column[2]).clamp(0, 1)
    return normalise(grey), masks[:, 0]


def normalise(grey):
    """[B, 1, S, S] in [0, 1] -> [B, 3, S, S] with ImageNet's mean and standard deviation."""
    return (grey - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
