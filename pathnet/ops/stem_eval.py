"""The stem of an ImageNet net in evaluation, as one CPU op."""

from __future__ import annotations

import torch
from torch import Tensor

from pathnet import backend, extension
from pathnet.ops.eval_blocks import unfit_norm
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_cpu import unfit_input, unfit_mode
from pathnet.reference import Conv, Norm

SHAPE = (3, 7, 7)  # of a filter; the kernel's registers and loops are laid out for it (csrc/cpu/stem_convolve.h)
CHANNELS = 32  # of the output the kernel takes multiples of so many


def stem_eval(x: Tensor, conv: Conv, norm: Norm) -> Tensor:
    """Max pooling, 3x3 of stride 2 with a padding of 1, over ReLU(norm(conv(x))), for what `supports_cpu` accepts.

    Shapes: x [N, 3, H, W] -> [N, C, ceil(H / 4), ceil(W / 4)], in channels_last.
    """
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return torch.ops.pathnet.stem_eval(x, conv.weight, tensors, norm.eps)


def supports_cpu(x: Tensor, conv: Conv, norm: Norm) -> str | None:
    """Why the compiled CPU kernel should not run this stem, in a sentence; None if it may."""
    if backend.forced() not in (None, "cpu"):
        return f"backend {backend.forced()!r} was asked for"
    if not extension.available():
        return extension.why_not()
    if torch.is_grad_enabled():
        return "a gradient may be asked for"
    return unfit_mode() or unfit_input(x) or _unfit_conv(conv) or unfit_norm(norm)


def _unfit_conv(conv: Conv) -> str | None:
    channels, *shape = conv.weight.shape
    if tuple(shape) != SHAPE or conv.weight.dtype != torch.float32 or channels % CHANNELS:
        return f"filters must be float32 {list(SHAPE)}, a multiple of {CHANNELS} of them"
    if conv.stride != (2, 2) or conv.padding != (3, 3) or conv.dilation != (1, 1) or conv.bias is not None:
        return "the convolution must have stride 2, padding 3, no dilation and no bias"
    return None


def _fake(x, weight, norm, eps):
    n, _, h, w = x.shape
    shape = n, weight.shape[0], (h + 3) // 4, (w + 3) // 4
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


torch.library.register_fake("pathnet::stem_eval", _fake, lib=library)
