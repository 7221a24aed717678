"""The separate-pass form of a convolution: elementwise passes of ours around the vendor's convolution.

What stands in prologues and epilogues of the fused form is a pass of its own here, so more bytes move; what is kept for
the backward is the same. kernels/conv_forms.py says where this form is taken.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.launch import Launch, run
from pathnet.kernels.norm import finish_backward, finish_forward, normalised
from pathnet.kernels.partial_sums import PartialSums
from pathnet.kernels.passes import (
    Before,
    Behind,
    Norm,
    Source,
    arrive_pass,
    before_arguments,
    merge_pass,
    norm_arguments,
    norm_traffic,
    wide,
)
from pathnet.kernels.preact_passes import depart_pass, first_norm_pass
from pathnet.kernels.settings import STREAM_PIXELS, WARPS, stream_channels
from pathnet.kernels.tiles import block, tile_channels, tile_pixels
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.vendor import vendor_convolution, vendor_data_gradient
from pathnet.kernels.workspace import Workspace


@triton.jit
def activate(
    u, state, v, count, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """v = relu(scale u + shift)."""
    pixels, channels = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    at, within = block(pixels, channels, pixels < count, CHANNELS)
    value = tl.maximum(normalised(tl.load(u + at, within, 0.0), state, channels, CHANNELS), 0.0)
    tl.store(v + at, value.to(v.dtype.element_ty), within)


@triton.jit
def inner_sums(
    g, v, u_in, state_in, slopes_in, gradients_in, slots, counter, multiplier, scale, count,
    IN: tl.constexpr, ACTIVATES: tl.constexpr, BATCH_STATS: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """g, that of v = relu(norm(u_in)), becomes scale times that behind the ReLU, with the slopes of the norm.

    ACTIVATES: v is written for the gradient of the weights that read it.
    """
    pixels, inputs = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    at, within = block(pixels, inputs, pixels < count, IN)
    own = tl.load(u_in + at, within, 0.0)
    value = tl.maximum(normalised(own, state_in, inputs, IN), 0.0)
    if ACTIVATES:
        tl.store(v + at, value.to(v.dtype.element_ty), within)
    gradient = scale * tl.load(g + at, within, 0.0).to(tl.float32)
    gradient = tl.where(value > 0, gradient, 0.0).to(g.dtype.element_ty)
    tl.store(g + at, gradient, within)
    finish_backward(
        gradient.to(tl.float32), own, inputs, count, slots, counter, state_in, slopes_in, gradients_in, multiplier,
        IN, BATCH_STATS, ROUNDED=True,
    )  # fmt: skip


@triton.jit
def add_residual(
    u, skip, x_out, scale, slots, counter, norm_weight, norm_bias, running_mean, running_var, batches, state_out,
    multiplier, eps, momentum, count,
    CHANNELS: tl.constexpr, SUMS: tl.constexpr, BATCH_STATS: tl.constexpr, MOVES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """x_out = skip + scale u; SUMS: a block comes next, and state_out is its first norm."""
    pixels, channels = tile_pixels(BLOCK_M, WIDE), tile_channels(BLOCK_N)
    valid = pixels < count
    at, within = block(pixels, channels, valid, CHANNELS)
    value = scale * tl.load(u + at, within, 0.0).to(tl.float32) + tl.load(skip + at, within, 0.0).to(tl.float32)
    stored = value.to(x_out.dtype.element_ty)
    tl.store(x_out + at, stored, within)
    if SUMS:
        finish_forward(
            stored.to(tl.float32), valid, channels, count, slots, counter, norm_weight, norm_bias, running_mean,
            running_var, batches, state_out, multiplier, eps, momentum, CHANNELS, BLOCK_M, BATCH_STATS, MOVES,
        )  # fmt: skip


def activate_pass(name: str, u: Tensor, state: Tensor | None, v: Tensor) -> Launch:
    """What a convolution behind a norm reads."""
    count, channels = u.numel() // u.shape[1], u.shape[1]
    arguments = {"u": u, "state": state, "v": v, "count": count}
    tile = stream_channels(channels)
    constants = {"CHANNELS": channels, "WIDE": wide(u), "BLOCK_M": STREAM_PIXELS, "BLOCK_N": tile}
    reads, writes = requested(arguments, "u", "state"), requested(arguments, "v")
    grid = triton.cdiv(count, STREAM_PIXELS), triton.cdiv(channels, tile)
    return Launch(name, activate, grid, arguments, constants, WARPS, 1, reads, writes)


def inner_sums_pass(
    name: str, g: Tensor, v: Tensor | None, before: Before, scale: float, workspace: Workspace
) -> Launch:
    """g is read and written."""
    count, channels = g.numel() // g.shape[1], g.shape[1]
    arguments = {"g": g, "v": v, **before_arguments(before, workspace), "scale": scale, "count": count}
    tile = stream_channels(channels)
    constants = {
        "IN": channels, "ACTIVATES": v is not None, "BATCH_STATS": before.batch_stats, "WIDE": wide(g),
        "BLOCK_M": STREAM_PIXELS, "BLOCK_N": tile,
    }  # fmt: skip
    reads = requested(arguments, "g", "u_in", "state_in", "slots")
    writes = requested(arguments, "g", "v", "slopes_in", "gradients_in", "slots")
    grid = triton.cdiv(count, STREAM_PIXELS), triton.cdiv(channels, tile)
    return Launch(name, inner_sums, grid, arguments, constants, WARPS, 1, reads, writes)


def add_residual_pass(
    u: Tensor, skip: Tensor, scale: float, norm: Norm | None, x_out: Tensor, state: Tensor | None, workspace: Workspace
) -> Launch:
    """x_out = skip + scale u, and the state of the norm that comes next, if one does."""
    count, channels = u.numel() // u.shape[1], u.shape[1]
    arguments = {
        "u": u, "skip": skip, "x_out": x_out, "scale": scale, **norm_arguments(norm, state, workspace), "count": count,
    }  # fmt: skip
    tile = stream_channels(channels)
    constants = {
        "CHANNELS": channels, "SUMS": norm is not None, "BATCH_STATS": norm is None or norm.batch_stats,
        "MOVES": norm is not None and norm.moves, "WIDE": wide(u), "BLOCK_M": STREAM_PIXELS, "BLOCK_N": tile,
    }  # fmt: skip
    vectors, written = norm_traffic(norm)
    reads, writes = requested(arguments, "u", "skip", *vectors), requested(arguments, "x_out", *written)
    grid = triton.cdiv(count, STREAM_PIXELS), triton.cdiv(channels, tile)
    return Launch("sum with the skip", add_residual, grid, arguments, constants, WARPS, 1, reads, writes)


# ---- a convolution between its passes; `number` counts those of a block from 1 ---------------------------------------


def separate_forward(
    number: int, geometry: Geometry, prologue: str, source: Source, bits: Tensor | None, join: str, weight: Tensor,
    norm: Norm, state: Tensor, workspace: Workspace,
) -> Tensor:  # fmt: skip
    """u = conv(source behind its prologue), and the state of the norm behind it, as `forward_pass`."""
    if prologue == "merge":
        run(merge_pass(source, bits, join))
    x = activated(number, source) if prologue == "norm" else source.x if prologue == "input" else source.merged
    assert x is not None
    u = vendor_convolution(f"forward conv{number}", geometry, x, weight)
    run(first_norm_pass(u, norm, state, workspace, f"statistics of conv{number}"))
    return u


def separate_residual(
    number: int, geometry: Geometry, source: Source, skip: Tensor, scale: float, weight: Tensor, norm: Norm | None,
    x_out: Tensor, state: Tensor | None, workspace: Workspace,
) -> None:  # fmt: skip
    """x_out = skip + scale conv(relu(norm(source.u))), and the state of the norm that comes next: `residual_pass`."""
    u = vendor_convolution(f"forward conv{number}", geometry, activated(number, source), weight)
    run(add_residual_pass(u, skip, scale, norm, x_out, state, workspace))


def activated(number: int, source: Source) -> Tensor:
    """relu(norm(source.u)), before convolution `number`."""
    assert source.u is not None
    v = torch.empty_like(source.u)
    run(activate_pass(f"activation before conv{number}", source.u, source.state, v))
    return v


def gradient_entering(number: int, behind: Behind) -> Tensor:
    """The gradient of what convolution `number` gave, which both of its gradients read."""
    if behind.enters == "value":
        return behind.g
    g = torch.empty_like(behind.g)
    run(depart_pass(behind, g, f"norm backward of conv{number}"))
    return g


def separate_inner(
    number: int, geometry: Geometry, g: Tensor, weight: Tensor, before: Before, workspace: Workspace,
    partial: PartialSums, place: int, scale: float = 1.0,
) -> Behind:  # fmt: skip
    """From the gradient of scale conv(relu(norm)) to that behind the norm `before`, and that of the weights."""
    g_in = vendor_data_gradient(f"data gradient conv{number}", geometry, g, weight, before.u)
    v = torch.empty_like(before.u) if place in partial.whole else None
    run(inner_sums_pass(f"sums before conv{number}", g_in, v, before, scale, workspace))
    if v is not None:
        partial.add(place, Behind(g), "input", Source(x=v), scale)
    return Behind(g_in, before.u, before.state, before.slopes)


def separate_outer(
    geometry: Geometry, behind: Behind, weight: Tensor, skip: Tensor | None, mask: str, alive: Tensor | None,
    before: Before | None, g_in: Tensor, workspace: Workspace,
) -> Tensor:  # fmt: skip
    """The gradient of a block's input, behind the ReLUs that made it, as `outer_gradient_pass`."""
    g = vendor_data_gradient("data gradient conv1", geometry, gradient_entering(1, behind), weight, g_in)
    if skip is None and mask == "none" and before is None:
        return g
    run(arrive_pass("sums before conv1", g, skip, mask, alive, before, g_in, workspace))
    return g_in
