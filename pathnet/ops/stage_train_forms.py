"""The forms of blocks that the CPU kernels train: how the ops number them, and what convolutions they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from types import NoneType

from torch import Tensor

from pathnet.reference import Block, Conv, Norm, Relu

BASIC, PREACT, BOTTLENECK, PREACT_BOTTLENECK = FORMS = range(4)  # as csrc/cpu/stage_train_plan.cpp numbers them
PROJECTION = 4  # behind the blocks: the shortcut of the first one, for the CPU kernels
RECOMPUTED = 5  # a bottleneck of which the Triton kernels keep no output of the last convolution
PREACTS = PREACT, PREACT_BOTTLENECK
KERNELS = ((3, 3), (3, 3), (1, 3, 1), (1, 3, 1), (1,), (1, 3, 1))  # the first 3x3 convolution, or the only one, strides


def _layers(form: int) -> tuple[tuple[type, ...], type]:
    """The layers of f, and act."""
    count = len(KERNELS[form])
    if form in PREACTS:
        return (Norm, Relu, Conv) * count, NoneType
    return ((Conv, Norm, Relu) * count)[:-1], Relu


_FORMS = {_layers(form): form for form in FORMS}


def form_of(block: Block) -> int | None:
    """The number of the block's form; None if it has another one."""
    return _FORMS.get((tuple(type(layer) for layer in block.residual), type(block.act)))


def strides(form: int, stride: int) -> list[int]:
    """The strides of the convolutions of a block that strides by `stride`."""
    first = KERNELS[form].index(3) if 3 in KERNELS[form] else 0
    return [stride if i == first else 1 for i in range(len(KERNELS[form]))]


def by_block(forms: Sequence[int], weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The weights of each block's convolutions."""
    rest = iter(weights)
    for form in forms:
        yield list(islice(rest, len(KERNELS[form])))
