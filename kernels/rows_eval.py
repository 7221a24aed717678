"""A run of basic blocks in evaluation whose gates differ from image to image: no block touches the images that skip it.

Block i runs the images of a list. The first block of an image reads it from x, and each leaves its value in y, over
the one that it read: conv2 reads of the stream no pixel but its own. What runs no block is copied in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.block_run import empty
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import conv_arguments, product, wide
from pathnet.kernels.rows import Listed, Table, copy_pass, reads_rows, tables, writes_rows
from pathnet.kernels.settings import ConvTile, conv_tile
from pathnet.kernels.stage_eval import EvalNorm, folded_conv
from pathnet.kernels.tiles import block, rows_of, tile_channels, tile_pixels
from pathnet.kernels.traffic import Geometry, requested


@triton.jit
def conv1_of_rows(
    x, rows, weight, inner, height, width, by_output, by_input, by_tap, norm_weight, norm_bias, mean, var, eps,
    multiplier, count,
    IN: tl.constexpr, OUT: tl.constexpr, ALIGN: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """inner = relu(norm(conv3x3(the listed rows of x and y)))."""
    STORED: tl.constexpr = inner.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    valid, size = pixels < count, height * width
    listed = rows_of(x, rows, pixels // size, valid, size * IN, ALIGN)
    value = folded_conv(
        listed, weight, norm_weight, norm_bias, mean, var, eps, multiplier, pixels, outputs, valid, height, width,
        by_output, by_input, by_tap, IN, OUT, 1, 3, STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at, within = block(pixels, outputs, valid, OUT)
    tl.store(inner + at, tl.maximum(value, 0.0).to(STORED), within)


@triton.jit
def conv2_of_rows(
    x, rows, y_out, rows_out, weight, inner, height, width, by_output, by_input, by_tap, norm_weight, norm_bias,
    mean, var, eps, multiplier, count,
    IN: tl.constexpr, OUT: tl.constexpr, ALIGN: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The listed rows of y_out = relu(multiplier norm(conv3x3(inner)) + the listed rows of x and y); y_out is y."""
    STORED: tl.constexpr = inner.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    valid, size = pixels < count, height * width
    value = folded_conv(
        inner, weight, norm_weight, norm_bias, mean, var, eps, multiplier, pixels, outputs, valid, height, width,
        by_output, by_input, by_tap, IN, OUT, 1, 3, STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at, within = block(pixels, outputs, valid, OUT)
    listed = rows_of(x, rows, pixels // size, valid, size * OUT, ALIGN)
    value += tl.load(listed + at, within, 0.0).to(tl.float32)
    listed = rows_of(y_out, rows_out, pixels // size, valid, size * OUT, ALIGN)
    tl.store(listed + at, tl.maximum(value, 0.0).to(STORED), within)


def rows_eval(
    x: Tensor, gates: Tensor, weights: Sequence[Tensor], norms: Sequence[EvalNorm], precision: str
) -> Tensor:  # fmt: skip
    """x, channels_last, through blocks of gates [N, blocks], on the host, each of which runs at least one image."""
    y = torch.empty_like(x)
    *listed, untouched = _tables((gates != Gate.OFF).numpy(), x, y)
    for index, (sources, targets) in enumerate(zip(listed[::2], listed[1::2], strict=True)):
        first, second = weights[2 * index : 2 * index + 2]
        one = Geometry(sources.images, x.shape[2], x.shape[3], first.shape[1], first.shape[0], 1)
        two = one._replace(inputs=second.shape[1], outputs=second.shape[0])
        inner = empty(x, one)
        run(_conv1_pass(one, x, y, sources, first, norms[2 * index], inner, precision))
        run(_conv2_pass(two, x, y, sources, targets, second, norms[2 * index + 1], inner, precision))
    if untouched.images:
        run(copy_pass(x, y, untouched))
    return y


def _tables(runs: np.ndarray, x: Tensor, y: Tensor) -> list[Table]:
    """For each column of `runs` [N, blocks] where its images stand, in x or already in y, and their rows of y.

    Then the rows of the images that run nothing.
    """
    moved = np.zeros(len(runs), bool)
    lists = list[Listed | np.ndarray]()
    for column in runs.T:
        images = column.nonzero()[0]
        lists += [Listed(images + len(x) * moved[images], (x, y)), Listed(images, (y,))]
        moved |= column
    return tables([*lists, Listed((~moved).nonzero()[0], (x,))], x.device)


def _conv1_pass(
    geometry: Geometry, x: Tensor, y: Tensor, sources: Table, weight: Tensor, norm: EvalNorm, inner: Tensor,
    precision: str,
) -> Launch:  # fmt: skip
    tile = conv_tile(geometry.inputs, geometry.outputs, y.dtype, precision)
    launch = _pass("rows: evaluation conv1", geometry, x, sources, weight, norm, inner, precision, tile)
    reads = launch.reads | requested(launch.arguments, x=geometry.pairs * geometry.inputs * launch.grid[1])
    launch = launch._replace(kernel=conv1_of_rows, reads=reads, writes=requested(launch.arguments, "inner"))
    return reads_rows(launch, sources, x=x, y=y)


def _conv2_pass(
    geometry: Geometry, x: Tensor, y: Tensor, sources: Table, targets: Table, weight: Tensor, norm: EvalNorm,
    inner: Tensor, precision: str,
) -> Launch:  # fmt: skip
    tile = conv_tile(geometry.inputs, geometry.outputs, y.dtype, precision)
    tile = tile._replace(m=64)  # pointers of the skip and of y stand in registers beside the sums
    launch = _pass("rows: evaluation conv2", geometry, x, sources, weight, norm, inner, precision, tile)
    arguments = launch.arguments | {"y_out": y, "rows_out": targets.rows}
    own, taps = inner.shape[0] * x[0].numel(), geometry.pairs * geometry.inputs * launch.grid[1]
    reads = launch.reads | requested(arguments, "rows_out", inner=taps, x=own)
    launch = launch._replace(
        kernel=conv2_of_rows, arguments=arguments, reads=reads, writes=requested(arguments, y_out=own)
    )
    return writes_rows(reads_rows(launch, sources, x=x, y=y), targets, y_out=y)


def _pass(
    name: str, geometry: Geometry, x: Tensor, sources: Table, weight: Tensor, norm: EvalNorm, inner: Tensor,
    precision: str, tile: ConvTile,
) -> Launch:  # fmt: skip
    """What both convolutions have in common."""
    g = geometry
    arguments = {
        "x": x, "rows": sources.rows, "weight": weight, "inner": inner, **conv_arguments(g, weight),
        "norm_weight": norm.weight, "norm_bias": norm.bias, "mean": norm.mean, "var": norm.var, "eps": norm.eps,
        "multiplier": norm.multiplier, "count": g.pixels_out,
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "ALIGN": sources.align, **product(x.dtype, precision),
        "WIDE": wide(x, inner), "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    grid = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    vectors = "rows", "norm_weight", "norm_bias", "mean", "var"
    reads = requested(arguments, *vectors, weight=g.weights * grid[0])
    return Launch(name, None, grid, arguments, constants, tile.warps, tile.stages, reads, {}, True)
