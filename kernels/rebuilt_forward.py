"""The forward where nobody stores what the last convolution of a bottleneck gives (kernels/rebuilt.py).

Its own launch forms the statistics alone. The next block's first convolution rebuilds it where it makes its input, and
so does what makes the value that a run puts out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.bits import store_bits
from pathnet.kernels.norm import finish_forward, normalised
from pathnet.kernels.rebuilt import expanding, inner_tile, rebuilt
from pathnet.kernels.tiles import block, multiply_add, tile_channels, tile_pixels, weight_tile


@triton.jit
def conv_statistics(
    u_in, state_in, weight, slots, counter, norm_weight, norm_bias, running_mean, running_var, batches, state_out,
    multiplier, eps, momentum, count, by_output, by_input,
    IN: tl.constexpr, OUT: tl.constexpr, STORED: tl.constexpr, BATCH_STATS: tl.constexpr, MOVES: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """state_out: the norm behind conv(relu(norm(u_in))); with running statistics nothing is multiplied."""
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    inside = pixels < count
    u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BATCH_STATS:
        values = inner_tile(u_in, state_in, pixels, inside, IN, STORED, PRODUCT, BLOCK_C)
        weights = expanding(weight, outputs, by_output, by_input, IN, OUT, STORED, PRODUCT, BLOCK_C)
        u = rebuilt(values, weights, STORED, PRODUCT, PRECISION)
    finish_forward(
        u, inside, outputs, count, slots, counter, norm_weight, norm_bias, running_mean, running_var, batches,
        state_out, multiplier, eps, momentum, OUT, BLOCK_M, BATCH_STATS, MOVES,
    )  # fmt: skip


@triton.jit
def _merged(
    values, x, state, expansion, merged, bits, pixels, inside, first, by_output, by_input,
    INNER: tl.constexpr, CHANNELS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    BITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """relu(scale u + shift + x) of the channels from `first` on, u rebuilt; it is written, and its mask with BITS."""
    STORED: tl.constexpr = merged.dtype.element_ty
    channels = first + tl.arange(0, BLOCK_K)
    weights = expanding(expansion, channels, by_output, by_input, INNER, CHANNELS, STORED, PRODUCT, BLOCK_C)
    at, within = block(pixels, channels, inside, CHANNELS)
    u = rebuilt(values, weights, STORED, PRODUCT, PRECISION)
    value = normalised(u, state, channels, CHANNELS) + tl.load(x + at, within, 0.0).to(tl.float32)
    value = tl.where(within, tl.maximum(value, 0.0), 0.0)
    tl.store(merged + at, value, within)
    if BITS != "none":
        store_bits(bits, value > 0, pixels, first, inside, CHANNELS, BLOCK_K, BITS == "join")
    return value


@triton.jit
def conv_of_rebuilt(
    u_in, inner_state, expansion, x_in, state_in, merged, bits, weight, u_out, slots, counter, norm_weight, norm_bias,
    running_mean, running_var, batches, state_out, multiplier, eps, momentum, count, by_output, by_input,
    expansion_by_output, expansion_by_input,
    INNER: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, BITS: tl.constexpr, BATCH_STATS: tl.constexpr,
    MOVES: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """conv_forward that merges, its u rebuilt; one program makes all outputs, so that each u is rebuilt once."""
    STORED: tl.constexpr = u_out.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tl.arange(0, BLOCK_N)
    inside = pixels < count
    values = inner_tile(u_in, inner_state, pixels, inside, INNER, STORED, PRODUCT, BLOCK_C)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, IN, BLOCK_K):
        value = _merged(
            values, x_in, state_in, expansion, merged, bits, pixels, inside, first, expansion_by_output,
            expansion_by_input, INNER, IN, PRODUCT, PRECISION, BITS, BLOCK_C, BLOCK_K,
        )  # fmt: skip
        inputs = first + tl.arange(0, BLOCK_K)
        weights = weight_tile(weight, outputs[None, :], inputs[:, None], 0, by_output, by_input, 0, OUT, IN)
        sums = multiply_add(sums, value, weights, STORED, PRODUCT, PRECISION)
    at, within = block(pixels, outputs, inside, OUT)
    stored = sums.to(STORED)
    tl.store(u_out + at, stored, within)
    finish_forward(
        stored.to(tl.float32), inside, outputs, count, slots, counter, norm_weight, norm_bias, running_mean,
        running_var, batches, state_out, multiplier, eps, momentum, OUT, BLOCK_M, BATCH_STATS, MOVES,
    )  # fmt: skip


@triton.jit
def merge_rebuilt(
    u_in, inner_state, expansion, x, state, merged, bits, count, expansion_by_output, expansion_by_input,
    INNER: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`merge`, its u rebuilt."""
    pixels = tile_pixels(BLOCK_M, WIDE)
    inside = pixels < count
    values = inner_tile(u_in, inner_state, pixels, inside, INNER, merged.dtype.element_ty, PRODUCT, BLOCK_C)
    for first in range(0, CHANNELS, BLOCK_K):
        _merged(
            values, x, state, expansion, merged, bits, pixels, inside, first, expansion_by_output, expansion_by_input,
            INNER, CHANNELS, PRODUCT, PRECISION, BITS, BLOCK_C, BLOCK_K,
        )  # fmt: skip
