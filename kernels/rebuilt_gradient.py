"""The backward where nobody stores what the last convolution of a bottleneck gave (kernels/rebuilt.py).

Its own gradients rebuild it where they make the gradient that enters, and what forms the sums of the norm behind it
rebuilds it for these.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.data_gradient import finish_inner, masked_gradient, transposed_product
from pathnet.kernels.norm import finish_backward, norm_backward
from pathnet.kernels.rebuilt import expanding, inner_tile, rebuilt
from pathnet.kernels.tiles import block, multiply_add, tile_channels, tile_pixels


@triton.jit
def _entering(
    values, weights, g, state, slopes, pixels, inside, outputs, OUT: tl.constexpr, STORED: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of what values times weights is, where g stands behind its norm."""
    u = rebuilt(values, weights, STORED, PRODUCT, PRECISION)
    at, within = block(pixels, outputs, inside, OUT)
    gradient = norm_backward(tl.load(g + at, within, 0.0), u, state, slopes, outputs, OUT)
    return tl.where(within, gradient, 0.0)


@triton.jit
def inner_of_rebuilt(
    g, state, slopes, weight, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, values, count,
    by_output, by_input,
    IN: tl.constexpr, OUT: tl.constexpr, BATCH_STATS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """inner_gradient of a convolution whose output is rebuilt; the weights serve both products."""
    STORED: tl.constexpr = g.dtype.element_ty
    pixels = tile_pixels(BLOCK_M, WIDE)
    inside = pixels < count
    own = inner_tile(u_in, state_in, pixels, inside, IN, STORED, PRODUCT, BLOCK_C)
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for first in range(0, OUT, BLOCK_K):
        outputs = first + tl.arange(0, BLOCK_K)
        weights = expanding(weight, outputs, by_output, by_input, IN, OUT, STORED, PRODUCT, BLOCK_C)
        gradient = _entering(own, weights, g, state, slopes, pixels, inside, outputs, OUT, STORED, PRODUCT, PRECISION)
        sums = multiply_add(sums, gradient, tl.trans(weights), STORED, PRODUCT, PRECISION)
    finish_inner(
        sums, u_in, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, values, pixels,
        tl.arange(0, BLOCK_C), count, IN, 1, BATCH_STATS,
    )  # fmt: skip


@triton.jit
def weight_gradient_of_rebuilt(
    g, state, slopes, weight, u_in, state_in, partial, scale, slot_size, pixels_of_slot, count, by_output, by_input,
    IN: tl.constexpr, OUT: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """weight_gradient of such a convolution: a program takes all its inputs, so that each u is rebuilt once."""
    STORED: tl.constexpr = g.dtype.element_ty
    slot = tl.program_id(0)
    if WIDE:
        slot = slot.to(tl.int64)
    inputs, outputs = tl.arange(0, BLOCK_C), tile_channels(BLOCK_O)
    weights = expanding(weight, outputs, by_output, by_input, IN, OUT, STORED, PRODUCT, BLOCK_C)
    first = slot * pixels_of_slot
    end = tl.minimum(first + pixels_of_slot, count)
    sums = tl.zeros((BLOCK_C, BLOCK_O), tl.float32)
    for start in range(0, pixels_of_slot, BLOCK_P):
        pixels = first + start + tl.arange(0, BLOCK_P)
        inside = pixels < end
        own = inner_tile(u_in, state_in, pixels, inside, IN, STORED, PRODUCT, BLOCK_C)
        gradient = _entering(own, weights, g, state, slopes, pixels, inside, outputs, OUT, STORED, PRODUCT, PRECISION)
        sums = multiply_add(sums, tl.trans(own), gradient, STORED, PRODUCT, PRECISION)
    at = partial + slot * slot_size + inputs[:, None] * by_input + outputs[None, :] * by_output
    tl.store(at, scale * sums, (inputs < IN)[:, None] & (outputs < OUT)[None, :])


@triton.jit
def _finish(
    sums, skip, alive, u_in, inner_state, expansion, g_in, state_in, slopes_in, gradients_in, slots, counter,
    multiplier, pixels, count, expansion_by_output, expansion_by_input,
    INNER: tl.constexpr, IN: tl.constexpr, ADDS: tl.constexpr, MASK: tl.constexpr, BATCH_STATS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """finish_outer, where the norm before is that of what is rebuilt."""
    STORED: tl.constexpr = g_in.dtype.element_ty
    inputs = tile_channels(BLOCK_N)
    gradient = masked_gradient(sums, skip, alive, g_in, pixels, inputs, count, IN, BLOCK_N, ADDS, MASK)
    values = inner_tile(u_in, inner_state, pixels, pixels < count, INNER, STORED, PRODUCT, BLOCK_C)
    weights = expanding(expansion, inputs, expansion_by_output, expansion_by_input, INNER, IN, STORED, PRODUCT, BLOCK_C)
    u = rebuilt(values, weights, STORED, PRODUCT, PRECISION)
    finish_backward(
        gradient.to(tl.float32), u, inputs, count, slots, counter, state_in, slopes_in, gradients_in, multiplier, IN,
        BATCH_STATS, ROUNDED=True,
    )  # fmt: skip


@triton.jit
def outer_to_rebuilt(
    g, u, state, slopes, weight, skip, alive, u_in, inner_state, expansion, g_in, state_in, slopes_in, gradients_in,
    slots, counter, multiplier, count, by_output, by_input, expansion_by_output, expansion_by_input,
    INNER: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, ADDS: tl.constexpr, MASK: tl.constexpr,
    BATCH_STATS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """outer_gradient where the block before has a norm of what is rebuilt."""
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = transposed_product(
        g, u, None, state, slopes, weight, pixels, inputs, count, 1, count, by_output, by_input, 0,
        IN, OUT, 1, 1, "norm", PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    _finish(
        sums, skip, alive, u_in, inner_state, expansion, g_in, state_in, slopes_in, gradients_in, slots, counter,
        multiplier, pixels, count, expansion_by_output, expansion_by_input, INNER, IN, ADDS, MASK, BATCH_STATS,
        PRODUCT, PRECISION, BLOCK_N, BLOCK_C,
    )  # fmt: skip


@triton.jit
def arrive_at_rebuilt(
    g, alive, u_in, inner_state, expansion, g_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, count,
    expansion_by_output, expansion_by_input,
    INNER: tl.constexpr, IN: tl.constexpr, BATCH_STATS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`arrive` where the last norm is that of what is rebuilt."""
    pixels = tile_pixels(BLOCK_M, WIDE)
    at, within = block(pixels, tile_channels(BLOCK_N), pixels < count, IN)
    sums = tl.load(g + at, within, 0.0).to(tl.float32)
    _finish(
        sums, None, alive, u_in, inner_state, expansion, g_in, state_in, slopes_in, gradients_in, slots, counter,
        multiplier, pixels, count, expansion_by_output, expansion_by_input, INNER, IN, False, "bits", BATCH_STATS,
        PRODUCT, PRECISION, BLOCK_N, BLOCK_C,
    )  # fmt: skip
