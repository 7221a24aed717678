"""Gradients of what the convolutions read: norm backward in the prologue, ReLU's mask and the norm's sums behind.

inner_gradient: g1 = [scale1 u1 + shift1 > 0] conv2^T(norm2 backward of g), with the sums of norm1.
outer_gradient: g' = mask (conv1^T(norm1 backward of g1) + g), with the sums of the norm of the block before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.bits import load_bits
from pathnet.kernels.entering import entering
from pathnet.kernels.norm import finish_backward, normalised
from pathnet.kernels.tiles import (
    block,
    multiply_add,
    places,
    tap_of_input,
    tile_channels,
    tile_pixels,
    weight_tile,
)


@triton.jit
def transposed_product(
    g, u, skip, state, slopes, weight, pixels, inputs, count, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, ENTERS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """conv^T(entering gradient) at input `pixels` and channels `inputs`, float32 [BLOCK_M, BLOCK_N]."""
    CHUNKS: tl.constexpr = (OUT + BLOCK_K - 1) // BLOCK_K
    rows, columns = (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE
    image, row, column = places(pixels, height, width)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(SIDE * SIDE * CHUNKS):
        tap = step // CHUNKS
        outputs = step % CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
        source, inside = tap_of_input(image, row, column, pixels < count, tap, rows, columns, STRIDE, SIDE)
        at, within = block(source, outputs, inside, OUT)
        values = entering(g, u, skip, state, slopes, at, within, outputs, OUT, ENTERS)
        weights = weight_tile(weight, outputs[:, None], inputs[None, :], tap, by_output, by_input, by_tap, OUT, IN)
        sums = multiply_add(sums, values, weights, g.dtype.element_ty, PRODUCT, PRECISION)
    return sums


@triton.jit
def inner_gradient(
    g, u, state, slopes, weight, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, values,
    count, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, BATCH_STATS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """g_in: the gradient behind norm1, and the slopes and gradients of norm1, whose statistics are of `values`."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = transposed_product(
        g, u, None, state, slopes, weight, pixels, inputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, STRIDE, SIDE, "norm", PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    finish_inner(
        sums, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, values, pixels, inputs, count,
        IN, SIDE, BATCH_STATS,
    )  # fmt: skip


@triton.jit
def finish_inner(
    sums, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, values, pixels, inputs, count,
    IN: tl.constexpr, SIDE: tl.constexpr, BATCH_STATS: tl.constexpr,
):  # fmt: skip
    """Write the gradient `sums` behind the ReLU that follows the norm of u_in, and what that norm's backward needs."""
    at, within = block(pixels, inputs, pixels < count, IN)
    own = tl.load(u_in + at, within, 0.0)
    alive = within & (normalised(own, state_in, inputs, IN) > 0)
    gradient = tl.where(alive, sums, 0.0).to(g_in.dtype.element_ty)
    tl.store(g_in + at, gradient, within)
    finish_backward(
        gradient.to(tl.float32), own, inputs, values, slots, counter, state_in, slopes_in, gradients_in, multiplier,
        IN, BATCH_STATS, ROUNDED=SIDE == 1,
    )  # fmt: skip


@triton.jit
def outer_gradient(
    g, u, state, slopes, weight, skip, alive, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter,
    multiplier, count, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, ADDS: tl.constexpr,
    MASK: tl.constexpr, SUMS: tl.constexpr, BATCH_STATS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """g_in: the gradient of the sum before the ReLU that made the block's input; at the start of a run, of x."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = transposed_product(
        g, u, None, state, slopes, weight, pixels, inputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, STRIDE, SIDE, "norm", PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    finish_outer(
        sums, skip, alive, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, pixels, inputs,
        count, IN, BLOCK_N, ADDS, MASK, SUMS, BATCH_STATS, SIDE == 1,
    )  # fmt: skip


@triton.jit
def finish_outer(
    sums, skip, alive, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, pixels, inputs, count,
    IN: tl.constexpr, BLOCK_N: tl.constexpr, ADDS: tl.constexpr, MASK: tl.constexpr, SUMS: tl.constexpr,
    BATCH_STATS: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """Write the gradient `sums`, the skip's beside it, behind the mask, and what the backward of a norm before needs.

    ADDS: the skip's gradient joins. MASK: "values" (alive is x), "bits" or "none". SUMS: a norm stands before.
    """
    gradient = masked_gradient(sums, skip, alive, g_in, pixels, inputs, count, IN, BLOCK_N, ADDS, MASK)
    if SUMS:
        at, within = block(pixels, inputs, pixels < count, IN)
        finish_backward(
            gradient.to(tl.float32), tl.load(u_in + at, within, 0.0), inputs, count, slots, counter, state_in,
            slopes_in, gradients_in, multiplier, IN, BATCH_STATS, ROUNDED,
        )  # fmt: skip


@triton.jit
def masked_gradient(
    sums, skip, alive, g_in, pixels, inputs, count, IN: tl.constexpr, BLOCK_N: tl.constexpr, ADDS: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """What `finish_outer` writes, as it is stored."""
    inside = pixels < count
    at, within = block(pixels, inputs, inside, IN)
    if ADDS:
        sums += tl.load(skip + at, within, 0.0).to(tl.float32)
    if MASK == "values":
        sums = tl.where(tl.load(alive + at, within, 0.0) > 0, sums, 0.0)
    if MASK == "bits":
        first = tl.program_id(1) * BLOCK_N
        sums = tl.where(load_bits(alive, pixels, first, inside, IN, BLOCK_N), sums, 0.0)
    gradient = sums.to(g_in.dtype.element_ty)
    tl.store(g_in + at, gradient, within)
    return gradient


@triton.jit
def arrive(
    g, skip, alive, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, count,
    IN: tl.constexpr, ADDS: tl.constexpr, MASK: tl.constexpr, SUMS: tl.constexpr, BATCH_STATS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """outer_gradient behind a convolution that is made: of the gradient that comes to a run, or of the vendor's."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    at, within = block(pixels, inputs, pixels < count, IN)
    finish_outer(
        tl.load(g + at, within, 0.0).to(tl.float32), skip, alive, u_in, g_in, state_in, slopes_in, gradients_in, slots,
        counter, multiplier, pixels, inputs, count, IN, BLOCK_N, ADDS, MASK, SUMS, BATCH_STATS, True,
    )  # fmt: skip
