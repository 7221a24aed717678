"""ReLU masks of one bit an element: [pixels, ceil(C / 8)] bytes, bit k of a byte for channel 8 i + k."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(pixels, first, inside, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    WIDTH: tl.constexpr = (CHANNELS + 7) // 8
    byte = first // 8 + tl.arange(0, BLOCK // 8)
    return pixels[:, None] * WIDTH + byte[None, :], inside[:, None] & (byte < WIDTH)[None, :]


@triton.jit
def store_bits(bits, alive, pixels, first, inside, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, JOIN: tl.constexpr):
    """Write the mask `alive` [pixels, BLOCK] of channels from `first` on; JOIN: and with what stands there."""
    grouped = tl.reshape(alive.to(tl.int32), (alive.shape[0], BLOCK // 8, 8))
    packed = tl.sum(grouped << tl.arange(0, 8)[None, None, :], 2)
    at, within = _place(pixels, first, inside, CHANNELS, BLOCK)
    if JOIN:
        packed &= tl.load(bits + at, within, 0).to(tl.int32)
    tl.store(bits + at, packed.to(tl.uint8), within)


@triton.jit
def load_bits(bits, pixels, first, inside, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """The mask [pixels, BLOCK] of channels from `first` on."""
    at, within = _place(pixels, first, inside, CHANNELS, BLOCK)
    packed = tl.load(bits + at, within, 0).to(tl.int32)
    alive = packed[:, :, None] >> tl.arange(0, 8)[None, None, :] & 1
    return tl.reshape(alive, (packed.shape[0], BLOCK)) != 0
