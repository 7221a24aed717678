"""Slots for partial sums, and the counter by which the last program of a launch knows itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pathnet.kernels.settings import STREAM_PIXELS

COUNTERS = 1024  # one for each tile of channels, so enough for 16384 channels and more
_counters: dict[tuple[torch.device, int], Tensor] = {}


class Workspace(NamedTuple):
    """What the launches of a run use one after the other; nothing in it outlives the run but zeros in `counter`."""

    slots: Tensor  # float32 [2, tiles, C] at most
    counter: Tensor  # int32, zero between launches


def workspace(like: Tensor, pixels: int, channels: int) -> Workspace:
    """Slots for norms of so many channels over at most so many pixels, on the device of `like`."""
    tiles = triton.cdiv(pixels, STREAM_PIXELS)
    slots = torch.empty(2 * tiles * channels, dtype=torch.float32, device=like.device)
    return Workspace(slots, _counter(like.device))


def _counter(device: torch.device) -> Tensor:
    """Zeros that the kernels leave as zeros: one tensor for each stream, whose launches follow one another.

    A CUDA graph that is captured gets its own, and a launch that zeroes it: it may be replayed on any stream.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = device, stream
    if key not in _counters:
        _counters[key] = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    return _counters[key]
