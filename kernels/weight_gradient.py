"""Gradients of the convolutions' weights: partial sums over pixels in slots, and one launch that adds all slots."""

from __future__ import annotations

import triton
import triton.language as tl

from pathnet.kernels.conv_forward import convolved
from pathnet.kernels.entering import entering
from pathnet.kernels.tiles import block, multiply_add, places, rows_of, tap_of_output


@triton.jit
def _tap_product(
    sums, gradient, u_in, x_in, state_in, image, row, column, valid, tap, inputs, height, width,
    IN: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, PROLOGUE: tl.constexpr, STORED: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums + the input that `tap` reads, transposed, times the gradient."""
    source, inside = tap_of_output(image, row, column, valid, tap, height, width, STRIDE, SIDE)
    at, within = block(source, inputs, inside, IN)
    values = convolved(u_in, x_in, state_in, at, within, inputs, IN, PROLOGUE)
    return multiply_add(sums, tl.trans(values.to(STORED)), gradient, STORED, PRODUCT, PRECISION)


@triton.jit
def weight_gradient(
    g, u, state, slopes, u_in, x_in, rows, state_in, partial, scale, slot_size, pixels_of_slot, count, height, width,
    by_output, by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, ENTERS: tl.constexpr,
    PROLOGUE: tl.constexpr, ALIGN: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """partial[slot]: scale times the sum over its pixels of input times entering gradient, for the taps of a row.

    PROLOGUE "rows": images of x stand where a table says.
    """
    STORED: tl.constexpr = g.dtype.element_ty
    TILES_O: tl.constexpr = (OUT + BLOCK_O - 1) // BLOCK_O
    tap, tile, slot = tl.program_id(1) % SIDE * SIDE, tl.program_id(1) // SIDE, tl.program_id(0)
    inputs = tile // TILES_O * BLOCK_I + tl.arange(0, BLOCK_I)
    outputs = tile % TILES_O * BLOCK_O + tl.arange(0, BLOCK_O)
    if WIDE:
        slot = slot.to(tl.int64)
    first = slot * pixels_of_slot
    end = tl.minimum(first + pixels_of_slot, count)
    left = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    middle = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    right = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    for start in range(0, pixels_of_slot, BLOCK_P):
        pixels = first + start + tl.arange(0, BLOCK_P)
        valid = pixels < end
        at, within = block(pixels, outputs, valid, OUT)
        gradient = entering(g, u, None, state, slopes, at, within, outputs, OUT, ENTERS)
        image, row, column = places(pixels, (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
        x = x_in
        if PROLOGUE == "rows":
            x = rows_of(x_in, rows, image, valid, height * width * IN, ALIGN)
        left = _tap_product(
            left, gradient, u_in, x, state_in, image, row, column, valid, tap, inputs, height, width,
            IN, STRIDE, SIDE, PROLOGUE, STORED, PRODUCT, PRECISION,
        )  # fmt: skip
        if SIDE == 3:
            middle = _tap_product(
                middle, gradient, u_in, x, state_in, image, row, column, valid, tap + 1, inputs, height, width,
                IN, STRIDE, SIDE, PROLOGUE, STORED, PRODUCT, PRECISION,
            )  # fmt: skip
            right = _tap_product(
                right, gradient, u_in, x, state_in, image, row, column, valid, tap + 2, inputs, height, width,
                IN, STRIDE, SIDE, PROLOGUE, STORED, PRODUCT, PRECISION,
            )  # fmt: skip
    at = partial + slot * slot_size + inputs[:, None] * by_input + outputs[None, :] * by_output + tap * by_tap
    inside = (inputs < IN)[:, None] & (outputs < OUT)[None, :]
    tl.store(at, scale * left, inside)
    if SIDE == 3:
        tl.store(at + by_tap, scale * middle, inside)
        tl.store(at + 2 * by_tap, scale * right, inside)


@triton.jit
def sum_slots(partial, total, slots, slot_size, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The weight gradients of all convolutions of a run: their slots, added in the order of their index."""
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        entries = entries.to(tl.int64)
    inside = entries < slot_size
    sums = tl.zeros((BLOCK,), tl.float32)
    for _ in range(slots):
        sums += tl.load(partial + entries, inside, 0.0)
        partial += slot_size
    tl.store(total + entries, sums, inside)
