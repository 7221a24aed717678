"""The launches that rebuild what the last convolution of a bottleneck gives (kernels/rebuilt.py), beside
kernels/passes.py."""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from pathnet.kernels.launch import Launch
from pathnet.kernels.passes import (
    STORED,
    Before,
    Behind,
    Norm,
    Source,
    before_arguments,
    norm_arguments,
    norm_traffic,
    product,
    wide,
)
from pathnet.kernels.rebuilt import Expansion
from pathnet.kernels.rebuilt_forward import conv_of_rebuilt, conv_statistics, merge_rebuilt
from pathnet.kernels.rebuilt_gradient import (
    arrive_at_rebuilt,
    inner_of_rebuilt,
    outer_to_rebuilt,
    weight_gradient_of_rebuilt,
)
from pathnet.kernels.settings import channel_block, conv_tile, rebuilding_tile, weight_tile
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.workspace import Workspace


def expanded(source: Source, weight: Tensor, state: Tensor) -> Source:
    """What 1x1 conv(source) gives, behind the norm of `state`."""
    assert source.state is not None
    return Source(u=source.u, state=state, expansion=Expansion(source.state, weight))


def _strides(weight: Tensor) -> dict[str, int]:
    by_output, by_input, *_ = weight.stride()
    return {"by_output": by_output, "by_input": by_input}


def _rebuilding(u: Tensor, expansion: Expansion | None, precision: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The arguments and constants of kernels that rebuild an output from u, and the weights that a program asks for."""
    assert expansion is not None
    state, weight = expansion
    by_output, by_input, *_ = weight.stride()
    arguments = {
        "u_in": u, "inner_state": state, "expansion": weight, "expansion_by_output": by_output,
        "expansion_by_input": by_input,
    }  # fmt: skip
    constants = {"INNER": u.shape[1], **product(u.dtype, precision), "BLOCK_C": channel_block(u.shape[1])}
    return arguments, constants, weight.numel()


def statistics_pass(
    name: str, geometry: Geometry, source: Source, weight: Tensor, norm: Norm, state: Tensor, workspace: Workspace,
    precision: str,
) -> Launch:  # fmt: skip
    """The state of the norm behind conv(source); with running statistics one program a tile of channels."""
    g, u = geometry, source.u
    assert u is not None
    tile = conv_tile(g.inputs, g.outputs, u.dtype, precision, 1)
    tiles, columns = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    arguments = {
        "u_in": u, "state_in": source.state, "weight": weight, **norm_arguments(norm, state, workspace),
        "count": g.pixels_out, **_strides(weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STORED": STORED[u.dtype], "BATCH_STATS": norm.batch_stats,
        "MOVES": norm.moves, **product(u.dtype, precision), "WIDE": wide(u), "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        "BLOCK_C": channel_block(g.inputs),
    }  # fmt: skip
    vectors, written = norm_traffic(norm)
    reads = requested(arguments, *vectors)
    if norm.batch_stats:
        reads |= requested(arguments, "state_in", u_in=u.numel() * columns, weight=g.weights * tiles)
    grid = (tiles if norm.batch_stats else 1, columns)
    return Launch(name, conv_statistics, grid, arguments, constants, tile.warps, tile.stages, reads,
                  requested(arguments, *written), norm.batch_stats)  # fmt: skip


def rebuilt_forward_pass(
    name: str, geometry: Geometry, source: Source, bits: Tensor | None, join: str, weight: Tensor, norm: Norm,
    u: Tensor, state: Tensor, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """`forward_pass` of the first convolution of a block, whose input is merged from x and what is rebuilt."""
    g, tile = geometry, rebuilding_tile(geometry.inputs, geometry.outputs, u.dtype, precision)
    tiles = triton.cdiv(g.pixels_out, tile.m)
    assert source.u is not None
    given, rebuilding, weights = _rebuilding(source.u, source.expansion, precision)
    arguments = {
        **given, "x_in": source.x, "state_in": source.state, "merged": source.merged, "bits": bits,
        "weight": weight, "u_out": u, **norm_arguments(norm, state, workspace), "count": g.pixels_out,
        **_strides(weight),
    }  # fmt: skip
    constants = {
        **rebuilding, "IN": g.inputs, "OUT": g.outputs, "BITS": join,
        "BATCH_STATS": norm.batch_stats, "MOVES": norm.moves, "WIDE": wide(source.x, u), "BLOCK_M": tile.m,
        "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    vectors, written = norm_traffic(norm)
    joined = ("bits",) if join == "join" else ()
    reads = requested(
        arguments, "u_in", "inner_state", "x_in", "state_in", *vectors, *joined,
        expansion=weights * tiles, weight=g.weights * tiles,
    )  # fmt: skip
    writes = requested(arguments, "merged", "bits", "u_out", *written)
    return Launch(name, conv_of_rebuilt, (tiles,), arguments, constants, tile.warps, tile.stages, reads, writes, True)


def rebuilt_merge_pass(source: Source, bits: Tensor | None, join: str, precision: str) -> Launch:
    """`merge_pass`, of x and what is rebuilt."""
    x, u = source.x, source.u
    assert x is not None and u is not None
    count, channels = x.numel() // x.shape[1], x.shape[1]
    tile = rebuilding_tile(channels, u.shape[1], x.dtype, precision)
    tiles = triton.cdiv(count, tile.m)
    given, rebuilding, weights = _rebuilding(u, source.expansion, precision)
    arguments = {
        **given, "x": x, "state": source.state, "merged": source.merged, "bits": bits, "count": count,
    }  # fmt: skip
    constants = {
        **rebuilding, "CHANNELS": channels, "BITS": join, "WIDE": wide(x), "BLOCK_M": tile.m,
        "BLOCK_K": tile.k,
    }  # fmt: skip
    joined = ("bits",) if join == "join" else ()
    reads = requested(arguments, "u_in", "inner_state", "x", "state", *joined, expansion=weights * tiles)
    writes = requested(arguments, "merged", "bits")
    return Launch("merge", merge_rebuilt, (tiles,), arguments, constants, tile.warps, tile.stages, reads, writes, True)


def rebuilt_inner_pass(
    name: str, geometry: Geometry, behind: Behind, weight: Tensor, before: Before, g_in: Tensor, workspace: Workspace,
    precision: str,
) -> Launch:  # fmt: skip
    """`inner_gradient_pass` of the last convolution, whose output is rebuilt from before.u."""
    g, tile = geometry, rebuilding_tile(geometry.outputs, geometry.inputs, g_in.dtype, precision)
    tiles = triton.cdiv(g.pixels_in, tile.m)
    arguments = {
        "g": behind.g, "state": behind.state, "slopes": behind.slopes, "weight": weight, "g_in": g_in,
        **before_arguments(before, workspace), "values": g.pixels_in, "count": g.pixels_in, **_strides(weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "BATCH_STATS": before.batch_stats, **product(g_in.dtype, precision),
        "WIDE": wide(behind.g), "BLOCK_M": tile.m, "BLOCK_K": tile.k, "BLOCK_C": tile.n,
    }  # fmt: skip
    twice = 2 * before.u.numel()  # for the product, and for the mask and the sums behind it
    reads = requested(
        arguments, "g", "state", "slopes", "state_in", "slots", u_in=twice, weight=g.weights * tiles
    )  # fmt: skip
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots")
    grid = (tiles, 1)
    return Launch(name, inner_of_rebuilt, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def rebuilt_weight_pass(
    name: str, geometry: Geometry, behind: Behind, source: Source, weight: Tensor, partial: Tensor, first: int,
    precision: str,
) -> Launch:  # fmt: skip
    """`weight_gradient_pass` of the last convolution, whose output is rebuilt from source.u."""
    g, tile, u = geometry, weight_tile(geometry.inputs, geometry.outputs), source.u
    assert u is not None
    slots, slot_size = partial.shape
    blocks = triton.cdiv(g.outputs, tile.o)
    arguments = {
        "g": behind.g, "state": behind.state, "slopes": behind.slopes, "weight": weight, "u_in": u,
        "state_in": source.state, "partial": partial[:, first : first + weight.numel()], "scale": 1.0,
        "slot_size": slot_size,
        "pixels_of_slot": triton.cdiv(triton.cdiv(g.pixels_out, slots), tile.p) * tile.p, "count": g.pixels_out,
        **_strides(weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, **product(u.dtype, precision), "WIDE": wide(behind.g, partial),
        "BLOCK_P": tile.p, "BLOCK_O": tile.o, "BLOCK_C": channel_block(g.inputs),
    }  # fmt: skip
    reads = requested(arguments, "g", "state", "slopes", "state_in", u_in=u.numel() * blocks, weight=g.weights * slots)
    writes = requested(arguments, "partial")
    grid = (slots, blocks)
    return Launch(name, weight_gradient_of_rebuilt, grid, arguments, constants, tile.warps, tile.stages, reads, writes,
                  True)  # fmt: skip


def rebuilt_outer_pass(
    name: str, geometry: Geometry, behind: Behind, weight: Tensor, skip: Tensor | None, mask: str,
    alive: Tensor | None, before: Before | None, g_in: Tensor, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """`outer_gradient_pass` where the norm before is that of what is rebuilt."""
    assert before is not None
    given, rebuilding, weights = _rebuilding(before.u, before.expansion, precision)
    g, tile = geometry, conv_tile(geometry.outputs, geometry.inputs, g_in.dtype, precision, 1)
    tiles, columns = triton.cdiv(g.pixels_in, tile.m), triton.cdiv(g.inputs, tile.n)
    arguments = {
        **behind.of_norm(), "weight": weight, "skip": skip, "alive": alive, "g_in": g_in,
        **before_arguments(before, workspace), **given, "count": g.pixels_in, **_strides(weight),
    }  # fmt: skip
    constants = {
        **rebuilding, "IN": g.inputs, "OUT": g.outputs, "ADDS": skip is not None, "MASK": mask,
        "BATCH_STATS": before.batch_stats, "WIDE": wide(g_in), "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    taps, own = g.pixels_in * g.outputs * columns, before.u.numel() * columns
    reads = requested(
        arguments, "state", "slopes", "skip", "alive", "inner_state", "state_in", "slots", g=taps, u=taps, u_in=own,
        weight=g.weights * tiles, expansion=weights * tiles,
    )  # fmt: skip
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots")
    grid = (tiles, columns)
    return Launch(name, outer_to_rebuilt, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def rebuilt_arrive_pass(
    g: Tensor, alive: Tensor, before: Before, g_in: Tensor, workspace: Workspace, precision: str
) -> Launch:
    """`arrive_pass` at the end of a run, where the last norm is that of what is rebuilt."""
    given, rebuilding, weights = _rebuilding(before.u, before.expansion, precision)
    count, channels = g.numel() // g.shape[1], g.shape[1]
    tile = conv_tile(before.u.shape[1], channels, g.dtype, precision, 1)
    tiles, columns = triton.cdiv(count, tile.m), triton.cdiv(channels, tile.n)
    arguments = {
        "g": g, "alive": alive, "g_in": g_in, **before_arguments(before, workspace), **given, "count": count,
    }  # fmt: skip
    constants = {
        **rebuilding, "IN": channels, "BATCH_STATS": before.batch_stats, "WIDE": wide(g),
        "BLOCK_M": tile.m, "BLOCK_N": tile.n,
    }  # fmt: skip
    reads = requested(
        arguments, "g", "alive", "inner_state", "state_in", "slots", u_in=before.u.numel() * columns,
        expansion=weights * tiles,
    )  # fmt: skip
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots")
    grid = (tiles, columns)
    return Launch("arrive", arrive_at_rebuilt, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)
