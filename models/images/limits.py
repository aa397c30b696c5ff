"""How large a picture may be: checked on what its header says, before memory is taken."""

from ..errors import InputError

MOST_PIXELS = 89_478_485  # as many as Pillow opens without a warning: 9459 x 9459


def check_pixel_count(width: int, height: int) -> None:
    """InputError, with what to try, for a picture of more than `MOST_PIXELS`."""
    if width * height > MOST_PIXELS:
        raise InputError(f"图像过大（{width}×{height}，上限 {MOST_PIXELS} 像素）；请先缩小或裁剪")
