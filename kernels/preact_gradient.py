"""What the backward of pre-activation blocks has beside the data gradients of basic ones.

The backward of norm1 can end only when all of its sums are there, and only then joins the skip: so it stands in the
prologue of the next data gradient, which writes the gradient of the block's value for the others; at the end of a run
`depart` does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.data_gradient import finish_inner, transposed_product
from pathnet.kernels.entering import write_entering
from pathnet.kernels.tiles import tile_channels, tile_pixels


@triton.jit
def residual_gradient(
    g, u, skip, state, slopes, entered, weight, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter,
    multiplier, scale, count, height, width, by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, SIDE: tl.constexpr, ENTERS: tl.constexpr, BATCH_STATS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """entered: the gradient of skip + scale conv(relu(norm(u_in))); g_in: behind the norm, with its slopes."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    if ENTERS != "value":
        if tl.program_id(1) == 0:
            write_entering(g, u, skip, state, slopes, entered, pixels, count, OUT, ENTERS, BLOCK_K)
    sums = scale * transposed_product(
        g, u, skip, state, slopes, weight, pixels, inputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, 1, SIDE, ENTERS, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    finish_inner(
        sums, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, count, pixels, inputs, count,
        IN, SIDE, BATCH_STATS,
    )  # fmt: skip


@triton.jit
def depart(
    g, u, skip, state, slopes, entered, count, CHANNELS: tl.constexpr, ENTERS: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gradient that leaves a run."""
    write_entering(g, u, skip, state, slopes, entered, tile_pixels(BLOCK_M, WIDE), count, CHANNELS, ENTERS, BLOCK_K)
