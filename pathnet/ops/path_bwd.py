"""A gradient back along one path: the branches that it takes, and the masks of those that it goes around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pathnet import extension
from pathnet.backend import choose
from pathnet.ops.path_bwd_triton import path_bwd_triton, supports_triton
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_cpu import FEWEST_VALUES, unfit_input, unfit_mode
from pathnet.ops.triton_calls import loses_triton
from pathnet.reference.path_bwd import path_bwd as reference_path_bwd


def path_bwd(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """g <- m_0 g, then g <- m_i (w_i * g) for each 3x3 convolution of stride 1; nothing is recorded for autograd.

    Shapes: gradient [k N, C, H, W]; weights [C, C, 3, 3]; masks, one more than weights, int16 [N, ceil(C / 16), H, W],
    as `pathnet.reference.path_bwd.bits_of` makes them.
    Raises RuntimeError if a forced backend cannot run the call.
    """
    with torch.no_grad():
        backend = choose("path_bwd", SUPPORTS, gradient, weights, masks, loses=LOSES)
        if backend == "triton":
            return path_bwd_triton(gradient, weights, masks)
        if backend == "cpu":
            return torch.ops.pathnet.path_bwd(gradient, weights, masks)
        return reference_path_bwd(gradient, weights, masks)


def supports_cpu(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> str | None:
    """Why the compiled CPU kernel cannot run the call, in a sentence; None if it can."""
    if not extension.available():
        return extension.why_not()
    other = next((weight.dtype for weight in weights if weight.dtype != torch.float32), None)
    unfit_weights = None if other is None else f"weights are {other}, and this kernel computes in float32"
    return unfit_mode() or unfit_input(gradient) or unfit_weights


def loses_cpu(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> str | None:
    """Where plain PyTorch is the better choice: batches of a few pixels, which it computes more exactly."""
    n, _, h, w = gradient.shape
    if n * h * w < FEWEST_VALUES:
        return f"{n} images of {h}x{w} have {n * h * w} values a channel, and below {FEWEST_VALUES} PyTorch errs less"
    return None


LOSES: Mapping[str, Callable[..., str | None]] = {"triton": loses_triton, "cpu": loses_cpu}
SUPPORTS = {"triton": supports_triton, "cpu": supports_cpu, "reference": lambda *call: None}


def _fake(gradient, weights, masks):
    return torch.empty_like(gradient)


torch.library.register_fake("pathnet::path_bwd", _fake, lib=library)
