"""What stands before the blocks of an ImageNet net: a convolution, batch norm, ReLU and max pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathnet.blocks.describe import describe, has_hooks, run_modules
from pathnet.ops.stem_train import stem_train, supports_cpu
from pathnet.reference import Norm, Relu


def run_stem(conv: nn.Module, norm: nn.Module, act: nn.Module, pool: nn.Module, x: Tensor, update: bool) -> Tensor:
    """Run the four on x; in training all behind the convolution is one op, where the CPU kernel takes it.

    `update` says whether running statistics move.
    """
    first, second = (*describe((norm, act)), None, None)[:2]
    if not (torch.is_grad_enabled() and isinstance(first, Norm) and isinstance(second, Relu) and _is_plain(pool)):
        return run_modules((conv, norm, act, pool), x, update)
    u = run_modules((conv,), x, update)
    if supports_cpu(u, first) is None:
        return stem_train(u, first, update)
    return run_modules((norm, act, pool), u, update)


def _is_plain(pool: nn.Module) -> bool:
    """Whether it is the pooling that the kernel has: 3x3 of stride 2, padding 1."""
    if type(pool) is not nn.MaxPool2d or has_hooks(pool) or "forward" in vars(pool):
        return False
    geometry = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    pairs = tuple(value if isinstance(value, tuple) else (value, value) for value in geometry)
    return pairs == ((3, 3), (2, 2), (1, 1), (1, 1)) and not pool.ceil_mode and not pool.return_indices
