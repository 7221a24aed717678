"""The passes of training as launches: which tensors each reads and writes, its grid and its settings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.conv_forward import conv_forward, merge
from pathnet.kernels.data_gradient import arrive, inner_gradient, outer_gradient
from pathnet.kernels.launch import Launch, product_dtype
from pathnet.kernels.rebuilt import Expansion
from pathnet.kernels.settings import STREAM_PIXELS, WARPS, conv_tile, stream_channels, warps_of, weight_tile
from pathnet.kernels.traffic import Geometry, requested
from pathnet.kernels.weight_gradient import weight_gradient
from pathnet.kernels.workspace import Workspace

NORM = (
    "slots",
    "counter",
    "norm_weight",
    "norm_bias",
    "running_mean",
    "running_var",
    "batches",
    "state_out",
)  # what a norm is to a kernel, its numbers apart
FURTHEST = 2**10  # how far the last program of a launch may count past the end
STORED = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Norm(NamedTuple):
    """A batch norm of a block, with its multiplier."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    batches: Tensor
    eps: float
    momentum: float
    multiplier: float  # s of the block for its last norm, else 1
    batch_stats: bool
    moves: bool


class Behind(NamedTuple):
    """A gradient g behind a norm, and what leads it through: u [N, C, H, W], state [4, C] and slopes [2, C].

    Without a norm g is that of the value itself. `skip` joins behind the norm's backward. Here and below u is what the
    norm reads; with an `expansion` it is what that is rebuilt from.
    """

    g: Tensor
    u: Tensor | None = None
    state: Tensor | None = None
    slopes: Tensor | None = None
    skip: Tensor | None = None
    expansion: Expansion | None = None

    @property
    def enters(self) -> str:
        """As kernels/entering.py names it."""
        return "value" if self.u is None else "norm" if self.skip is None else "both"

    def of_norm(self) -> dict[str, Tensor | None]:
        """The arguments of kernels whose gradient no skip joins."""
        return {"g": self.g, "u": self.u, "state": self.state, "slopes": self.slopes}


class Before(NamedTuple):
    """The norm whose output's gradient a pass makes; slopes and gradients are written."""

    u: Tensor
    state: Tensor
    slopes: Tensor
    gradients: Tensor  # [2, C]: of weight and bias
    multiplier: float
    batch_stats: bool
    expansion: Expansion | None = None


class Source(NamedTuple):
    """What a convolution reads: x, or u through the norm of `state`, or both merged into the block's input."""

    x: Tensor | None = None
    u: Tensor | None = None
    state: Tensor | None = None
    merged: Tensor | None = None
    rows: Tensor | None = None  # where the images of x stand, behind x
    align: int = 1  # of `rows`
    expansion: Expansion | None = None


def wide(*tensors: Tensor | None) -> bool:
    """Whether an offset into one of these needs more than 32 bits, with what the last program counts past the end."""
    return any(t is not None and t.numel() > 2**31 - FURTHEST for t in tensors)


def conv_arguments(geometry: Geometry, weight: Tensor) -> dict[str, int]:
    """The sides of the input, and how the weight lies in memory."""
    by_output, by_input, _, by_tap = weight.stride()
    sides = {"height": geometry.height, "width": geometry.width}
    return sides | {"by_output": by_output, "by_input": by_input, "by_tap": by_tap}


def product(stored: torch.dtype, precision: str) -> dict[str, Any]:
    """How the products are made."""
    return {"PRODUCT": product_dtype(STORED[stored]), "PRECISION": precision}


def norm_arguments(norm: Norm | None, state: Tensor | None, workspace: Workspace) -> dict[str, Any]:
    """What `finish_forward` reads and writes; nothing where no norm comes next."""
    if norm is None:
        return dict.fromkeys(NORM) | {"multiplier": 1.0, "eps": 0.0, "momentum": 0.0}
    return {
        "slots": workspace.slots, "counter": workspace.counter, "norm_weight": norm.weight, "norm_bias": norm.bias,
        "running_mean": norm.running_mean, "running_var": norm.running_var, "batches": norm.batches,
        "state_out": state, "multiplier": norm.multiplier, "eps": norm.eps, "momentum": norm.momentum,
    }  # fmt: skip


def norm_traffic(norm: Norm | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The arguments of `norm_arguments` that are read, and those that are written."""
    if norm is None:
        return (), ()
    slots = ("slots",) if norm.batch_stats else ()
    running = ("running_mean", "running_var", "batches") if norm.moves else ()
    read = running if norm.batch_stats else ("running_mean", "running_var")
    return ("norm_weight", "norm_bias", *slots, *read), ("state_out", *slots, *running)


def before_arguments(before: Before | None, workspace: Workspace) -> dict[str, Any]:
    u, state, slopes, gradients, multiplier, *_ = before or (None, None, None, None, 1.0)
    return {
        "u_in": u, "state_in": state, "slopes_in": slopes, "gradients_in": gradients, "slots": workspace.slots,
        "counter": workspace.counter, "multiplier": multiplier,
    }  # fmt: skip


def forward_pass(
    name: str, geometry: Geometry, prologue: str, source: Source, bits: Tensor | None, join: str, weight: Tensor,
    norm: Norm, u: Tensor, state: Tensor, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """u = conv(source behind its prologue: "input", "rows", "norm" or "merge"), and the state of the norm behind it."""
    g = geometry
    tile = conv_tile(g.inputs, g.outputs, u.dtype, precision, g.side, "conv_forward")
    tiles, columns = triton.cdiv(g.pixels_out, tile.m), triton.cdiv(g.outputs, tile.n)
    arguments = {
        "u_in": source.u, "x_in": source.x, "rows": source.rows, "state_in": source.state, "merged": source.merged,
        "bits": bits, "weight": weight, "u_out": u, **conv_arguments(g, weight),
        **norm_arguments(norm, state, workspace), "count": g.pixels_out,
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STRIDE": g.stride, "SIDE": g.side, "PROLOGUE": prologue,
        "ALIGN": source.align, "BITS": join, "BATCH_STATS": norm.batch_stats, "MOVES": norm.moves,
        **product(u.dtype, precision), "WIDE": wide(u, source.x, source.u),
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    own = g.pixels_out * g.inputs if prologue == "merge" else 0
    taps = g.pairs * g.inputs * columns + own
    weights, mask = g.weights * tiles, 0 if bits is None else bits.numel()
    vectors, written = norm_traffic(norm)
    reads = requested(
        arguments, "rows", "state_in", *vectors, u_in=taps, x_in=taps, weight=weights, bits=mask * (join == "join")
    )
    writes = requested(arguments, *written, merged=own, bits=mask, u_out=u.numel())
    grid = (tiles, columns)
    return Launch(name, conv_forward, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def merge_pass(source: Source, bits: Tensor | None, join: str) -> Launch:
    """A block's value: source.merged = relu(scale u + shift + x)."""
    x = source.x
    assert x is not None
    count, channels = x.numel() // x.shape[1], x.shape[1]
    arguments = {
        "u": source.u, "x": x, "state": source.state, "merged": source.merged, "bits": bits, "count": count,
    }  # fmt: skip
    constants = {"CHANNELS": channels, "BITS": join, "WIDE": wide(x), "BLOCK_M": STREAM_PIXELS, "BLOCK_K": 32}
    reads = requested(arguments, "u", "x", "state", *(("bits",) if join == "join" else ()))
    writes = requested(arguments, "merged", "bits")
    grid = (triton.cdiv(count, STREAM_PIXELS),)
    return Launch("merge", merge, grid, arguments, constants, WARPS, 1, reads, writes)


def arrive_pass(
    name: str, g: Tensor, skip: Tensor | None, mask: str, alive: Tensor | None, before: Before | None, g_in: Tensor,
    workspace: Workspace,
) -> Launch:  # fmt: skip
    """g_in: g, the skip's gradient beside it, behind the ReLUs that made the value it is the gradient of."""
    count, channels = g.numel() // g.shape[1], g.shape[1]
    arguments = {
        "g": g, "skip": skip, "alive": alive, "g_in": g_in, **before_arguments(before, workspace), "count": count,
    }  # fmt: skip
    block = stream_channels(channels)
    constants = {
        "IN": channels, "ADDS": skip is not None, "MASK": mask, "SUMS": before is not None,
        "BATCH_STATS": before is None or before.batch_stats, "WIDE": wide(g), "BLOCK_M": STREAM_PIXELS,
        "BLOCK_N": block,
    }  # fmt: skip
    sums = ("slots",) if before else ()
    reads = requested(arguments, "g", "skip", "alive", "u_in", "state_in", *sums)
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", *sums)
    grid = triton.cdiv(count, STREAM_PIXELS), triton.cdiv(channels, block)
    return Launch(name, arrive, grid, arguments, constants, WARPS, 1, reads, writes)


def inner_gradient_pass(
    name: str, geometry: Geometry, behind: Behind, weight: Tensor, before: Before, g_in: Tensor,
    workspace: Workspace, precision: str, values: int | None = None,
) -> Launch:  # fmt: skip
    """g_in: the gradient behind the ReLU inside the branch; the norm there has statistics of so many `values`."""
    g = geometry
    tile = conv_tile(g.outputs, g.inputs, g_in.dtype, precision, g.side, "inner_gradient")
    tiles, columns = triton.cdiv(g.pixels_in, tile.m), triton.cdiv(g.inputs, tile.n)
    arguments = {
        **behind.of_norm(), "weight": weight, "g_in": g_in, **before_arguments(before, workspace),
        "values": g.pixels_in if values is None else values, "count": g.pixels_in, **conv_arguments(g, weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STRIDE": g.stride, "SIDE": g.side, "BATCH_STATS": before.batch_stats,
        **product(g_in.dtype, precision), "WIDE": wide(g_in, behind.g), "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }  # fmt: skip
    taps, weights = g.pairs * g.outputs * columns, g.weights * tiles
    reads = requested(
        arguments, "state", "slopes", "u_in", "state_in", "slots", g=taps, u=taps, weight=weights
    )  # fmt: skip
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", "slots")
    grid = (tiles, columns)
    return Launch(name, inner_gradient, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def outer_gradient_pass(
    name: str, geometry: Geometry, behind: Behind, weight: Tensor, skip: Tensor | None, mask: str,
    alive: Tensor | None, before: Before | None, g_in: Tensor, workspace: Workspace, precision: str,
) -> Launch:  # fmt: skip
    """g_in: the gradient of the block's input, behind the ReLUs that made it."""
    g = geometry
    tile = conv_tile(g.outputs, g.inputs, g_in.dtype, precision, g.side, "outer_gradient")
    tiles, columns = triton.cdiv(g.pixels_in, tile.m), triton.cdiv(g.inputs, tile.n)
    arguments = {
        **behind.of_norm(), "weight": weight, "skip": skip, "alive": alive, "g_in": g_in,
        **before_arguments(before, workspace), "count": g.pixels_in, **conv_arguments(g, weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STRIDE": g.stride, "SIDE": g.side, "ADDS": skip is not None, "MASK": mask,
        "SUMS": before is not None, "BATCH_STATS": before is None or before.batch_stats,
        **product(g_in.dtype, precision), "WIDE": wide(g_in, behind.g), "BLOCK_M": tile.m, "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }  # fmt: skip
    taps, weights = g.pairs * g.outputs * columns, g.weights * tiles
    sums = ("slots",) if before else ()
    vectors = "state", "slopes", "skip", "alive", "u_in", "state_in", *sums
    reads = requested(arguments, *vectors, g=taps, u=taps, weight=weights)
    writes = requested(arguments, "g_in", "slopes_in", "gradients_in", *sums)
    grid = (tiles, columns)
    return Launch(name, outer_gradient, grid, arguments, constants, tile.warps, tile.stages, reads, writes, True)


def weight_gradient_pass(
    name: str, geometry: Geometry, behind: Behind, prologue: str, source: Source, weight: Tensor, partial: Tensor,
    first: int, scale: float, precision: str,
) -> Launch:  # fmt: skip
    """partial [slots, weights of the run]: this convolution's, from column `first` on, laid out as the weight is."""
    g, tile = geometry, weight_tile(geometry.inputs, geometry.outputs)
    slots, slot_size = partial.shape
    blocks = triton.cdiv(g.inputs, tile.i) * triton.cdiv(g.outputs, tile.o)
    own = partial[:, first : first + weight.numel()]
    arguments = {
        **behind.of_norm(), "u_in": source.u, "x_in": source.x, "rows": source.rows, "state_in": source.state,
        "partial": own, "scale": scale, "slot_size": slot_size,
        "pixels_of_slot": triton.cdiv(triton.cdiv(g.pixels_out, slots), tile.p) * tile.p, "count": g.pixels_out,
        **conv_arguments(g, weight),
    }  # fmt: skip
    constants = {
        "IN": g.inputs, "OUT": g.outputs, "STRIDE": g.stride, "SIDE": g.side, "ENTERS": behind.enters,
        "PROLOGUE": prologue, "ALIGN": source.align, **product(behind.g.dtype, precision),
        "WIDE": wide(behind.g, partial, source.x, source.u), "BLOCK_P": tile.p,
        "BLOCK_I": tile.i, "BLOCK_O": tile.o,
    }  # fmt: skip
    taps = g.pairs * g.inputs * triton.cdiv(g.outputs, tile.o)
    outputs = g.side * g.pixels_out * g.outputs * triton.cdiv(g.inputs, tile.i)
    reads = requested(arguments, "rows", "state", "slopes", "state_in", g=outputs, u=outputs, u_in=taps, x_in=taps)
    writes = requested(arguments, "partial")
    grid = (slots, g.side * blocks)
    kernel = "weight_gradient of rows" if prologue == "rows" else "weight_gradient"
    warps = warps_of(kernel, g.side, tile.i, tile.o, behind.g.dtype, precision)
    return Launch(name, weight_gradient, grid, arguments, constants, warps, tile.stages, reads, writes, True)
