"""What the last convolution of a bottleneck gives, rebuilt tile by tile from what the one before gave.

A 1x1 convolution has no halo: a tile of its output needs the same pixels of its input alone, all `INNER` channels of
them. They stay in registers while the tiles of a program are made one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.conv_forward import convolved
from pathnet.kernels.tiles import block, multiply_add, weight_tile


class Expansion(NamedTuple):
    """A 1x1 convolution behind the norm of `state` and ReLU, whose output nobody stores."""

    state: Tensor
    weight: Tensor


@triton.jit
def inner_tile(
    u, state, pixels, inside, INNER: tl.constexpr, STORED: tl.constexpr, PRODUCT: tl.constexpr, BLOCK_C: tl.constexpr
):
    """relu(norm(u)) of these pixels, all channels, as products read it."""
    channels = tl.arange(0, BLOCK_C)
    at, within = block(pixels, channels, inside, INNER)
    return convolved(u, None, state, at, within, channels, INNER, "norm").to(STORED).to(PRODUCT)


@triton.jit
def expanding(
    weight, outputs, by_output, by_input, INNER: tl.constexpr, OUT: tl.constexpr, STORED: tl.constexpr,
    PRODUCT: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The weights of all inputs and these outputs, [BLOCK_C, outputs]."""
    inputs = tl.arange(0, BLOCK_C)[:, None]
    weights = weight_tile(weight, outputs[None, :], inputs, 0, by_output, by_input, 0, OUT, INNER)
    return weights.to(STORED).to(PRODUCT)


@triton.jit
def rebuilt(values, weights, STORED: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """Their product, rounded as it would be stored: the statistics are those of these values."""
    sums = tl.zeros((values.shape[0], weights.shape[1]), tl.float32)
    return multiply_add(sums, values, weights, STORED, PRODUCT, PRECISION).to(STORED).to(tl.float32)
