"""What each block of a run does where gates are known on the device alone: one kernel writes it for all launches.

The launches are those of a run whose blocks are all FULL, with memory of its own for what each block makes. A table
says where the images stand that a block reads and writes (kernels/rows.py), a flag whether its kernels do anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.rows import Table, align_of
from pathnet.kernels.settings import WARPS
from pathnet.kernels.traffic import requested

OFF, FULL, FORWARD = (tl.constexpr(int(gate)) for gate in (Gate.OFF, Gate.FULL, Gate.FORWARD))


@triton.jit
def plan_blocks(gates, tables, flags, blocks, images, size, x_to_values, y_to_values, g_to_grad_x, BLOCK: tl.constexpr):
    """Of block b: tables int64 [sources, targets, masks, arrivals][blocks + 1, images], flags int32 [2, blocks + 1].

    Program `blocks` plans the ends: images that run nothing, and the mask where the first block is FORWARD.
    """
    b = tl.program_id(0)
    gate = tl.load(gates + b, b < blocks, 0).to(tl.int32)
    before = tl.full((), -1, tl.int32)  # the last block that ran
    begun = tl.full((), -1, tl.int32)  # whose mask is open
    first = tl.full((), -1, tl.int32)
    runs_later = tl.full((), 0, tl.int32)
    full_later = tl.full((), 0, tl.int32)
    for other in range(0, blocks):
        own = tl.load(gates + other).to(tl.int32)
        earlier = other < b
        begins = (own == FULL) | ((own == FORWARD) & (begun < 0))
        before = tl.where(earlier & (own != OFF), other, before)
        begun = tl.where(earlier & begins, other, begun)
        first = tl.where((first < 0) & (own != OFF), other, first)
        runs_later = tl.where((other > b) & (own != OFF), 1, runs_later)
        full_later = tl.where(((other > b) | (b == blocks)) & (own == FULL), 1, full_later)
    begins = (gate == FULL) | (begun < 0)
    mask = tl.where(b == blocks, first, tl.where(begins, b, begun))
    rows = (blocks + 1) * images
    value = size.to(tl.int64) * images
    for start in range(0, images, BLOCK):
        image = start + tl.arange(0, BLOCK)
        inside, at = image < images, tables + b * images + image
        own = image.to(tl.int64) * size
        tl.store(at, own + tl.where(before < 0, 0, x_to_values + before * value), inside)
        tl.store(at + rows, own + tl.where(runs_later > 0, y_to_values + b * value, 0), inside)
        own_mask = (mask * images + image).to(tl.int64)
        tl.store(at + 2 * rows, tl.where(begins | (b == blocks), own_mask, -1 - own_mask), inside)
        tl.store(at + 3 * rows, own + tl.where(full_later > 0, g_to_grad_x, 0), inside)
    forward_first = (first >= 0) & (tl.load(gates + first, first >= 0, 0) == FORWARD)
    tl.store(flags + b, tl.where(b == blocks, before < 0, gate != OFF).to(tl.int32))
    tl.store(flags + blocks + 1 + b, tl.where(b == blocks, forward_first, gate == FULL).to(tl.int32))


class Plan(NamedTuple):
    """The tables of each block, and of the ends behind the last; flags are views of one number."""

    sources: list[Table]  # behind x: x or the values
    targets: list[Table]  # behind y: y or the values
    own: Table  # each image in its own row
    masks: list[Table]
    arrivals: list[Table]  # behind grad_y: grad_y or grad_x
    runs: list[Tensor]  # at the end: whether no block runs
    passes: list[Tensor]  # whether a block passes a gradient; at the end: whether the first one that runs is FORWARD


def plan(gates: Tensor, x: Tensor, y: Tensor, values: Tensor, grad_y: Tensor, grad_x: Tensor) -> Plan:
    """The plan for gates int8 [blocks] on the device of x; y and values are not read, nor are the gradients."""
    blocks, images, size = len(gates), len(x), x[0].numel()
    tables = torch.empty((4, blocks + 1, images), dtype=torch.int64, device=x.device)
    flags = torch.empty((2, blocks + 1), dtype=torch.int32, device=x.device)
    distances = _distance(x, values), _distance(y, values), _distance(grad_y, grad_x)
    arguments = {
        "gates": gates, "tables": tables, "flags": flags, "blocks": blocks, "images": images, "size": size,
        "x_to_values": distances[0], "y_to_values": distances[1], "g_to_grad_x": distances[2],
    }  # fmt: skip
    reads, writes = requested(arguments, gates=len(gates)), requested(arguments, "tables", "flags")
    run(Launch("plan", plan_blocks, (blocks + 1,), arguments, {"BLOCK": 128}, WARPS, 1, reads, writes))
    align, places = align_of(size, *distances), ((images, 0, 0), (images, 0), (images,), (images, 0))
    described = [
        [Table(row, place, align) for row in rows] for rows, place in zip(tables.unbind(0), places, strict=True)
    ]
    sources, targets, masks, arrivals = described
    own = targets[-1]._replace(places=(images,))
    return Plan(
        sources, targets, own, masks, arrivals, *([flag.view(1) for flag in row.unbind(0)] for row in flags.unbind(0))
    )


def _distance(start: Tensor, end: Tensor) -> int:
    return (end.data_ptr() - start.data_ptr()) // start.element_size()
