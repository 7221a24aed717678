"""The one table of settings: block sizes, warps and stages of every kernel, by channels and dtype.

Nothing is tuned at run time: that would need a GPU, and forward and backward must agree on slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class ConvTile(NamedTuple):
    m: int  # pixels of a program
    n: int  # channels that it computes
    k: int  # channels that it adds up at a time
    warps: int
    stages: int  # steps that loads run ahead (1: none)


class WeightTile(NamedTuple):
    p: int  # pixels added up at a time
    i: int  # input channels of a program
    o: int  # output channels
    warps: int
    stages: int


WARPS = 4  # one warpgroup, which wgmma and tcgen05 need; with 128 pixels each warp holds two tiles of mma
POINTWISE_WARPS = 8  # of a 1x1 convolution into 64 channels
# Kernels, by the side of the convolution, the channels added up, those of a program and the kind of product, of
# which some spilled 8 bytes with four warps on some chip: the assembler then aimed at one resident block more.
EIGHT_WARPS = {
    ("conv_forward", 3, 16, 16, "half"), ("conv_forward", 3, 64, 64, "half"), ("outer_gradient", 3, 64, 32, "half"),
    ("weight_gradient of rows", 3, 32, 32, "tf32"),
    ("conv_residual", 3, 16, 16, "ieee"), ("conv_forward", 1, 64, 16, "ieee"), ("outer_gradient", 1, 32, 32, "ieee"),
    ("inner_gradient", 1, 32, 32, "ieee"),
}  # fmt: skip
STREAM_PIXELS = 64  # of a program without a product
PROGRAMS = 1024  # that weight gradients aim at: 8 for each of the about 128 multiprocessors of a large GPU
COPIED = 1024  # elements of a program that copies rows
SUMMED = 512  # entries of the weights that a program of sum_slots adds up


def channel_block(channels: int) -> int:
    """A block of all channels: tl.dot needs 16, and a power of 2."""
    return max(16, triton.next_power_of_2(channels))


def _power(channels: int, most: int) -> int:
    """A block of channels, of so many at most."""
    return min(most, channel_block(channels))


def conv_tile(
    inputs: int, outputs: int, dtype: torch.dtype, precision: str, side: int = 3, kernel: str = ""
) -> ConvTile:
    """Products over `inputs` into `outputs` channels, by `side` x `side` taps.

    128 pixels fill the four warps; float32 holds twice the registers a value, so 64 there. All channels up to 64 stand
    in one program, so that activations are requested once. A step adds 32 channels: the prologue's float32 values then
    are 32 registers a thread and tensor. IEEE products hold both operands in registers: 32 channels a program and
    16 a step, else they spill.

    A 1x1 convolution has few steps, which compilers unroll and prefetch at once: into 64 channels by four warps some
    spilled 8 to 16 bytes on sm_100. Eight have half the registers each, and on sm_80 and sm_90 more of them are
    resident; into 32, where four fit, one of eight spilled 8 bytes on sm_80.
    """
    wide = dtype == torch.float32
    n, k = (32, 16) if wide and precision == "ieee" else (64, 32)
    tile = ConvTile(64 if wide else 128, _power(outputs, n), _power(inputs, k), WARPS, 2)
    if side == 1 and tile.n == 64:
        return tile._replace(warps=POINTWISE_WARPS)
    return tile._replace(warps=warps_of(kernel, side, inputs, tile.n, dtype, precision))


def warps_of(kernel: str, side: int, inputs: int, channels: int, dtype: torch.dtype, precision: str) -> int:
    """Of a kernel whose programs compute so many channels."""
    product = precision if dtype == torch.float32 else "half"
    return 2 * WARPS if (kernel, side, min(inputs, 64), channels, product) in EIGHT_WARPS else WARPS


def rebuilding_tile(channels: int, inner: int, dtype: torch.dtype, precision: str) -> ConvTile:
    """Of a program that steps through `channels`, rebuilds each and multiplies it into all `inner` channels.

    It holds the values of both products, in TF32 with 32 inner channels 8 bytes more on sm_100 than four warps have.
    """
    tile = conv_tile(channels, inner, dtype, precision, 1)
    return tile._replace(warps=POINTWISE_WARPS) if inner > 16 else tile


def stream_channels(channels: int) -> int:
    """Of a program without a product that forms sums a channel."""
    return _power(channels, 64)


def weight_tile(inputs: int, outputs: int) -> WeightTile:
    """At most 32 x 32 sums for each of three taps, 24 registers a thread: the rest is for the prologues.

    Those of 64 pixels spill a few bytes on sm_80.
    """
    return WeightTile(32, _power(inputs, 32), _power(outputs, 32), WARPS, 2)


def weight_slots(pixels: int, programs: int, block: int, largest: int, itemsize: int, channels: int) -> int:
    """Into how many slots the pixels are cut.

    The partial sums (float32) of a convolution of `largest` weights may take half a stream, and no more slots are
    wanted than give `PROGRAMS` programs with so many `programs` a slot.
    """
    affordable = pixels * channels * itemsize // (2 * 4 * largest)
    return max(1, min(affordable, triton.cdiv(pixels, block), triton.cdiv(PROGRAMS, programs)))
