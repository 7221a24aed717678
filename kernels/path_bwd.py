"""A gradient back along one path: a launch a convolution, with the mask behind it, for several gradients at once.

A launch reads k T and the mask, and writes k T, for k gradients of T each that share the masks; the first masks what it
reads too. Statistics that run make each batch norm a factor, which stands in the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import conv_arguments, product, wide
from pathnet.kernels.settings import STREAM_PIXELS, WARPS, conv_tile
from pathnet.kernels.tiles import (
    block,
    multiply_add,
    places,
    tap_of_output,
    tile_channels,
    tile_pixels,
    weight_tile,
)
from pathnet.kernels.traffic import Geometry, requested

WORD = tl.constexpr(16)  # channels of a word of bits


@triton.jit
def open_at(words, pixels, channels, within, images, size, CHANNELS: tl.constexpr):
    """Where the mask int16 [images, ceil(C / 16), size] lets pass; gradient k of an image has the image's mask."""
    image, place = pixels // size % images, pixels % size
    WORDS: tl.constexpr = (CHANNELS + 15) // 16
    at = (image[:, None] * WORDS + channels[None, :] // WORD) * size + place[:, None]
    word = tl.load(words + at, within, 0).to(tl.int32)
    return within & ((word >> channels[None, :] % WORD & 1) != 0)


@triton.jit
def path_conv(
    g, before, weight, behind, g_out, images, height, width, by_output, by_input, by_tap, count,
    CHANNELS: tl.constexpr, FIRST: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """g_out = behind conv3x3(g), and FIRST: of before g."""
    STORED: tl.constexpr = g.dtype.element_ty
    CHUNKS: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    valid, size = pixels < count, height * width
    image, row, column = places(pixels, height, width)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(9 * CHUNKS):
        tap = step // CHUNKS
        inputs = step % CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
        source, inside = tap_of_output(image, row, column, valid, tap, height, width, 1, 3)
        at, within = block(source, inputs, inside, CHANNELS)
        if FIRST:
            within = open_at(before, source, inputs, within, images, size, CHANNELS)
        values = tl.load(g + at, within, 0.0)
        weights = weight_tile(
            weight, outputs[None, :], inputs[:, None], tap, by_output, by_input, by_tap, CHANNELS, CHANNELS
        )  # fmt: skip
        sums = multiply_add(sums, values, weights, STORED, PRODUCT, PRECISION)
    at, within = block(pixels, outputs, valid, CHANNELS)
    alive = open_at(behind, pixels, outputs, within, images, size, CHANNELS)
    tl.store(g_out + at, tl.where(alive, sums, 0.0).to(STORED), within)


@triton.jit
def path_mask(
    g, mask, g_out, images, size, count,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """g_out = mask g: a path that goes around every branch."""
    pixels, channels = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    at, within = block(pixels, channels, pixels < count, CHANNELS)
    alive = open_at(mask, pixels, channels, within, images, size, CHANNELS)
    tl.store(g_out + at, tl.load(g + at, alive, 0.0), within)


def path_bwd(gradient: Tensor, weights: Sequence[Tensor], masks: Sequence[Tensor], precision: str) -> Tensor:
    """g <- m_0 g, then g <- m_i (w_i * g); gradient [k N, C, H, W] in channels_last, masks of N images."""
    if not weights:
        g = torch.empty_like(gradient)
        run(_mask_pass(gradient, masks[0], g))
        return g
    buffers = [torch.empty_like(gradient) for _ in weights[:2]]
    for index, (weight, mask) in enumerate(zip(weights, masks[1:], strict=True)):
        g = buffers[index % 2]
        run(_conv_pass(gradient, None if index else masks[0], weight, mask, g, precision))
        gradient = g
    return gradient


def _conv_pass(
    g: Tensor, before: Tensor | None, weight: Tensor, behind: Tensor, g_out: Tensor, precision: str
) -> Launch:  # fmt: skip
    n, channels, height, width = g.shape
    shape, tile = Geometry(n, height, width, channels, channels, 1), conv_tile(channels, channels, g.dtype, precision)
    grid = triton.cdiv(shape.pixels_out, tile.m), triton.cdiv(channels, tile.n)
    arguments = {
        "g": g, "before": before, "weight": weight, "behind": behind, "g_out": g_out, "images": len(behind),
        **conv_arguments(shape, weight), "count": shape.pixels_out,
    }  # fmt: skip
    constants = {
        "CHANNELS": channels, "FIRST": before is not None, **product(g.dtype, precision), "WIDE": wide(g),
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    taps = shape.pairs * channels * grid[1]
    reads = requested(arguments, g=taps, before=taps, weight=shape.weights * grid[0], behind=g.numel())
    writes = requested(arguments, "g_out")
    return Launch("path", path_conv, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def _mask_pass(g: Tensor, mask: Tensor, g_out: Tensor) -> Launch:
    n, channels, height, width = g.shape
    count, columns = n * height * width, min(64, max(16, triton.next_power_of_2(channels)))
    arguments = {
        "g": g, "mask": mask, "g_out": g_out, "images": len(mask), "size": height * width, "count": count,
    }  # fmt: skip
    constants = {"CHANNELS": channels, "WIDE": wide(g), "BLOCK_M": STREAM_PIXELS, "BLOCK_N": columns}
    grid = triton.cdiv(count, STREAM_PIXELS), triton.cdiv(channels, columns)
    reads, writes = requested(arguments, "g", mask=g.numel()), requested(arguments, "g_out")
    return Launch("path mask", path_mask, grid, arguments, constants, WARPS, 1, reads, writes)
