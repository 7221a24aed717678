"""A run of basic blocks in evaluation: two launches a block, batch norm folded behind the products.

conv_eval: y = relu(scale conv3x3(x) + shift [+ skip]), so conv1 moves 2 T and conv2 with its skip 3 T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import conv_arguments, product, wide
from pathnet.kernels.settings import conv_tile
from pathnet.kernels.stage_train_fwd import empty
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
    """Two norms a block of the flat lists of an op: weight, bias, mean and variance of each, and its block's scale."""
    return [EvalNorm(*norms[4 * i : 4 * i + 4], eps[i], scales[i // 2] if i % 2 else 1.0) for i in range(len(eps))]


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
    for index, stride in enumerate(strides):
        first, second = weights[2 * index : 2 * index + 2]
        one = Geometry(x.shape[0], x.shape[2], x.shape[3], first.shape[1], first.shape[0], stride)
        two = Geometry(x.shape[0], one.rows, one.columns, second.shape[1], second.shape[0], 1)
        inner, y = empty(x, one), empty(x, two)
        run(eval_pass("evaluation conv1", one, x, first, norms[2 * index], None, inner, precision))
        through = x if index or skip is None else skip
        run(eval_pass("evaluation conv2", two, inner, second, norms[2 * index + 1], through, y, precision))
        x = y
    return x


def eval_pass(
    name: str, geometry: Geometry, x: Tensor, weight: Tensor, norm: EvalNorm, skip: Tensor | None, y: Tensor,
    precision: str,
) -> Launch:  # fmt: skip
    """One convolution with its norm, ReLU and shortcut."""
    g, tile = geometry, conv_tile(geometry.inputs, geometry.outputs, y.dtype, precision)
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
