"""Grey levels of any range -> 8 bits."""

import numpy as np


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Grey levels [H, W] of any range -> uint8 [H, W, 3]; levels that are not finite count as the darkest."""
    return np.repeat(scale_over_own_range(grey, np.isfinite(grey))[..., None], 3, axis=2)


def scale_over_own_range(grey: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Grey levels -> uint8 of the same shape: the counted ones from 0 to 255, the others 0."""
    if not counted.any():
        raise ValueError("没有有限的像素值")
    low, high = grey[counted].min(), grey[counted].max()
    scaled = np.where(counted, grey - low, 0) * (255.0 / (high - low) if high > low else 0.0)
    return np.rint(scaled).astype(np.uint8)
