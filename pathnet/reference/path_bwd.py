"""The meaning of `path_bwd`: a gradient back along one path, whose ReLUs are masks of one bit a value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = 16  # channels of a word of bits


def path_bwd(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """g <- m_0 g, then g <- m_i (w_i * g) for each 3x3 convolution of stride 1, in any dtype.

    Shapes: gradient [k N, C, H, W]; weights [C, C, 3, 3]; masks, one more than weights, as `bits_of` makes them of
    [N, C, H, W].
    """
    times, channels = len(gradient) // len(masks[0]), gradient.shape[1]
    for index, bits in enumerate(masks):
        if index:
            gradient = F.conv2d(gradient, weights[index - 1], padding=1)
        gradient = gradient.where(mask_of(bits, channels).repeat(times, 1, 1, 1), 0)
    return gradient


def bits_of(mask: Tensor) -> Tensor:
    """A mask [N, C, H, W] as int16 [N, ceil(C / 16), H, W], the bits of a word from the lowest channel up."""
    n, channels, h, w = mask.shape
    words = -(-channels // WORD)
    by_word = F.pad(mask.permute(0, 2, 3, 1), (0, WORD * words - channels)).view(n, h, w, words, WORD)
    return (by_word * 2 ** _places(mask)).sum(-1).to(torch.int16).permute(0, 3, 1, 2).contiguous()


def mask_of(bits: Tensor, channels: int) -> Tensor:
    """The mask [N, channels, H, W] that `bits_of` has packed."""
    by_channel = (bits.unsqueeze(2) >> _places(bits).view(-1, 1, 1)) & 1
    return by_channel.flatten(1, 2)[:, :channels].bool()


def _places(like: Tensor) -> Tensor:
    return torch.arange(WORD, device=like.device)
