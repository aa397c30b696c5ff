"""The one channel that an image tower of grey pictures reads, of the three that an image comes in."""

import torch

GREY = (0.299, 0.587, 0.114)  # what red, green and blue weigh in Pillow's "L" (ITU-R 601-2)


def as_grey(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> the one channel [B, 1, H, W] that a model of grey pictures reads.

    Grey before the normalisation is grey after it, as all three channels are normalised alike.
    """
    weights = torch.tensor(GREY, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)
