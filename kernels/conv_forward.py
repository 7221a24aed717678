"""Convolutions of the forward: each reads its input through a prologue and sums up what the next norm needs.

F1 makes the block's input x = relu(scale2' u2' + shift2' + x') from the block before, writes it once and convolves it;
the first F1 of a run finds x ready. F2 convolves relu(scale1 u1 + shift1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.bits import store_bits
from pathnet.kernels.norm import finish_forward, normalised
from pathnet.kernels.tiles import (
    block,
    multiply_add,
    places,
    rows_of,
    tap_of_output,
    tile_channels,
    tile_pixels,
    weight_tile,
)


@triton.jit
def convolved(u, x, state, at, within, channels, CHANNELS: tl.constexpr, PROLOGUE: tl.constexpr):
    """What the convolution reads at `at`, float32; zero outside the image, behind batch norm too."""
    if PROLOGUE == "input" or PROLOGUE == "rows":
        value = tl.load(x + at, within, 0.0).to(tl.float32)
    else:
        value = normalised(tl.load(u + at, within, 0.0), state, channels, CHANNELS)
        if PROLOGUE == "merge":
            value += tl.load(x + at, within, 0.0).to(tl.float32)
        value = tl.where(within, tl.maximum(value, 0.0), 0.0)
    return value


@triton.jit
def write_merged(
    u, x, state, merged, bits, pixels, count, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, BITS: tl.constexpr
):
    """Write relu(scale u + shift + x) of these pixels, and with BITS ("new" or "join") the mask of what is positive."""
    inside = pixels < count
    for first in range(0, CHANNELS, BLOCK_K):
        channels = first + tl.arange(0, BLOCK_K)
        at, within = block(pixels, channels, inside, CHANNELS)
        value = convolved(u, x, state, at, within, channels, CHANNELS, "merge")
        tl.store(merged + at, value, within)
        if BITS != "none":
            store_bits(bits, value > 0, pixels, first, inside, CHANNELS, BLOCK_K, BITS == "join")


@triton.jit
def product(
    u, x, state, weight, pixels, outputs, count, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, PROLOGUE: tl.constexpr,
    STORED: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """conv(prologue) at output `pixels` and channels `outputs`, float32 [BLOCK_M, BLOCK_N]."""
    CHUNKS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    image, row, column = places(pixels, (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(SIDE * SIDE * CHUNKS):
        tap = step // CHUNKS
        inputs = step % CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
        source, inside = tap_of_output(image, row, column, pixels < count, tap, height, width, STRIDE, SIDE)
        at, within = block(source, inputs, inside, IN)
        values = convolved(u, x, state, at, within, inputs, IN, PROLOGUE)
        weights = weight_tile(weight, outputs[None, :], inputs[:, None], tap, by_output, by_input, by_tap, OUT, IN)
        sums = multiply_add(sums, values, weights, STORED, PRODUCT, PRECISION)
    return sums


@triton.jit
def conv_forward(
    u_in, x_in, rows, state_in, merged, bits, weight, u_out, height, width, by_output, by_input, by_tap,
    slots, counter, norm_weight, norm_bias, running_mean, running_var, batches, state_out, multiplier, eps, momentum,
    count,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, PROLOGUE: tl.constexpr,
    ALIGN: tl.constexpr, BITS: tl.constexpr, BATCH_STATS: tl.constexpr, MOVES: tl.constexpr, PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """u_out = conv(prologue), state_out = the norm behind it. "rows": images of x stand where a table says."""
    STORED: tl.constexpr = u_out.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    if PROLOGUE == "merge":
        if tl.program_id(1) == 0:
            write_merged(u_in, x_in, state_in, merged, bits, pixels, count, IN, BLOCK_K, BITS)
    x = x_in
    if PROLOGUE == "rows":
        x = rows_of(x_in, rows, pixels // (height * width), pixels < count, height * width * IN, ALIGN)
    sums = product(
        u_in, x, state_in, weight, pixels, outputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, STRIDE, SIDE, PROLOGUE, STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    valid = pixels < count
    at, within = block(pixels, outputs, valid, OUT)
    stored = sums.to(STORED)
    tl.store(u_out + at, stored, within)
    finish_forward(
        stored.to(tl.float32), valid, outputs, count, slots, counter, norm_weight, norm_bias, running_mean,
        running_var, batches, state_out, multiplier, eps, momentum, OUT, BLOCK_M, BATCH_STATS, MOVES,
    )  # fmt: skip


@triton.jit
def merge(
    u, x, state, merged, bits, count, CHANNELS: tl.constexpr, BITS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The value that a run puts out, relu(scale u + shift + x): nobody convolves it here."""
    write_merged(u, x, state, merged, bits, tile_pixels(BLOCK_M, WIDE), count, CHANNELS, BLOCK_K, BITS)
