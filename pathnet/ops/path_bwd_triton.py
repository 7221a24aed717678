"""path_bwd by the Triton kernels: the op, and what it does not run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.ops.schemas import library
from pathnet.ops.stage_train_runs import unfit_transform
from pathnet.ops.triton_calls import channels_last, dense, product_precision, unfit_device, unfit_input


def path_bwd_triton(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """`path_bwd` for calls that `supports_triton` has accepted."""
    given = channels_last(gradient), [dense(weight) for weight in weights], [mask.contiguous() for mask in masks]
    found = torch.ops.pathnet.path_bwd_triton(*given, product_precision())
    return torch.empty_like(gradient).copy_(found) if found.stride() != gradient.stride() else found


def supports_triton(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor]) -> str | None:
    """Why the Triton kernels cannot run the call, in a sentence; None if they can."""
    other = next((weight for weight in weights if weight.dtype not in (gradient.dtype, torch.float32)), None)
    unfit_weights = None if other is None else f"weights are {other.dtype} and the gradient is {gradient.dtype}"
    return unfit_transform() or unfit_device(gradient) or unfit_input(gradient) or unfit_weights


def _path_bwd(gradient, weights, masks, precision):
    from pathnet.kernels.path_bwd import path_bwd

    with torch.cuda.device_of(gradient):
        return path_bwd(gradient, weights, masks, precision)


for _key in ("CPU", "CUDA"):
    library.impl("path_bwd_triton", _path_bwd, _key)
torch.library.register_fake("pathnet::path_bwd_triton", lambda gradient, *rest: torch.empty_like(gradient), lib=library)
