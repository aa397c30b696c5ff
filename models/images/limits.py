"""How large a picture may be: checked on what its header says, before memory is taken."""

from ..errors import InputError

MOST_PIXELS = 64_000_000  # 8000 x 8000: twice the largest radiographs, with which a whole command stays below 2 GB


def check_pixel_count(width: int, height: int) -> None:
    """InputError, with what to try, for a picture of more than `MOST_PIXELS`."""
    if width * height > MOST_PIXELS:
        raise InputError("图像过大（{}×{}，上限 {} 像素）；请先缩小或裁剪", width, height, MOST_PIXELS)
