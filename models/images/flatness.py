"""Pictures that show nothing: of one grey level, all black, all white. A model predicts something all the same."""

import numpy as np

from ..messages import Message

SAMPLE_SIDE = 200  # pixels looked at along each side
NEAR = 12  # levels that count as the same: a twentieth of the range
LEAST_SHARE = 0.02  # of the pixels, that differ where a picture shows something


def describe_flat_picture(pixels: np.ndarray) -> Message | None:
    """What the reader must know where nearly all of RGB uint8 [H, W, 3] is of one level; None for other pictures.

    Mostly black background is ordinary: fewer than `LEAST_SHARE` of the pixels must differ from the level of most.
    """
    steps = [max(1, side // SAMPLE_SIDE) for side in pixels.shape[:2]]
    sample = pixels[:: steps[0], :: steps[1]]
    ranges = []
    for channel in range(3):
        counts = np.bincount(sample[..., channel].ravel(), minlength=256)
        middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
        low, high = max(0, middle - NEAR), min(255, middle + NEAR)
        if counts[low : high + 1].sum() < (1 - LEAST_SHARE) * counts.sum():
            return None
        ranges.append((low, high))
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    is_black, is_white = low == 0 and high <= 2 * NEAR, high == 255 and low >= 255 - 2 * NEAR
    look = Message("全黑" if is_black else "全白" if is_white else "只有一个灰度")
    return Message("图像几乎{}，对它的预测没有意义；请检查图像、DICOM 的窗宽窗位，或换一种 --grey-range", look)
