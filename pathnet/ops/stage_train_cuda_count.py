"""What stage_train_cuda_fwd and stage_train_cuda_bwd launch: counted by the C++ that launches, with no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

PASSES = (
    "first norm", "forward conv1", "forward conv2", "merge", "arrive", "backward conv2", "backward conv1", "depart",
    "sum of weight gradients",
)  # fmt: skip  # as Pass in csrc/cuda/stage_train_run.cuh numbers them


class Traffic(NamedTuple):
    """A launch, and its bytes of activations, masks and weights; a number a channel counts nowhere."""

    name: str
    read: int  # each distinct byte once
    written: int
    requested: int  # as often as thread blocks ask
    workspace: int  # partial sums, which stand in none of the others


def launches_of(name: str, arguments: Sequence[Any]) -> list[Traffic]:
    """The launches of a call of the op `name`, one after the other."""
    if name.endswith("_fwd"):
        x, _, weights, _, _, blocks, _, flags = arguments[:8]
        return launches(x.shape, x.itemsize, weights, blocks, flags)
    grad_y, _, _, weights, _, blocks, _, flags, _, _, has_skip, needs = arguments
    return launches(grad_y.shape, grad_y.itemsize, weights, blocks, flags, has_skip, needs)


def launches(
    shape: Sequence[int], itemsize: int, weights: Sequence[Tensor], blocks: Sequence[int], flags: Sequence[bool],
    has_skip: bool = False, needs: Sequence[bool] | None = None,
) -> list[Traffic]:  # fmt: skip
    """The launches of the forward of a run, or of its backward where `needs` says what that must give."""
    columns = [-1] * len(weights) if needs is None else columns_of(weights, needs)[0]
    numbers = run_numbers(shape, weights, blocks, flags, columns)
    if needs is not None:
        numbers += backward_numbers(weights, has_skip, needs)
    table = torch.ops.pathnet.stage_train_cuda_count(numbers, itemsize, needs is not None)
    return [Traffic(PASSES[table[row]], *table[row + 1 : row + 5]) for row in range(0, len(table), 5)]


# ---- a run as csrc/cuda/stage_train_table.h reads it -----------------------------------------------------------------


def run_numbers(
    shape: Sequence[int], weights: Sequence[Tensor], blocks: Sequence[int], flags: Sequence[bool],
    columns: Sequence[int],
) -> list[int]:  # fmt: skip
    images, channels, height, width = shape
    numbers = [images, height, width, channels, len(blocks) // 3, blocks[0], *blocks[2::3]]
    for weight, column in zip(weights, columns, strict=True):
        numbers += [weight.dtype == torch.float32, *weight.stride()[:2], weight.stride(3), column]
    return [*numbers, *flags]


def backward_numbers(weights: Sequence[Tensor], has_skip: bool, needs: Sequence[bool]) -> list[int]:
    return [weights[0].dtype == torch.float32, columns_of(weights, needs)[1], has_skip, needs[0] or needs[1]]


def columns_of(weights: Sequence[Tensor], needs: Sequence[bool]) -> tuple[list[int], int]:
    """Where each weight's gradient begins in a slot, -1 where none is asked for; and the size of a slot."""
    sizes = [weight.numel() * need for weight, need in zip(weights, needs[2:], strict=False)]
    ends = list(accumulate(sizes))
    return [end - size if size else -1 for end, size in zip(ends, sizes, strict=True)], ends[-1]
