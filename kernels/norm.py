"""Batch norm between convolutions: statistics and sums over thread blocks, and the numbers a channel that follow.

State of a norm, float32 [4, C]: mean, 1 / deviation, scale and shift, so that s (norm(u)) = scale u + shift with the
block's multiplier s inside. Its backward is scale g + b (u - mean) + c, with `slopes` [2, C] = b, c (Ioffe and Szegedy
2015, section 3, in the sums of g and of g xhat).
"""

from __future__ import annotations

import triton
import triton.language as tl

SLOTS_AT_ONCE = tl.constexpr(32)


@triton.jit
def normalised(u, state, channels, CHANNELS: tl.constexpr):
    """scale u + shift."""
    scale = vector_of(state, 2, channels, CHANNELS)
    return u.to(tl.float32) * scale + vector_of(state, 3, channels, CHANNELS)


@triton.jit
def norm_backward(g, u, state, slopes, channels, CHANNELS: tl.constexpr):
    """The gradient of u where g is that of s (norm(u)) / s: scale g + b (u - mean) + c."""
    apart = u.to(tl.float32) - vector_of(state, 0, channels, CHANNELS)
    scaled = g.to(tl.float32) * vector_of(state, 2, channels, CHANNELS)
    return scaled + apart * vector_of(slopes, 0, channels, CHANNELS) + vector_of(slopes, 1, channels, CHANNELS)


@triton.jit
def vector_of(table, ROW: tl.constexpr, channels, CHANNELS: tl.constexpr):
    """A row of a table [rows, C], for a tile [pixels, channels]."""
    return tl.load(table + ROW * CHANNELS + channels, channels < CHANNELS, 0.0)[None, :]


@triton.jit
def last_to_arrive(counter):
    """Whether this program is the last of its column of the grid; what the others stored before is then visible."""
    tl.debug_barrier()  # every thread of this program has stored
    arrived = tl.atomic_add(counter + tl.program_id(1), 1, sem="acq_rel", scope="gpu")
    last = arrived == tl.num_programs(0) - 1
    if last:
        tl.store(counter + tl.program_id(1), 0)
    return last


@triton.jit
def store_statistics(slots, u, valid, channels, CHANNELS: tl.constexpr):
    """This tile's mean and sum of squared deviations, into its slot: [2, tiles, C]."""
    tile, tiles, inside = tl.program_id(0), tl.num_programs(0), channels < CHANNELS
    count = tl.sum(valid.to(tl.float32), 0)
    mean = tl.sum(u, 0) / count  # rows that are not valid hold zeros
    apart = tl.where(valid[:, None], u - mean[None, :], 0.0)
    rest = tl.sum(apart, 0) / count  # what rounding left of the mean (corrected two-pass algorithm)
    squares = tl.sum(tl.fma(apart, apart, tl.zeros_like(apart)), 0) - count * rest * rest  # as in store_sums
    tl.store(slots + tile * CHANNELS + channels, mean + rest, inside)
    tl.store(slots + (tiles + tile) * CHANNELS + channels, squares, inside)


@triton.jit
def merge_statistics(slots, pixels, channels, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Mean and sum of squared deviations of all tiles, in the order of their index (Chan, Golub and LeVeque 1979)."""
    tiles, inside = tl.num_programs(0), (channels < CHANNELS)[None, :]
    pivot = tl.load(slots + channels, channels < CHANNELS, 0.0, cache_modifier=".cg")
    moved = tl.zeros_like(pivot)
    for first in range(0, tiles, SLOTS_AT_ONCE):
        tile = first + tl.arange(0, SLOTS_AT_ONCE)
        count = tl.minimum(pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)[:, None]
        at, within = slots + tile[:, None] * CHANNELS + channels[None, :], (tile < tiles)[:, None] & inside
        means = tl.load(at, within, 0.0, cache_modifier=".cg")
        moved += tl.sum(tl.where(within, (means - pivot[None, :]) * count, 0.0), 0)
    mean = pivot + moved / pixels
    squares = tl.zeros_like(pivot)
    for first in range(0, tiles, SLOTS_AT_ONCE):
        tile = first + tl.arange(0, SLOTS_AT_ONCE)
        count = tl.minimum(pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)[:, None]
        at, within = slots + tile[:, None] * CHANNELS + channels[None, :], (tile < tiles)[:, None] & inside
        apart = tl.load(at, within, 0.0, cache_modifier=".cg") - mean[None, :]
        own = tl.load(at + tiles * CHANNELS, within, 0.0, cache_modifier=".cg")
        squares += tl.sum(tl.where(within, own + count * apart * apart, 0.0), 0)
    return mean, squares


@triton.jit
def store_sums(slots, g, xhat, channels, CHANNELS: tl.constexpr, ROUNDED: tl.constexpr):
    """This tile's sums of g and of g xhat, into its slot: [2, tiles, C].

    A sum runs through several threads at once, which must come to equal bits. Where a thread may have one value of a
    channel, the product is ROUNDED before it is added: a compiler that fused the two would round each thread's own
    product otherwise than that of its partner. Behind a product of matrices over the four warps of a 3x3 convolution
    each thread has several, whose sum it hands on, and the rounded products would cost registers.
    """
    tile, tiles, inside = tl.program_id(0), tl.num_programs(0), channels < CHANNELS
    products = tl.fma(g, xhat, tl.zeros_like(g)) if ROUNDED else g * xhat
    tl.store(slots + tile * CHANNELS + channels, tl.sum(g, 0), inside)
    tl.store(slots + (tiles + tile) * CHANNELS + channels, tl.sum(products, 0), inside)


@triton.jit
def merge_sums(slots, channels, CHANNELS: tl.constexpr):
    """The sums of g and of g xhat of all tiles, in the order of their index."""
    tiles, inside = tl.num_programs(0), (channels < CHANNELS)[None, :]
    of_g = tl.zeros(channels.shape, tl.float32)
    of_products = tl.zeros(channels.shape, tl.float32)
    for first in range(0, tiles, SLOTS_AT_ONCE):
        tile = first + tl.arange(0, SLOTS_AT_ONCE)
        at, within = slots + tile[:, None] * CHANNELS + channels[None, :], (tile < tiles)[:, None] & inside
        of_g += tl.sum(tl.load(at, within, 0.0, cache_modifier=".cg"), 0)
        of_products += tl.sum(tl.load(at + tiles * CHANNELS, within, 0.0, cache_modifier=".cg"), 0)
    return of_g, of_products


@triton.jit
def _write_state(state, mean, deviation, weight, bias, multiplier, channels, CHANNELS: tl.constexpr):
    inside = channels < CHANNELS
    scale = multiplier * tl.load(weight + channels, inside, 0.0).to(tl.float32) / deviation
    shift = multiplier * tl.load(bias + channels, inside, 0.0).to(tl.float32) - mean * scale
    tl.store(state + channels, mean, inside)
    tl.store(state + CHANNELS + channels, 1.0 / deviation, inside)
    tl.store(state + 2 * CHANNELS + channels, scale, inside)
    tl.store(state + 3 * CHANNELS + channels, shift, inside)


@triton.jit
def finish_forward(
    u, valid, channels, pixels, slots, counter, weight, bias, running_mean, running_var, batches, state, multiplier,
    eps, momentum, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BATCH_STATS: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """The norm behind tile u [BLOCK_M, channels], float32: the last program writes `state` and moves the statistics."""
    inside = channels < CHANNELS
    if BATCH_STATS:
        store_statistics(slots, u, valid, channels, CHANNELS)
        if last_to_arrive(counter):
            mean, squares = merge_statistics(slots, pixels, channels, CHANNELS, BLOCK_M)
            deviation = tl.sqrt(squares / pixels + eps)
            _write_state(state, mean, deviation, weight, bias, multiplier, channels, CHANNELS)
            if MOVES:
                unbiased = squares / (pixels - 1)
                old_mean = tl.load(running_mean + channels, inside, 0.0).to(tl.float32)
                old_var = tl.load(running_var + channels, inside, 0.0).to(tl.float32)
                tl.store(running_mean + channels, old_mean + momentum * (mean - old_mean), inside)
                tl.store(running_var + channels, old_var + momentum * (unbiased - old_var), inside)
                if tl.program_id(1) == 0:
                    tl.store(batches, tl.load(batches) + 1)
    elif tl.program_id(0) == 0:
        mean = tl.load(running_mean + channels, inside, 0.0).to(tl.float32)
        deviation = tl.sqrt(tl.load(running_var + channels, inside, 1.0).to(tl.float32) + eps)
        _write_state(state, mean, deviation, weight, bias, multiplier, channels, CHANNELS)


@triton.jit
def finish_backward(
    g, u, channels, pixels, slots, counter, state, slopes, gradients, multiplier, CHANNELS: tl.constexpr,
    BATCH_STATS: tl.constexpr, ROUNDED: tl.constexpr = False,
):  # fmt: skip
    """The norm whose output has the gradient g [pixels, channels] times s: sums, then slopes and gradients [2, C]."""
    inside = channels < CHANNELS
    xhat = (u.to(tl.float32) - vector_of(state, 0, channels, CHANNELS)) * vector_of(state, 1, channels, CHANNELS)
    store_sums(slots, g, xhat, channels, CHANNELS, ROUNDED)
    if last_to_arrive(counter):
        of_g, of_products = merge_sums(slots, channels, CHANNELS)
        tl.store(gradients + channels, multiplier * of_products, inside)
        tl.store(gradients + CHANNELS + channels, multiplier * of_g, inside)
        if BATCH_STATS:
            inverse = tl.load(state + CHANNELS + channels, inside, 0.0)
            scale = tl.load(state + 2 * CHANNELS + channels, inside, 0.0) / pixels
            tl.store(slopes + channels, -scale * inverse * of_products, inside)
            tl.store(slopes + CHANNELS + channels, -scale * of_g, inside)
        else:
            tl.store(slopes + channels, tl.zeros_like(of_g), inside)
            tl.store(slopes + CHANNELS + channels, tl.zeros_like(of_g), inside)
