"""The physical bound of a case: neither its multiplications nor its unavoidable bytes can be through sooner.

`seconds = max(FLOPs / peak FLOP/s, bytes / bandwidth)`, with both ceilings measured here, in the same
process and with the same number of threads. FLOPs are those of direct convolution: an algorithm with fewer
multiplications (Winograd) may pass this bound.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, make_step, part
from benchmarks.providers import eager_forward

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches: FLOP/s of a large float32 product, bytes/s (read + write) of a copy."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Bound:
    """Work of one call, and the seconds below which it cannot end by direct convolution."""

    flops: int
    bytes: int
    seconds: float
    limited_by: str

    @classmethod
    def of(cls, flops: int, bytes_moved: int, ceilings: Ceilings) -> Bound:
        """Return the larger of the arithmetic time and the memory time."""
        arithmetic = flops / ceilings.flops_per_second
        memory = bytes_moved / ceilings.bytes_per_second
        return cls(flops, bytes_moved, max(arithmetic, memory), "arithmetic" if arithmetic >= memory else "memory")


def _fastest(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def measure_ceilings(size: int = 2048, copy_bytes: int = 256 << 20, repeats: int = 30) -> Ceilings:
    """Return the best of `repeats` products of [size, size] matrices and copies of `copy_bytes`, measured once."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    product = torch.empty(size, size)
    source = torch.ones(copy_bytes // FLOAT_BYTES)
    target = torch.zeros_like(source)
    gemm = _fastest(lambda: torch.mm(a, b, out=product), repeats)
    copy = _fastest(lambda: target.copy_(source), repeats)
    return Ceilings(2 * size**3 / gemm, 2 * source.nbytes / copy)


def count_work(case: Case) -> tuple[int, int]:
    """Return FLOPs and least bytes of one call of the case, from shapes alone: nothing is computed.

    FLOPs are those of convolutions and matrix products. Bytes: the input and the parameters read once and
    the output written once; in a step that trains, also the output of each convolution that is trained,
    written once and read once in the backward, and for each parameter its gradient, its momentum and its
    new value.
    """
    with torch.device("meta"):
        net, x = case.eager_net(), case.input()
        module = part(net, case)
        step = make_step(case, module, eager_forward(case, module), x, update=False)
        kept: list[int] = []
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                child.register_forward_hook(lambda _, __, y: kept.append(y.nbytes if y.requires_grad else 0))
        with FlopCounterMode(display=False) as counter:
            y = step()
    parameters = sum(p.nbytes for p in module.parameters())
    # training reads and writes value and momentum, and writes and reads the gradient
    moved = x.nbytes + y.nbytes + 2 * sum(kept) + (6 if case.trains else 1) * parameters
    return counter.get_total_flops(), moved
