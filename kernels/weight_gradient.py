"""Gradients of the convolutions' weights: partial sums over pixels in slots, and one launch that adds all slots."""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.conv_forward import convolved
from pathnet.kernels.norm import norm_backward
from pathnet.kernels.tiles import TAPS, block, multiply_add, tap_of_output


@triton.jit
def weight_gradient(
    g, u, state, slopes, u_in, x_in, state_in, partial, slot_size, pixels_of_slot, count, height, width, by_output,
    by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, PROLOGUE: tl.constexpr, PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """partial[slot]: sum over the slot's pixels of input times norm backward of g, for one tap, [BLOCK_I, BLOCK_O]."""
    STORED: tl.constexpr = g.dtype.element_ty
    tap = tl.program_id(1) % TAPS
    tile = tl.program_id(1) // TAPS
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    inputs = tile // TILES_O * BLOCK_I + tl.arange(0, BLOCK_I)
    outputs = tile % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    slot = tl.program_id(0)
    if WIDE:
        slot = slot.to(tl.int64)
    first = slot * pixels_of_slot
    end = tl.minimum(first + pixels_of_slot, count)
    sums = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    for start in range(0, pixels_of_slot, BLOCK_P):
        pixels = first + start + tl.arange(0, BLOCK_P)
        at, within = block(pixels, outputs, pixels < end, OUT)
        gradient, value = tl.load(g + at, within, 0.0), tl.load(u + at, within, 0.0)
        gradient = tl.where(within, norm_backward(gradient, value, state, slopes, outputs, OUT), 0.0)
        source, inside = tap_of_output(pixels, end, tap, height, width, STRIDE)
        at, within = block(source, inputs, inside, IN)
        values = convolved(u_in, x_in, state_in, at, within, inputs, IN, PROLOGUE)
        sums = multiply_add(sums, tl.trans(values.to(STORED)), gradient, STORED, PRODUCT, PRECISION)
    at = slot * slot_size + inputs[:, None] * by_input + outputs[None, :] * by_output + tap * by_tap
    tl.store(partial + at, sums, (inputs < IN)[:, None] & (outputs < OUT)[None, :])


@triton.jit
def sum_slots(partial, total, slots, slot_size, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The weight gradients of all convolutions of a run: their slots, added in the order of their index."""
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        entries = entries.to(tl.int64)
    inside = entries < slot_size
    sums = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        sums += tl.load(partial + entries + slot * slot_size, inside, 0.0)
    tl.store(total + entries, sums, inside)
