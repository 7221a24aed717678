"""The passes of pre-activation blocks that basic ones do not have, as launches."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from pathnet.kernels.launch import Launch
from pathnet.kernels.passes import (
    Before,
    Behind,
    Norm,
    Source,
    before_arguments,
    conv_arguments,
    norm_arguments,
    norm_traffic,
    product,
    wide,
)
from pathnet.kernels.preact_forward import conv_residual, first_norm
from pathnet.kernels.preact_gradient import depart, residual_gradient
from pathnet.kernels.settings import STREAM_PIXELS, WARPS, conv_tile, stream_channels
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.workspace import Workspace


def first_norm_pass(x: Tensor, norm: Norm, state: Tensor, workspace: Workspace, name: str = "first norm") -> Launch:
    """The state of the norm that reads x."""
    count, channels = x.numel() // x.shape[1], x.shape[1]
    block = stream_channels(channels)
    arguments = {"x": x, **norm_arguments(norm, state, workspace), "count": count}
    constants = {
        "CHANNELS": channels, "BATCH_STATS": norm.batch_stats, "MOVES": norm.moves, "WIDE": wide(x),
        "BLOCK_M": STREAM_PIXELS, "BLOCK_N": block,
    }  # fmt: skip
    vectors, written = norm_traffic(norm)
    reads = requested(arguments, *vectors, *(("x",) if norm.batch_stats else ()))
    tiles = triton.cdiv(count, STREAM_PIXELS) if norm.batch_stats else 1
    grid = tiles, triton.cdiv(channels, block)
    return Launch(name, first_norm, grid, arguments, constants, WARPS, 1, reads, requested(arguments, *written))


def residual_pass(
    name: str, geometry: Geometry, source: Source, skip: Tensor, scale: float, weight: Tensor, norm: Norm | None,
    x_out: Tensor, state: Tensor | None, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """x_out = skip + scale conv(relu(norm(source.u))), and the state of the norm that comes next, if one does."""
    g = geometry
    tile = conv_tile(g.inputs, g.outputs, x_out.dtype, precision, g.side, "conv_residual")
    if g.side == 1 and tile.k == 16:  # of eight warps with 64 registers a thread, one spilled 8 bytes on sm_100
        tile = tile._replace(warps=WARPS)
    tiles, columns = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    arguments = {
        "u_in": source.u, "state_in": source.state, "skip": skip, "weight": weight, "x_out": x_out, "scale": scale,
        **conv_arguments(g, weight), **norm_arguments(norm, state, workspace), "count": g.pixels_out,
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "SIDE": g.side, "SUMS": norm is not None,
        "BATCH_STATS": norm is None or norm.batch_stats, "MOVES": norm is not None and norm.moves,
        **product(x_out.dtype, precision), "WIDE": wide(x_out, source.u), "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }  # fmt: skip
    vectors, written = norm_traffic(norm)
    taps, weights = g.pairs * g.inputs * columns, g.weights * tiles
    reads = requested(arguments, "state_in", "skip", *vectors, u_in=taps, weight=weights)
    writes = requested(arguments, "x_out", *written)
    grid = (tiles, columns)
    return Launch(name, conv_residual, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def residual_gradient_pass(
    name: str, geometry: Geometry, behind: Behind, scale: float, entered: Tensor, weight: Tensor, before: Before,
    g_in: Tensor, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """entered: the gradient of the block's value, written unless it is behind.g; g_in: that behind the inner norm."""
    g, tile = geometry, conv_tile(geometry.outputs, geometry.inputs, g_in.dtype, precision, geometry.side)
    if g.side == 3 and tile.n == 16 and g_in.element_size() == 2:  # of two stages, one spilled 8 bytes on sm_100
        tile = tile._replace(stages=1)
    tiles, columns = triton.cdiv(g.pixels_in, tile.m), triton.cdiv(g.inputs, tile.n)
    arguments: dict[str, Any] = {
        **behind._asdict(), "entered": entered, "weight": weight, "g_in": g_in,
        **before_arguments(before, workspace), "scale": scale, "count": g.pixels_in, **conv_arguments(g, weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "SIDE": g.side, "ENTERS": behind.enters, "BATCH_STATS": before.batch_stats,
        **product(g_in.dtype, precision), "WIDE": wide(g_in, behind.g), "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }  # fmt: skip
    own = 0 if behind.enters == "value" else entered.numel()
    taps, weights = g.pairs * g.outputs * columns + own, g.weights * tiles
    vectors = "state", "slopes", "u_in", "state_in", "slots"
    reads = requested(arguments, *vectors, g=taps, u=taps, skip=taps, weight=weights)
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots", entered=own)
    grid = (tiles, columns)
    return Launch(name, residual_gradient, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def depart_pass(behind: Behind, entered: Tensor, name: str = "depart") -> Launch:
    """The gradient that leaves a run: of its input, or of what its first block's shortcut gave."""
    count, channels = entered.numel() // entered.shape[1], entered.shape[1]
    arguments = {**behind._asdict(), "entered": entered, "count": count}
    constants = {
        "CHANNELS": channels, "ENTERS": behind.enters, "WIDE": wide(entered), "BLOCK_M": STREAM_PIXELS, "BLOCK_K": 32,
    }  # fmt: skip
    reads, writes = requested(arguments, "g", "u", "skip", "state", "slopes"), requested(arguments, "entered")
    grid = (triton.cdiv(count, STREAM_PIXELS),)
    return Launch(name, depart, grid, arguments, constants, WARPS, 1, reads, writes)
