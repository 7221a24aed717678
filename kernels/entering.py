"""The gradient that enters the backward of a convolution: of what it gave, made from what the pass above wrote."""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.norm import norm_backward
from pathnet.kernels.tiles import block


@triton.jit
def entering(g, u, skip, state, slopes, at, within, channels, CHANNELS: tl.constexpr, ENTERS: tl.constexpr):
    """At `at`, float32, zero outside the image.

    ENTERS: "value" (g itself), "norm" (g stands behind the norm of u) or "both" (that, and skip beside it).
    """
    gradient = tl.load(g + at, within, 0.0).to(tl.float32)
    if ENTERS != "value":
        gradient = norm_backward(gradient, tl.load(u + at, within, 0.0), state, slopes, channels, CHANNELS)
        if ENTERS == "both":
            gradient += tl.load(skip + at, within, 0.0).to(tl.float32)
        gradient = tl.where(within, gradient, 0.0)
    return gradient


@triton.jit
def write_entering(
    g, u, skip, state, slopes, entered, pixels, count, CHANNELS: tl.constexpr, ENTERS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the gradient of all channels of these pixels."""
    for first in range(0, CHANNELS, BLOCK_K):
        channels = first + tl.arange(0, BLOCK_K)
        at, within = block(pixels, channels, pixels < count, CHANNELS)
        gradient = entering(g, u, skip, state, slopes, at, within, channels, CHANNELS, ENTERS)
        tl.store(entered + at, gradient, within)
