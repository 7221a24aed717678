"""A run of blocks in evaluation: a launch a convolution, batch norm folded behind the product.

conv_eval: y = relu(scale conv(x) + shift [+ skip]), so conv1 of a basic block moves 2 T and conv2 with its skip 3 T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.block_run import conv_shapes, empty
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import conv_arguments, product, wide
from pathnet.kernels.settings import conv_tile
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


class EvalNorm(NamedTuple):
    """A batch norm of running statistics, with its block's multiplier where it is the block's last."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    multiplier: float


def eval_norms(norms: Sequence[Tensor], scales: Sequence[float], eps: Sequence[float]) -> list[EvalNorm]:
    """The norms of an op's flat lists: weight, bias, mean and variance of each, and a scale for the last of a block."""
    depth = len(eps) // len(scales)
    multipliers = [scale if place == depth - 1 else 1.0 for scale in scales for place in range(depth)]
    return [EvalNorm(*norms[4 * i : 4 * i + 4], eps[i], multipliers[i]) for i in range(len(eps))]


@triton.jit
def folded_conv(
    x, weight, norm_weight, norm_bias, mean, var, eps, multiplier, pixels, outputs, valid, height, width, by_output,
    by_input, by_tap,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, STORED: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """multiplier norm(conv(x)) at output `pixels` and channels `outputs`, float32 [BLOCK_M, BLOCK_N]."""
    CHUNKS: tl.constexpr = (IN + BLOCK_K - 1) // BLOCK_K
    image, row, column = places(pixels, (height + STRIDE - 1) // STRIDE, (width + STRIDE - 1) // STRIDE)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(SIDE * SIDE * CHUNKS):
        tap = step // CHUNKS
        inputs = step % CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
        source, inside = tap_of_output(image, row, column, valid, tap, height, width, STRIDE, SIDE)
        at, within = block(source, inputs, inside, IN)
        values = tl.load(x + at, within, 0.0)
        weights = weight_tile(weight, outputs[None, :], inputs[:, None], tap, by_output, by_input, by_tap, OUT, IN)
        sums = multiply_add(sums, values, weights, STORED, PRODUCT, PRECISION)
    inside = outputs < OUT
    middle = tl.load(mean + outputs, inside, 0.0).to(tl.float32)
    scale = multiplier * tl.load(norm_weight + outputs, inside, 0.0).to(tl.float32)
    scale /= tl.sqrt(tl.load(var + outputs, inside, 1.0).to(tl.float32) + eps)
    shift = multiplier * tl.load(norm_bias + outputs, inside, 0.0).to(tl.float32)
    return (sums - middle[None, :]) * scale[None, :] + shift[None, :]


@triton.jit
def conv_eval(
    x, weight, skip, y, height, width, by_output, by_input, by_tap, norm_weight, norm_bias, mean, var, eps, multiplier,
    count,
    IN: tl.constexpr, OUT: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, ADDS: tl.constexpr,
    PRODUCT: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = relu(multiplier norm(conv(x)) [+ skip])."""
    STORED: tl.constexpr = y.dtype.element_ty
    pixels, outputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    value = folded_conv(
        x, weight, norm_weight, norm_bias, mean, var, eps, multiplier, pixels, outputs, pixels < count, height, width,
        by_output, by_input, by_tap, IN, OUT, STRIDE, SIDE, STORED, PRODUCT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    at, within = block(pixels, outputs, pixels < count, OUT)
    if ADDS:
        value += tl.load(skip + at, within, 0.0).to(tl.float32)
    tl.store(y + at, tl.maximum(value, 0.0).to(STORED), within)


def stage_eval(
    x: Tensor, skip: Tensor | None, weights: Sequence[Tensor], norms: Sequence[EvalNorm], strides: Sequence[int],
    precision: str,
) -> Tensor:  # fmt: skip
    """The run of x, channels_last; `skip` is h(x) of block 0, None for the identity."""
    depth, shapes = len(weights) // len(strides), conv_shapes(weights, strides, x.shape[0], x.shape[2], x.shape[3])
    for number, convs in enumerate(shapes):
        value, through = x, x if number or skip is None else skip
        for place, geometry in enumerate(convs):
            index, y = depth * number + place, empty(x, geometry)
            joins = through if place == depth - 1 else None
            name = f"evaluation conv{place + 1}"
            run(eval_pass(name, geometry, value, weights[index], norms[index], joins, y, precision))
            value = y
        x = value
    return x


def eval_pass(
    name: str, geometry: Geometry, x: Tensor, weight: Tensor, norm: EvalNorm, skip: Tensor | None, y: Tensor,
    precision: str,
) -> Launch:  # fmt: skip
    """One convolution with its norm, ReLU and shortcut."""
    g, tile = geometry, conv_tile(geometry.inputs, geometry.outputs, y.dtype, precision, geometry.side)
    tiles, columns = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    arguments = {
        "x": x, "weight": weight, "skip": skip, "y": y, **conv_arguments(g, weight), "norm_weight": norm.weight,
        "norm_bias": norm.bias, "mean": norm.mean, "var": norm.var, "eps": norm.eps, "multiplier": norm.multiplier,
        "count": g.pixels_out,
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STRIDE": g.stride, "SIDE": g.side, "ADDS": skip is not None,
        **product(y.dtype, precision), "WIDE": wide(x, y), "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    taps, weights = g.pairs * g.inputs * columns, g.weights * tiles
    vectors = "skip", "norm_weight", "norm_bias", "mean", "var"
    reads, writes = requested(arguments, *vectors, x=taps, weight=weights), requested(arguments, "y")
    grid = (tiles, columns)
    return Launch(name, conv_eval, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)
