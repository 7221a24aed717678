"""The backward of a run of gated basic blocks: four launches a block with a gradient, and two for the ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.launch import run
from pathnet.kernels.passes import (
    Before,
    Behind,
    Source,
    arrive_pass,
    inner_gradient_pass,
    outer_gradient_pass,
    sum_slots_pass,
    weight_gradient_pass,
)
from pathnet.kernels.settings import weight_slots, weight_tile
from pathnet.kernels.stage_train_fwd import BlockRun
from pathnet.kernels.stage_train_plan import before, has_gradient, mask_at
from pathnet.kernels.traffic import Geometry
from pathnet.kernels.workspace import Workspace, workspace


class Gradients(NamedTuple):
    """Of a run; None where `needs` asks for nothing."""

    x: Tensor | None
    skip: Tensor | None
    weights: Tensor | None  # of all convolutions that need one, in a row, each laid out as its weight is
    norms: Tensor  # float32 [norms, 2, C]: of weight and bias; unwritten for FORWARD blocks


class _Run(NamedTuple):
    blocks: BlockRun
    shapes: list[tuple[Geometry, Geometry]]
    kept: Sequence[Tensor | None]
    slopes: Tensor  # float32 [norms, 2, C]
    gradients: Tensor  # as slopes
    space: Workspace
    partial: Tensor | None  # float32 [slots, weights]
    columns: dict[int, int]  # index of a convolution -> its first column in `partial`


def stage_train_bwd(
    grad_y: Tensor, x: Tensor, kept: Sequence[Tensor | None], blocks: BlockRun, has_skip: bool,
    needs_x: bool, needs_skip: bool, needs_weights: Sequence[bool],
) -> Gradients:  # fmt: skip
    """The gradients asked for; grad_y and x are in channels_last, and `kept` is that of `stage_train_fwd`.

    With `has_skip` that of the shortcut leaves block 0 beside that of x, and where block 0 is FORWARD instead of it.
    """
    shapes, gates = list(blocks.geometry(x.shape[0], x.shape[2], x.shape[3])), blocks.gates
    slopes = grad_y.new_empty((2 * len(gates), 2, shapes[0][1].outputs), dtype=torch.float32)
    space = workspace(x, shapes[0][0].pixels_in, max(shapes[0][1].outputs, x.shape[1]))
    partial, columns = partial_sums(blocks, shapes, grad_y, needs_weights)
    state = _Run(blocks, shapes, kept, slopes, torch.empty_like(slopes), space, partial, columns)
    block = before(gates, len(gates))
    g, bits = torch.empty_like(grad_y), kept[-1]
    assert bits is not None
    run(arrive_pass(grad_y, bits, _before(state, block), g, space))
    grad_x, grad_skip = None, None
    separate = has_skip and has_gradient(gates[0])
    while block is not None:
        if block == 0 and separate:
            grad_skip = g
        below = before(gates, block)
        inner = _inner(state, block, g, x)
        wanted = below is not None or (needs_skip if has_skip and not separate else needs_x)
        g = _outer(state, block, below, inner, None if block == 0 and separate else g, x) if wanted else None
        block = below
    if has_skip and not separate:
        grad_skip = g
    else:
        grad_x = g
    return Gradients(
        grad_x if needs_x else None,
        grad_skip if needs_skip else None,
        summed(state.partial, state.blocks.weights[0]),
        state.gradients,
    )


def _inner(state: _Run, block: int, g: Tensor, x: Tensor) -> Behind:
    """From the gradient of the block's sum to that behind norm1, and the gradients of both weights."""
    _, two = state.shapes[block]
    kept_x, u1, u2, states, _ = state.kept[5 * block : 5 * block + 5]
    assert u1 is not None and u2 is not None and states is not None
    weights, precision = state.blocks.weights[2 * block : 2 * block + 2], state.blocks.precision
    behind2 = Behind(g, u2, states[1], state.slopes[2 * block + 1])
    behind1 = Behind(torch.empty_like(u1), u1, states[0], state.slopes[2 * block])
    norm1 = _norm_before(state, 2 * block, u1, states[0])
    run(inner_gradient_pass("data gradient conv2", two, behind2, weights[1], norm1, behind1.g, state.space, precision))
    _weight_gradient(state, 2 * block + 1, behind2, "norm", Source(u=u1, state=states[0]))
    _weight_gradient(state, 2 * block, behind1, "input", Source(x=x if block == 0 else kept_x))
    return behind1


def _outer(state: _Run, block: int, below: int | None, behind: Behind, skip: Tensor | None, x: Tensor) -> Tensor:
    """From the gradient behind norm1 to that of the sum of block `below`, or of the run's input."""
    one, _ = state.shapes[block]
    gates, precision = state.blocks.gates, state.blocks.precision
    mask = mask_at(gates, block)
    alive = state.kept[5 * block + 4] if mask == "bits" else state.kept[5 * block] if mask == "values" else None
    skip = None if gates[block] == Gate.RESIDUAL else skip
    shape = one.images, one.inputs, one.height, one.width
    g_in = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    run(
        outer_gradient_pass("data gradient conv1", one, behind, state.blocks.weights[2 * block], skip, mask, alive,
                            _before(state, below), g_in, state.space, precision)
    )  # fmt: skip
    return g_in


def _before(state: _Run, block: int | None) -> Before | None:
    """The last norm of `block`, whose sums the pass that makes its gradient forms."""
    if block is None:
        return None
    u2, states = state.kept[5 * block + 2 : 5 * block + 4]
    assert u2 is not None and states is not None
    return _norm_before(state, 2 * block + 1, u2, states[1])


def _norm_before(state: _Run, index: int, u: Tensor, of_norm: Tensor) -> Before:
    norm = state.blocks.norms[index]
    return Before(u, of_norm, state.slopes[index], state.gradients[index], norm.multiplier, norm.batch_stats)


# ---- weight gradients ------------------------------------------------------------------------------------------------


def partial_sums(
    blocks: BlockRun, shapes: Sequence[tuple[Geometry, Geometry]], like: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, dict[int, int]]:
    """Slots for all weights of the run, float32 [slots, weights], and each convolution's first column."""
    columns, width = {}, 0
    for index, (weight, need) in enumerate(zip(blocks.weights, needs, strict=True)):
        if need:
            columns[index], width = width, width + weight.numel()
    if not columns:
        return None, columns
    largest, geometry = max(w.numel() for w in blocks.weights), shapes[0][1]
    tile = weight_tile(geometry.inputs, geometry.outputs, like.dtype)
    tiles = triton.cdiv(geometry.inputs, tile.i) * triton.cdiv(geometry.outputs, tile.o)
    slots = weight_slots(geometry.pixels_out, tiles, tile.p, largest, like.element_size(), geometry.outputs)
    return torch.empty((slots, width), dtype=torch.float32, device=like.device), columns


def _weight_gradient(state: _Run, index: int, behind: Behind, prologue: str, source: Source) -> None:
    if index not in state.columns:
        return
    assert state.partial is not None
    name, geometry = f"weight gradient conv{index % 2 + 1}", state.shapes[index // 2][index % 2]
    weight, first = state.blocks.weights[index], state.columns[index]
    run(
        weight_gradient_pass(name, geometry, behind, prologue, source, weight, state.partial, first,
                             state.blocks.precision)
    )  # fmt: skip


def summed(partial: Tensor | None, like: Tensor) -> Tensor | None:
    """The weight gradients of a run, in the dtype of one of its weights."""
    if partial is None:
        return None
    total = torch.empty(partial.shape[1], dtype=like.dtype, device=partial.device)
    run(sum_slots_pass(partial, total))
    return total
