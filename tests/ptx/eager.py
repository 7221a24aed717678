"""Eager PyTorch as it is on a GPU."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class Tf32Convolutions(TorchDispatchMode):
    """Convolutions of float32 read of their operands what tensor cores do: TF32, without the low 13 bits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in CONVOLUTIONS and torch.backends.cudnn.conv.fp32_precision == "tf32":
            args = [_cut(value) for value in args]
        return func(*args, **(kwargs or {}))


def _cut(value):
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return value
    return (value.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
