"""Augmentation of small natural images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 4


def shift_and_mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image `[N, C, H, W]` by up to 4 pixels over zeros, mirror half of them (He et al. 2015, 4.2)."""
    images, channels, height, width = x.shape
    padded = F.pad(x, (SHIFT,) * 4)
    top = torch.randint(2 * SHIFT + 1, (images, 1), generator=generator)
    left = torch.randint(2 * SHIFT + 1, (images, 1), generator=generator)
    mirrored = torch.randint(2, (images, 1), generator=generator).bool()
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    image, channel = torch.arange(images), torch.arange(channels)
    picked = padded[
        image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]
    return picked.contiguous(memory_format=torch.channels_last)
