"""What the convolutions share: the pixels of a program, the pixel that a tap reads, and one step of the product."""

from __future__ import annotations

import triton
import triton.language as tl

TAPS = tl.constexpr(9)


@triton.jit
def tile_pixels(BLOCK_M: tl.constexpr, WIDE: tl.constexpr):
    """The output pixels of this program; in int64 where an offset may exceed 2^31."""
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    return first * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def tile_channels(BLOCK_N: tl.constexpr):
    return tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def tap_of_output(pixels, count, tap, height, width, STRIDE: tl.constexpr):
    """The input pixel that tap 0..8 of output `pixels` reads, and whether it lies inside the image.

    `height` and `width` are those of the input; an output has ceil(side / STRIDE).
    """
    rows = (height + STRIDE - 1) // STRIDE
    columns = (width + STRIDE - 1) // STRIDE
    line = pixels // columns
    row = line % rows * STRIDE + tap // 3 - 1
    column = pixels % columns * STRIDE + tap % 3 - 1
    inside = (pixels < count) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (line // rows * height + row) * width + column, inside


@triton.jit
def tap_of_input(pixels, count, tap, height, width, STRIDE: tl.constexpr):
    """The output pixel that read input `pixels` by tap 0..8, and whether there is one."""
    rows = (height + STRIDE - 1) // STRIDE
    columns = (width + STRIDE - 1) // STRIDE
    line = pixels // width
    row = line % height - tap // 3 + 1
    column = pixels % width - tap % 3 + 1
    inside = (pixels < count) & (row >= 0) & (column >= 0) & (row % STRIDE == 0) & (column % STRIDE == 0)
    row = row // STRIDE
    column = column // STRIDE
    return (line // height * rows + row) * columns + column, inside & (row < rows) & (column < columns)


@triton.jit
def block(pixels, channels, inside, CHANNELS: tl.constexpr):
    """Offsets and mask of [pixels, channels] in a channels_last tensor."""
    return pixels[:, None] * CHANNELS + channels[None, :], inside[:, None] & (channels < CHANNELS)[None, :]


@triton.jit
def weight_tile(weight, outputs, inputs, tap, by_output, by_input, by_tap, OUT: tl.constexpr, IN: tl.constexpr):
    """weight[outputs, inputs, tap]; one of the two is a column and the other a row."""
    inside = (outputs < OUT) & (inputs < IN)
    return tl.load(weight + outputs * by_output + inputs * by_input + tap * by_tap, inside, 0.0)


@triton.jit
def multiply_add(sums, values, weights, STORED: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """sums + values weights: operands rounded to the STORED dtype, sums in float32.

    PRODUCT is STORED but in the interpreter, which cannot multiply bfloat16.
    """
    return tl.dot(values.to(STORED).to(PRODUCT), weights.to(STORED).to(PRODUCT), sums, input_precision=PRECISION)
