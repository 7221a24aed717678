"""Shortcuts that change the shape: zero-padded (option A) or projected (option B)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SHORTCUTS = ("pad", "pad_end", "conv")


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, zero channels around, no parameters (He et al. 2015, section 4.2).

    `end=False` splits the zero channels over both sides (the common PyTorch CIFAR code), `end=True` puts them last
    (the Torch original). Shapes: [N, C, H, W] -> [N, C + before + after, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, end: bool) -> None:
        super().__init__()
        self.stride = stride
        self.before = 0 if end else (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


def make_shortcut(kind: str, in_channels: int, out_channels: int, stride: int, norm: bool) -> nn.Module | None:
    """The shortcut of a block; None where the identity fits. `norm` puts a batch norm behind a projection."""
    if stride == 1 and in_channels == out_channels:
        return None
    if kind != "conv":
        return PadShortcut(in_channels, out_channels, stride, end=kind == "pad_end")
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels)) if norm else nn.Sequential(projection)
