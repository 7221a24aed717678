"""The physical bound of a case: neither its multiplications nor its unavoidable bytes can be through sooner.

The floors are multiply-adds / ceiling and bytes read / ceiling + bytes written / ceiling, with the ceilings of
`benchmarks/ceilings.py` for the same number of threads.

Multiply-adds are those of Winograd F(4x4, 3x3) where it applies (36 for 16 outputs of a pair of channels) and
of direct convolution elsewhere; transforms count nothing. The data gradient and the weight gradient cost what
the forward costs.

Bytes: images or input, parameters and output once, as if all between stayed in the caches. Only batch statistics
force more: they are known after the whole batch, so what they normalise is written and read again. A batch norm then
moves its input twice forward and, with a gradient, four times backward (read for the sums of its gradient and for the
gradient itself, which is written and read). A block reads its stream for the shortcut and, with a gradient, reads the
stream's gradient for it; it writes or reads each once more where ReLU follows the sum (backward, read) or where the
sum's gradient is no batch norm's (pre-activation, written).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, make_step, part
from benchmarks.ceilings import Ceilings
from benchmarks.eager import FORWARD, FULL, OFF, Block, Drop, Gate, PreActBlock
from benchmarks.providers import eager_forward

TILE, TRANSFORMED = 4, 6  # F(4x4, 3x3): a tile of 4 x 4 outputs from 6 x 6 products


@dataclass
class Work:
    """What one call of a case must do at least."""

    multiply_adds: float = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Bound:
    """The seconds of a call's multiply-adds and of its bytes; it cannot end below the larger."""

    arithmetic: float
    memory: float

    @classmethod
    def of(cls, work: Work, ceilings: Ceilings) -> Bound:
        """Return both floors on a machine with these ceilings."""
        arithmetic = work.multiply_adds / ceilings.multiply_adds
        return cls(arithmetic, work.read / ceilings.read + work.written / ceilings.write)


def count_work(case: Case) -> Work:
    """Return the least work of one call of the case, from shapes alone: nothing is computed."""
    work = Work()
    with torch.device("meta"):
        module = part(case.eager_net(), case)
        x = case.input()
        step = make_step(case, module, eager_forward(case, module), x, update=False)
        with _counting(module, work):
            y = step()
    parameters = sum(p.nbytes for p in module.parameters())
    work.read += x.nbytes + parameters
    work.written += y.nbytes + (x.nbytes if x.requires_grad else 0)
    if case.trains:  # the gradient is written and read; momentum and value are read and written
        work.read += 3 * parameters
        work.written += 3 * parameters
    return work


@contextmanager
def _counting(module: nn.Module, work: Work) -> Iterator[None]:
    hooks = {nn.Conv2d: _convolution, nn.Linear: _linear, nn.BatchNorm2d: _batch_norm, Block: _block}
    handles = [
        child.register_forward_hook(lambda child, inputs, y, count=count: count(work, child, inputs[0], y, *inputs[1:]))
        for child in module.modules()
        for kind, count in hooks.items()
        if isinstance(child, kind)
    ]
    yield
    for handle in handles:
        handle.remove()


def _passes(weight: Tensor, x: Tensor, y: Tensor) -> int:
    """How often the products are computed: forward, and for the gradient of x and of the weight."""
    return 1 + (y.requires_grad and x.requires_grad) + (y.requires_grad and weight.requires_grad)


def _convolution(work: Work, conv: nn.Conv2d, x: Tensor, y: Tensor) -> None:
    pairs = conv.in_channels * conv.out_channels * len(y)
    products = math.prod(conv.kernel_size) * y[0, 0].numel()
    if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
        tiles = math.prod(math.ceil(side / TILE) for side in y.shape[2:])
        products = min(products, TRANSFORMED**2 * tiles)
    work.multiply_adds += pairs * products * _passes(conv.weight, x, y)


def _linear(work: Work, linear: nn.Linear, x: Tensor, y: Tensor) -> None:
    work.multiply_adds += x.numel() * linear.out_features * _passes(linear.weight, x, y)


def _batch_norm(work: Work, norm: nn.BatchNorm2d, x: Tensor, y: Tensor) -> None:
    if norm.training:
        work.written += x.nbytes * (2 if y.requires_grad else 1)
        work.read += x.nbytes * (4 if y.requires_grad else 1)


def _block(work: Work, block: Block, x: Tensor, y: Tensor, gate: Gate = FULL) -> None:
    if gate == OFF or not block.training:
        return
    preact, backward = isinstance(block, PreActBlock), gate != FORWARD and y.requires_grad
    images = len(gate.kept) if isinstance(gate, Drop) and not gate.masked else len(y)
    stream = images * y[0].nbytes
    work.read += stream * (1 + backward * (1 if preact else 2))
    work.written += stream * (backward if preact else 1)
