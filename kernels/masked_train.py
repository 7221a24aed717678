"""A run of basic blocks whose gates (OFF, FULL, FORWARD) are a tensor on the device: launches and memory of all FULL.

So one captured CUDA graph serves all gates, and nobody waits for the device. A kernel whose block the gate shuts reads
one number and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.block_run import BlockRun
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.masked_plan import Plan, plan
from pathnet.kernels.partial_sums import PartialSums, partial_sums
from pathnet.kernels.passes import Before, Behind, Source, forward_pass, inner_gradient_pass
from pathnet.kernels.rows import copy_pass
from pathnet.kernels.rows_train_fwd import fresh, geometries
from pathnet.kernels.rows_train_passes import (
    Masks,
    arrive_rows_pass,
    mask_rows_pass,
    merge_rows_pass,
    outer_rows_pass,
)
from pathnet.kernels.settings import SUMMED, WARPS
from pathnet.kernels.stage_train_bwd import Gradients
from pathnet.kernels.traffic import requested
from pathnet.kernels.workspace import Workspace, workspace


class MaskedKept(NamedTuple):
    """What the backward of a run reads, and memory for what any gates may write of it."""

    values: Tensor  # of each block, [blocks N, C, H, W]
    bits: Tensor  # uint8 [blocks N, H W, ceil(C / 8)]
    blocks: list[tuple[Tensor, Tensor, Tensor]]  # u1, u2 and the norms' states of each

    def flat(self) -> list[Tensor]:
        return [self.values, self.bits, *(tensor for own in self.blocks for tensor in own)]


def masked_kept_of(flat: Sequence[Tensor]) -> MaskedKept:
    """The inverse of `MaskedKept.flat`."""
    values, bits, *rest = flat
    return MaskedKept(values, bits, list(zip(*[iter(rest)] * 3, strict=True)))


def masked_kept(x: Tensor, blocks: BlockRun) -> MaskedKept:
    """Fresh memory for it."""
    (n, channels, h, w), count = x.shape, len(blocks.strides)
    values = torch.empty((count * n, h, w, channels), dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    bits = torch.empty((count * n, h * w, -(-channels // 8)), dtype=torch.uint8, device=x.device)
    return MaskedKept(values, bits, [fresh(x, *own) for own in geometries(x, blocks, [n] * count)])


def masked_train_fwd(x: Tensor, gates: Tensor, blocks: BlockRun) -> tuple[Tensor, MaskedKept]:
    """x, channels_last, through blocks of gates int8 [blocks] on its device."""
    kept, y = masked_kept(x, blocks), torch.empty_like(x)
    shapes = geometries(x, blocks, [len(x)] * len(gates))
    space = workspace(x, shapes[0][0].pixels_in, x.shape[1])
    planned = plan(gates, x, y, kept.values, x, x)
    for index, ((one, two), (u1, u2, states)) in enumerate(zip(shapes, kept.blocks, strict=True)):
        sources, targets, gate = planned.sources[index], planned.targets[index], planned.runs[index]
        weights, norms = blocks.weights[2 * index : 2 * index + 2], blocks.norms[2 * index : 2 * index + 2]
        source, inner = Source(x=x, rows=sources.rows, align=sources.align), Source(u=u1, state=states[0])
        masks = Masks(kept.bits, planned.masks[index])
        for launch in (
            forward_pass("masked: forward conv1", one, "rows", source, None, "none", weights[0], norms[0], u1,
                         states[0], space, blocks.precision),
            forward_pass("masked: forward conv2", two, "norm", inner, None, "none", weights[1], norms[1], u2,
                         states[1], space, blocks.precision),
            merge_rows_pass(u2, states[1], sources, targets, masks, len(x), x, y, kept.values),
        ):  # fmt: skip
            run(launch._replace(gate=gate))
    run(copy_pass(x, y, planned.own)._replace(gate=planned.runs[-1]))
    return y, kept


class _Run(NamedTuple):
    blocks: BlockRun
    planned: Plan
    kept: MaskedKept
    x: Tensor
    grad_y: Tensor
    grad_x: Tensor
    g: Tensor  # of the sum of a block, and
    g1: Tensor  # behind its norm1
    gradients: Tensor  # float32 [norms, 2, C]
    space: Workspace
    partial: PartialSums


def masked_train_bwd(
    grad_y: Tensor, x: Tensor, gates: Tensor, kept: Sequence[Tensor], blocks: BlockRun, needs_weights: Sequence[bool]
) -> Gradients:
    """The gradients of x, of the norms and of the weights asked for; zeros for blocks that the gates do not train."""
    held, grad_x = masked_kept_of(kept), torch.empty_like(grad_y)
    shapes = geometries(x, blocks, [len(x)] * len(gates))
    partial = partial_sums(blocks, shapes, grad_y, needs_weights)
    gradients = torch.zeros((len(blocks.norms), 2, x.shape[1]), dtype=torch.float32, device=x.device)
    planned = plan(gates, x, x, held.values, grad_y, grad_x)
    state = _Run(blocks, planned, held, x, grad_y, grad_x, torch.empty_like(grad_y), torch.empty_like(grad_y),
                 gradients, workspace(x, shapes[0][0].pixels_in, x.shape[1]), partial)  # fmt: skip
    for index in reversed(range(len(gates))):
        for launch in _block(state, index):
            run(launch._replace(gate=planned.passes[index]))
    own, masks = planned.own, Masks(held.bits, planned.masks[-1])
    run(mask_rows_pass(grad_y, grad_x, planned.arrivals[-1], own, masks)._replace(gate=planned.passes[-1]))
    run(copy_pass(grad_y, grad_x, own)._replace(gate=planned.runs[-1]))
    return Gradients(grad_x, None, _summed(state), gradients)


def _block(state: _Run, index: int) -> list[Launch]:
    """The backward of one block, as that of a block whose gates differ from image to image (rows_train_bwd.py)."""
    x, planned, precision = state.x, state.planned, state.blocks.precision
    one, two = geometries(x, state.blocks, [len(x)] * len(state.kept.blocks))[index]
    u1, u2, states = state.kept.blocks[index]
    weights, norms = state.blocks.weights[2 * index :], state.blocks.norms[2 * index :]
    slopes, space = torch.empty_like(state.gradients[:2]), state.space
    before1, before2 = (
        Before(u, states[i], slopes[i], state.gradients[2 * index + i], norms[i].multiplier, norms[i].batch_stats)
        for i, u in enumerate((u1, u2))
    )
    behind1, behind2 = Behind(state.g1, u1, states[0], slopes[0]), Behind(state.g, u2, states[1], slopes[1])
    sources, masks = planned.sources[index], Masks(state.kept.bits, planned.masks[index])
    read = Source(u=u1, state=states[0]), Source(x=x, rows=sources.rows, align=sources.align)
    launches = [
        arrive_rows_pass(state.grad_y, state.grad_x, planned.arrivals[index], masks, before2, one.pixels_in, state.g,
                         space),
        inner_gradient_pass("masked: data gradient conv2", two, behind2, weights[1], before1, state.g1, space,
                            precision),
    ]  # fmt: skip
    for place, behind, prologue, source in ((1, behind2, "norm", read[0]), (0, behind1, "rows", read[1])):
        if launch := state.partial.launch(2 * index + place, behind, prologue, source):
            launches.append(launch._replace(name=f"masked: {launch.name}"))
    outer = outer_rows_pass(one, behind1, weights[0], state.g, len(x), state.grad_x, planned.own, precision)
    return [*launches, outer]


# ---- weight gradients ------------------------------------------------------------------------------------------------


@triton.jit
def sum_masked_slots(partial, total, passes, slots, slot_size, size, BLOCK: tl.constexpr):
    """The weight gradient of a convolution: the sum of its slots, or zeros where its block passes no gradient."""
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < size
    alive = inside & (tl.load(passes) != 0)
    sums = tl.zeros((BLOCK,), tl.float32)
    for _ in range(slots):
        sums += tl.load(partial + entries, alive, 0.0)
        partial += slot_size
    tl.store(total + entries, sums, inside)


def _summed(state: _Run) -> Tensor | None:
    partial = state.partial.sums
    if partial is None:
        return None
    total = torch.empty(partial.shape[1], dtype=state.blocks.weights[0].dtype, device=partial.device)
    for index, column in state.partial.columns.items():
        size = state.blocks.weights[index].numel()
        own = {"partial": partial[:, column:], "total": total[column:], "passes": state.planned.passes[index // 2]}
        arguments = {**own, "slots": len(partial), "slot_size": partial.shape[1], "size": size}
        reads = requested(arguments, partial=len(partial) * size, passes=1)
        writes, grid = requested(arguments, total=size), (triton.cdiv(size, SUMMED),)
        touched = {**reads, **writes}
        run(Launch("masked: sum of weight gradients", sum_masked_slots, grid, arguments, {"BLOCK": SUMMED}, WARPS, 1,
                   reads, writes, touched=touched))  # fmt: skip
    return total
