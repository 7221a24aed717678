"""Kernels at the ends of a block whose gates differ from image to image; what is between them has no gaps.

merge_rows: y = relu(scale u2 + shift + x) and its mask. arrive_rows: the gradient of the sum, with the sums of norm2.
outer_rows: the gradient of x. Of x, y and their gradients the listed images are read and written where they stand.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.bits import load_bits, store_bits
from pathnet.kernels.data_gradient import transposed_product
from pathnet.kernels.norm import finish_backward, normalised
from pathnet.kernels.tiles import block, rows_of, tile_channels, tile_pixels


@triton.jit
def masks_of(bits, masks, image, valid, size, CHANNELS: tl.constexpr):
    """Pointers [pixels, 1] to the masks of the listed images, and whether a mask is joined."""
    mask = tl.load(masks + image, valid, 0)
    joins = mask < 0
    away = (tl.where(joins, -1 - mask, mask) - image) * size * ((CHANNELS + 7) // 8)
    return (bits + away)[:, None], joins


@triton.jit
def merge_rows(
    u, state, x_in, rows, y_out, rows_out, bits, masks, count, size,
    CHANNELS: tl.constexpr, ALIGN: tl.constexpr, JOINS: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The listed rows of y_out = relu(scale u + shift + the listed rows of x), and which are positive."""
    pixels = tile_pixels(BLOCK_M, WIDE)
    inside, image = pixels < count, pixels // size
    x = rows_of(x_in, rows, image, inside, size * CHANNELS, ALIGN)
    y = rows_of(y_out, rows_out, image, inside, size * CHANNELS, ALIGN)
    own, joins = masks_of(bits, masks, image, inside, size, CHANNELS)
    for first in range(0, CHANNELS, BLOCK_K):
        channels = first + tl.arange(0, BLOCK_K)
        at, within = block(pixels, channels, inside, CHANNELS)
        value = normalised(tl.load(u + at, within, 0.0), state, channels, CHANNELS)
        value = tl.maximum(value + tl.load(x + at, within, 0.0).to(tl.float32), 0.0)
        tl.store(y + at, value, within)
        alive = value > 0
        if JOINS:
            alive &= load_bits(own, pixels, first, inside & joins, CHANNELS, BLOCK_K) | ~joins[:, None]
        store_bits(own, alive, pixels, first, inside, CHANNELS, BLOCK_K, False)


@triton.jit
def arrive_rows(
    g, rows, bits, masks, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, count, size,
    values,
    IN: tl.constexpr, ALIGN: tl.constexpr, BATCH_STATS: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """g_in: the listed rows of g behind their masks, with the sums of the norm whose statistics are of `values`."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    inside, image = pixels < count, pixels // size
    at, within = block(pixels, inputs, inside, IN)
    listed = rows_of(g, rows, image, inside, size * IN, ALIGN)
    own, _ = masks_of(bits, masks, image, inside, size, IN)
    alive = load_bits(own, pixels, tl.program_id(1) * BLOCK_N, inside, IN, BLOCK_N)
    gradient = tl.where(alive & within, tl.load(listed + at, within, 0.0).to(tl.float32), 0.0)
    tl.store(g_in + at, gradient, within)
    finish_backward(
        gradient, tl.load(u_in + at, within, 0.0), inputs, values, slots, counter, state_in, slopes_in, gradients_in,
        multiplier, IN, BATCH_STATS, ROUNDED=True,
    )  # fmt: skip


@triton.jit
def outer_rows(
    g, u, state, slopes, weight, skip, g_in, rows_in, count, skipped, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, ALIGN: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The listed rows of g_in: conv1^T(norm1 backward of g), and of the pixels before `skipped` the skip's gradient."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = transposed_product(
        g, u, None, state, slopes, weight, pixels, inputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, 1, 3, "norm", PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    inside, size = pixels < count, height * width
    at, within = block(pixels, inputs, inside, IN)
    sums += tl.load(skip + at, within & (pixels < skipped)[:, None], 0.0).to(tl.float32)
    listed = rows_of(g_in, rows_in, pixels // size, inside, size * IN, ALIGN)
    tl.store(listed + at, sums.to(skip.dtype.element_ty), within)


@triton.jit
def mask_rows(
    g, rows, bits, masks, g_in, rows_in, count, size,
    CHANNELS: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The listed rows of g_in: those of g behind their masks. So ends an image that begins with FORWARD blocks."""
    pixels = tile_pixels(BLOCK_M, WIDE)
    inside, image = pixels < count, pixels // size
    from_rows = rows_of(g, rows, image, inside, size * CHANNELS, ALIGN)
    to_rows = rows_of(g_in, rows_in, image, inside, size * CHANNELS, ALIGN)
    own, _ = masks_of(bits, masks, image, inside, size, CHANNELS)
    for first in range(0, CHANNELS, BLOCK_K):
        at, within = block(pixels, first + tl.arange(0, BLOCK_K), inside, CHANNELS)
        alive = load_bits(own, pixels, first, inside, CHANNELS, BLOCK_K)
        tl.store(to_rows + at, tl.where(alive, tl.load(from_rows + at, within, 0.0), 0.0), within)
