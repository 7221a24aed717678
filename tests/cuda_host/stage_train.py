"""The ops stage_train_cuda_fwd and stage_train_cuda_bwd on CPU tensors: their launches, executed on the host."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from cuda_host.host import Library
from torch import Tensor

from pathnet.ops.stage_train_cuda_count import backward_numbers, columns_of, run_numbers
from pathnet.ops.stage_train_cuda_limits import MOST_BLOCKS, weight_slots
from pathnet.ops.stage_train_cuda_rules import kept_tensors

NORM_FLOATS = 3  # of a channel in a thread block's slot, at most
CHANNELS_PLACE = 3  # in numbers, as in csrc/cuda/stage_train_table.h
BUFFERS = 4  # kMostBuffers in csrc/cuda/stage_train_run.cuh


def memory(tensor: Tensor | None) -> np.ndarray | None:
    """The memory of a dense tensor, in its own order."""
    if tensor is None:
        return None
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return (flat.view(torch.int16) if tensor.dtype in (torch.float16, torch.bfloat16) else flat).numpy()


def poisoned(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype or like.dtype)


def _like(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan, memory_format=torch.channels_last)


def _reals(scales, constants) -> np.ndarray:
    """For each block its multiplier, and eps and momentum of both norms."""
    rows = zip(scales, constants[::4], constants[1::4], constants[2::4], constants[3::4], strict=True)
    return np.array([value for row in rows for value in row])


def _named(**lists: Sequence[Tensor | None]) -> dict[str, np.ndarray | None]:
    return {f"{name} {i}": memory(t) for name, tensors in lists.items() for i, t in enumerate(tensors)}


def forward(library: Library, x, skip, weights, norms, running, blocks, scales, flags, constants, precision, **how):
    """y and what is kept, the number of launches, and the bytes that they request."""
    kept, y, channels = kept_tensors(x, blocks), _like(x), x.shape[1]
    for tensor in (t for t in kept if t is not None):
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0xAA)
    inputs = _named(x=[x, skip], weight=weights, norm=norms) | {"reals": _reals(scales, constants)}
    sums, counter = poisoned(MOST_BLOCKS, channels, NORM_FLOATS, like=x, dtype=torch.float32), torch.zeros(1).int()
    scratch = [*(_like(x) for _ in range(4)), poisoned(2, 4, channels, like=x, dtype=torch.float32)]
    launches = np.zeros(1, np.int64)
    outputs = _named(y=[y], slots=[sums], counter=[counter], scratch=scratch, running=running, kept=kept)
    written = ["counter 0", *(f"running {i}" for i in range(len(running)))]
    numbers = run_numbers(x.shape, weights, blocks, flags, [-1] * len(weights))
    library.launches("forward", inputs, outputs | {"launches": launches}, numbers, written=written, **how)
    assert not counter.any()
    return y, [t for t in kept if t is not None], int(launches[0]), _requested(library, inputs | outputs, channels)


def backward(
    library: Library, grad_y, x, saved, weights, norms, blocks, scales, flags, constants, precision, has_skip, needs,
    **how,
):  # fmt: skip
    """The gradients as the op gives them, the number of launches, and the bytes that they request."""
    rows = iter(saved)
    kept = [None if t is None else next(rows) for t in kept_tensors(x, blocks)]
    columns, size = columns_of(weights, needs)
    n, channels, height, width = x.shape
    slots = weight_slots(x.dtype, n, channels, height, width)
    buffers, total = [_like(grad_y) for _ in range(BUFFERS)], poisoned(size, like=weights[0]) if size else None
    vectors = [poisoned(len(norms) // 2, 2, channels, like=x, dtype=torch.float32) for _ in range(2)]
    partial = poisoned(slots, size, like=x, dtype=torch.float32) if size else None
    sums, counter = poisoned(MOST_BLOCKS, channels, NORM_FLOATS, like=x, dtype=torch.float32), torch.zeros(1).int()
    answer = np.zeros(3, np.int64)
    kept_x = x if x.is_contiguous(memory_format=torch.channels_last) else None  # nobody reads it otherwise
    inputs = _named(grad_y=[grad_y.contiguous(memory_format=torch.channels_last)], x=[kept_x], weight=weights)
    inputs |= {"reals": _reals(scales, constants)} | _named(kept=kept)
    outputs = _named(buffer=buffers, vectors=vectors, partial=[partial], total=[total], slots=[sums], counter=[counter])
    numbers = run_numbers(x.shape, weights, blocks, flags, columns) + backward_numbers(weights, has_skip, needs)
    library.launches("backward", inputs, outputs | {"answer": answer}, numbers, written=["counter 0"], **how)
    assert not counter.any()
    launches, *places = answer.tolist()
    given = [buffers[place] for place, need in zip(places, needs, strict=False) if need]
    grads = [*given, *([] if total is None else [total]), vectors[1]]
    return grads, launches, _requested(library, inputs | outputs, channels)


def _requested(library: Library, arrays: dict[str, np.ndarray | None], channels: int) -> int:
    """Of activations, masks and weights: all that is more than a number a channel, and no partial sum."""
    few, other = 8 * channels, ("slots", "partial", "vectors")
    large = (a for name, a in arrays.items() if a is not None and a.size > few and not name.startswith(other))
    return sum(map(library.requested, large))


def count(library: Library, numbers: Sequence[int], backward: bool) -> list[int]:
    """The launches as `stage_train_cuda_count` gives them."""
    run = (ctypes.c_int64 * len(numbers))(*numbers)
    room = library.plain("count")(run, backward, None, 0)
    table = (ctypes.c_int64 * room)()
    library.plain("count")(run, backward, table, room)
    return list(table)
