"""What the forward of pre-activation blocks has beside `conv_forward`: the sum with the shortcut, and a first norm."""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.conv_forward import product
from pathnet.kernels.norm import finish_forward
from pathnet.kernels.tiles import block, tile_channels, tile_pixels


@triton.jit
def conv_residual(
    u_in, state_in, skip, weight, x_out, scale, height, width, by_output, by_input, by_tap,
    slots, counter, norm_weight, norm_bias, running_mean, running_var, batches, state_out, multiplier, eps, momentum,
    count,
    IN: tl.constexpr, OUT: tl.constexpr, SIDE: tl.constexpr, SUMS: tl.constexpr, BATCH_STATS: tl.constexpr,
    MOVES: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x_out = skip + scale conv(relu(norm(u_in))); SUMS: a block comes next, and state_out is its first norm."""
    STORED: tl.constexpr = x_out.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = product(
        u_in, None, state_in, weight, pixels, outputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, 1, SIDE, "norm", STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    valid = pixels < count
    at, within = block(pixels, outputs, valid, OUT)
    stored = (scale * sums + tl.load(skip + at, within, 0.0).to(tl.float32)).to(STORED)
    tl.store(x_out + at, stored, within)
    if SUMS:
        finish_forward(
            stored.to(tl.float32), valid, outputs, count, slots, counter, norm_weight, norm_bias, running_mean,
            running_var, batches, state_out, multiplier, eps, momentum, OUT, BLOCK_M, BATCH_STATS, MOVES,
        )  # fmt: skip


@triton.jit
def first_norm(
    x, slots, counter, norm_weight, norm_bias, running_mean, running_var, batches, state_out, multiplier, eps,
    momentum, count,
    CHANNELS: tl.constexpr, BATCH_STATS: tl.constexpr, MOVES: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The norm that a run begins with: nobody has formed the statistics of x."""
    pixels, channels = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    valid, value = pixels < count, tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BATCH_STATS:
        at, within = block(pixels, channels, valid, CHANNELS)
        value = tl.load(x + at, within, 0.0).to(tl.float32)
    finish_forward(
        value, valid, channels, count, slots, counter, norm_weight, norm_bias, running_mean, running_var, batches,
        state_out, multiplier, eps, momentum, CHANNELS, BLOCK_M, BATCH_STATS, MOVES,
    )  # fmt: skip
