"""The ops stage_train_cuda_fwd and stage_train_cuda_bwd on CPU tensors: their launches, executed on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from cuda_host.host import Library
from torch import Tensor

from pathnet.ops.stage_train_cuda_limits import MOST_BLOCKS, weight_slots
from pathnet.ops.stage_train_cuda_rules import kept_tensors

NORM_FLOATS = 3  # of a channel in a thread block's slot, at most


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


def _numbers(x, weights, blocks, flags, columns: Sequence[int]) -> list[int]:
    n, channels, height, width = x.shape
    numbers = [n, height, width, channels, len(blocks) // 3, *blocks[2::3]]
    for weight, column in zip(weights, columns, strict=True):
        numbers += [weight.dtype == torch.float32, *weight.stride()[:2], weight.stride(3), column]
    return [*numbers, *flags]


def _reals(scales, constants) -> np.ndarray:
    """For each block its multiplier, and eps and momentum of both norms."""
    rows = zip(scales, constants[::4], constants[1::4], constants[2::4], constants[3::4], strict=True)
    return np.array([value for row in rows for value in row])


def _named(**lists: Sequence[Tensor | None]) -> dict[str, np.ndarray | None]:
    return {f"{name} {i}": memory(t) for name, tensors in lists.items() for i, t in enumerate(tensors)}


def forward(library: Library, x, skip, weights, norms, running, blocks, scales, flags, constants, precision, **how):
    """y and what is kept, and the number of launches."""
    kept, y, channels = kept_tensors(x, blocks[2::3]), _like(x), x.shape[1]
    for tensor in (t for t in kept if t is not None):
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0xAA)
    inputs = _named(x=[x, skip], weight=weights, norm=norms) | {"reals": _reals(scales, constants)}
    sums, counter = poisoned(MOST_BLOCKS, channels, NORM_FLOATS, like=x, dtype=torch.float32), torch.zeros(1).int()
    scratch = [*(_like(x) for _ in range(4)), poisoned(2, 4, channels, like=x, dtype=torch.float32)]
    launches = np.zeros(1, np.int64)
    outputs = _named(y=[y], slots=[sums], counter=[counter], scratch=scratch, running=running, kept=kept)
    written = ["counter 0", *(f"running {i}" for i in range(len(running)))]
    numbers = _numbers(x, weights, blocks, flags, [-1] * len(weights))
    library.launches("forward", inputs, outputs | {"launches": launches}, numbers, written=written, **how)
    assert not counter.any()
    return y, [t for t in kept if t is not None], int(launches[0])


def backward(
    library: Library, grad_y, x, saved, weights, norms, blocks, scales, flags, constants, precision, has_skip, needs,
    **how,
):  # fmt: skip
    """The gradients as the op gives them, and the number of launches."""
    rows = iter(saved)
    kept = [None if t is None else next(rows) for t in kept_tensors(x, blocks[2::3])]
    needed = [weight.numel() * need for weight, need in zip(weights, needs[2:], strict=False)]
    ends = np.cumsum(needed).tolist()
    columns = [end - size if size else -1 for end, size in zip(ends, needed, strict=True)]
    n, channels, height, width = x.shape
    slots, size = weight_slots(x.dtype, n, channels, height, width), ends[-1]
    buffers, total = [_like(grad_y) for _ in range(3)], poisoned(size, like=weights[0]) if size else None
    vectors = [poisoned(len(norms) // 2, 2, channels, like=x, dtype=torch.float32) for _ in range(2)]
    partial = poisoned(slots, size, like=x, dtype=torch.float32) if size else None
    sums, counter = poisoned(MOST_BLOCKS, channels, NORM_FLOATS, like=x, dtype=torch.float32), torch.zeros(1).int()
    answer = np.zeros(3, np.int64)
    kept_x = x if x.is_contiguous(memory_format=torch.channels_last) else None  # nobody reads it otherwise
    inputs = _named(grad_y=[grad_y.contiguous(memory_format=torch.channels_last)], x=[kept_x], weight=weights)
    inputs |= {"reals": _reals(scales, constants)} | _named(kept=kept)
    outputs = _named(buffer=buffers, vectors=vectors, partial=[partial], total=[total], slots=[sums], counter=[counter])
    numbers = _numbers(x, weights, blocks, flags, columns)
    numbers += [weights[0].dtype == torch.float32, size, has_skip, needs[1] if has_skip else needs[0]]
    numbers[-1] = needs[0] or needs[1]
    library.launches("backward", inputs, outputs | {"answer": answer}, numbers, written=["counter 0"], **how)
    assert not counter.any()
    launches, *places = answer.tolist()
    given = [buffers[place] for place, need in zip(places, needs, strict=False) if need]
    return [*given, *([] if total is None else [total]), vectors[1]], launches
