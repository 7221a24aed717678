"""What PyTorch must know of stage_train_cuda_fwd and stage_train_cuda_bwd: shapes for tracing, several gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.kernels.stage_train_plan import has_gradient, keeps_input, mask_at
from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import PREACT


def kept_tensors(x: Tensor, blocks: Sequence[int]) -> list[Tensor | None]:
    """Fresh memory for what the backward of a run reads, None for what it does not.

    Of each block x, u1, u2, the norms' states and the mask before it; then the mask behind the run's last ReLUs.
    """
    preact, gates, kept = blocks[0] == PREACT, blocks[2::3], list[Tensor | None]()
    for block, gate in enumerate(gates):
        gradient = has_gradient(gate)
        keeps_x = gradient and block > 0 if preact else keeps_input(gates, block)
        kept += [_like(x) if keeps else None for keeps in (keeps_x, gradient, gradient and not preact)]
        kept += [x.new_empty((2, 4, x.shape[1]), dtype=torch.float32) if gradient else None]
        kept += [_bits(x) if gradient and not preact and mask_at(gates, block) == "bits" else None]
    return [*kept, None if preact else _bits(x)]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _bits(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() // x.shape[1], x.shape[1] // 8), dtype=torch.uint8)


def _fwd_fake(x, skip, weights, norms, running, blocks, *rest):
    return _like(x), [t for t in kept_tensors(x, blocks) if t is not None]


def _bwd_fake(grad_y, x, saved, weights, norms, *rest):
    needs = rest[-1]
    given = [_like(grad_y)] * sum(needs[:2])
    needed = [weight.numel() for weight, need in zip(weights, needs[2:], strict=False) if need]
    given += [weights[0].new_empty(sum(needed))] if needed else []
    return [*given, grad_y.new_empty((len(norms) // 2, 2, len(norms[0])), dtype=torch.float32)]


torch.library.register_fake("pathnet::stage_train_cuda_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stage_train_cuda_bwd", _bwd_fake, lib=library)
batch_one_by_one("stage_train_cuda_bwd")
