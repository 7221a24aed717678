"""What the convolutions share: the pixels of a program, the pixel that a tap reads, and one step of the product."""

from __future__ import annotations

import triton
import triton.language as tl


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
def places(pixels, height, width):
    """Image, row and column of each pixel."""
    line = pixels // width
    return line // height, line % height, pixels % width


@triton.jit
def tap_of_output(image, row, column, valid, tap, height, width, STRIDE: tl.constexpr, SIDE: tl.constexpr):
    """The pixel of an input [height, width] that a tap of an output reads, and whether it lies inside the image.

    The kernel has SIDE x SIDE taps, padding SIDE // 2.
    """
    row = row * STRIDE + tap // SIDE - SIDE // 2
    column = column * STRIDE + tap % SIDE - SIDE // 2
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (image * height + row) * width + column, inside


@triton.jit
def tap_of_input(image, row, column, valid, tap, height, width, STRIDE: tl.constexpr, SIDE: tl.constexpr):
    """The pixel of an output [height, width] that read an input by this tap, and whether there is one."""
    row = row - tap // SIDE + SIDE // 2
    column = column - tap % SIDE + SIDE // 2
    inside = valid & (row >= 0) & (column >= 0)
    if STRIDE > 1:
        inside &= (row % STRIDE == 0) & (column % STRIDE == 0)
        row = row // STRIDE
        column = column // STRIDE
    return (image * height + row) * width + column, inside & (row < height) & (column < width)


@triton.jit
def block(pixels, channels, inside, CHANNELS: tl.constexpr):
    """Offsets and mask of [pixels, channels] in a channels_last tensor."""
    return pixels[:, None] * CHANNELS + channels[None, :], inside[:, None] & (channels < CHANNELS)[None, :]


@triton.jit
def rows_of(start, table, image, valid, size, ALIGN: tl.constexpr):
    """Pointers [pixels, 1] that an offset into a tensor of the listed images moves to where these stand.

    `table` says how many elements behind `start` each image stands, multiples of ALIGN; an image has `size` elements.
    """
    away = tl.load(table + image, valid, 0) - image.to(tl.int64) * size
    return (start + tl.multiple_of(away, [ALIGN]))[:, None]


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
