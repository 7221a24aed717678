"""A convolution made anew in the backward, so that nobody keeps what it gave: one block's at a time.

The statistics behind it are those that the forward kept, and no running statistics move.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.block_run import empty
from pathnet.kernels.conv_forward import product as conv_product
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import Source, conv_arguments, product, wide
from pathnet.kernels.separate import activated
from pathnet.kernels.settings import conv_tile
from pathnet.kernels.tiles import block, tile_channels, tile_pixels
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.vendor import vendor_convolution


@triton.jit
def conv_again(
    u_in, state_in, weight, u_out, height, width, by_output, by_input, by_tap, count,
    IN: tl.constexpr, OUT: tl.constexpr, SIDE: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """u_out = conv(relu(norm(u_in))), to the bit what `conv_forward` gave."""
    STORED: tl.constexpr = u_out.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    sums = conv_product(
        u_in, None, state_in, weight, pixels, outputs, count, height, width, by_output, by_input, by_tap,
        IN, OUT, 1, SIDE, "norm", STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at, within = block(pixels, outputs, pixels < count, OUT)
    tl.store(u_out + at, sums.to(STORED), within)


def again_pass(name: str, geometry: Geometry, source: Source, weight: Tensor, u: Tensor, precision: str) -> Launch:
    """u = conv(relu(norm(source.u))), by the tiles of `forward_pass`."""
    g, tile = geometry, conv_tile(geometry.inputs, geometry.outputs, u.dtype, precision, geometry.side)
    tiles, columns = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    arguments = {
        "u_in": source.u, "state_in": source.state, "weight": weight, "u_out": u, **conv_arguments(g, weight),
        "count": g.pixels_out,
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "SIDE": g.side, **product(u.dtype, precision), "WIDE": wide(u, source.u),
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    reads = requested(arguments, "state_in", u_in=g.pairs * g.inputs * columns, weight=g.weights * tiles)
    writes = requested(arguments, "u_out")
    grid = (tiles, columns)
    return Launch(name, conv_again, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def forward_again(
    number: int, geometry: Geometry, source: Source, weight: Tensor, vendor: bool, precision: str
) -> Tensor:
    """What convolution `number` of a block, counted from 1 and of stride 1, gave of source.u through its norm."""
    name = f"forward conv{number} again"
    if vendor:
        return vendor_convolution(name, geometry, activated(number, source), weight)
    assert source.u is not None
    u = empty(source.u, geometry)
    run(again_pass(name, geometry, source, weight, u, precision))
    return u
