"""The forward of a run of gated pre-activation blocks: a launch a convolution, and one for the run's first norm.

x' = x + s conv2(relu(norm2 u1)) and u1 = conv1(relu(norm1 x)), or with a third convolution behind u2: what the backward
reads of a block is x and what its convolutions but the last put out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pathnet.kernels.block_run import BlockRun, Shapes, empty, run_workspace
from pathnet.kernels.launch import run
from pathnet.kernels.passes import Source, forward_pass
from pathnet.kernels.preact_passes import first_norm_pass, residual_pass
from pathnet.kernels.separate import separate_forward, separate_residual
from pathnet.kernels.stage_train_plan import has_gradient
from pathnet.kernels.traffic import Geometry
from pathnet.kernels.vendor import cast_weights
from pathnet.kernels.workspace import Workspace


def keeps(gates: Sequence[int], depth: int) -> list[bool]:
    """What the backward of a run reads of each block: x (that of block 0 is the run's own input), each u but the last,
    and the state of each norm."""
    kept = [[has_gradient(gate)] * (2 * depth) for gate in gates]
    kept[0][0] = False
    return [keep for block in kept for keep in block]


def kept_tensors(gates: Sequence[int], x: Tensor, shapes: Shapes, vendors: Collection[int] = ()) -> list[Tensor | None]:
    """Fresh memory for what `keeps` lists, None for the rest, and for what the vendor's convolutions put out."""
    depth = len(shapes[0])
    wanted, kept = iter(keeps(gates, depth)), list[Tensor | None]()
    for block, convs in enumerate(shapes):
        kept += [empty(x, shapes[block - 1][-1]) if next(wanted) else None]
        for place, geometry in enumerate(convs[:-1], depth * block):
            kept += [empty(x, geometry) if next(wanted) and place not in vendors else None]
        kept += [_state(x, geometry.inputs) if next(wanted) else None for geometry in convs]
    return kept


def stage_train_preact_fwd(x: Tensor, skip: Tensor | None, blocks: BlockRun) -> tuple[Tensor, list[Tensor | None]]:
    """Run the blocks; returns y and what `kept_tensors` lists. x and skip (h(x) of block 0) are in channels_last."""
    shapes, depth = blocks.shapes(x.shape[0], x.shape[2], x.shape[3]), blocks.depth
    vendors, space = blocks.vendors(shapes, x.dtype), run_workspace(x, shapes)
    kept, through = kept_tensors(blocks.gates, x, shapes, vendors), x if skip is None else skip
    blocks = blocks._replace(weights=cast_weights(blocks.weights, vendors, x.dtype))
    source = Source(u=x, state=_or(kept[depth], _state, x, x.shape[1]))
    run(first_norm_pass(x, blocks.norms[0], source.state, space))
    for block, convs in enumerate(shapes):
        at, place = 2 * depth * block, depth * block
        for index, geometry in enumerate(convs[:-1]):
            state = _or(kept[at + depth + index + 1], _state, x, geometry.outputs)
            read = "norm", source, None, "none", blocks.weights[place + index], blocks.norms[place + index + 1]
            if place + index in vendors:
                u = separate_forward(index + 1, geometry, *read, state, space)
                kept[at + index + 1] = u if has_gradient(blocks.gates[block]) else None
            else:
                u = _or(kept[at + index + 1], empty, x, geometry)
                run(forward_pass(f"forward conv{index + 1}", geometry, *read, u, state, space, blocks.precision))
            source = Source(u=u, state=state)
        through, state = _residual(blocks, vendors, block, convs[-1], source, through, kept, space)
        source = Source(u=through, state=state)
    return through, kept


def _residual(
    blocks: BlockRun, vendors: Collection[int], block: int, geometry: Geometry, source: Source, through: Tensor,
    kept: Sequence[Tensor | None], space: Workspace,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The last convolution of a block: its value, and the state of the norm that comes next, if one does."""
    depth, last = blocks.depth, block + 1 == len(blocks.gates)
    at, place = 2 * depth * (block + 1), depth * (block + 1) - 1
    value = _or(None if last else kept[at], empty, through, geometry)
    state = _or(None if last else kept[at + depth], _state, through, geometry.outputs)
    norm = None if last else blocks.norms[place + 1]
    joins = geometry, source, through, blocks.multipliers[block], blocks.weights[place], norm, value, state, space
    if place in vendors:
        separate_residual(depth, *joins)
    else:
        run(residual_pass(f"forward conv{depth}", *joins, blocks.precision))
    return value, state


def _or(kept: Tensor | None, fresh, *like) -> Tensor:
    """What is kept, else fresh memory that lives until the next block."""
    return fresh(*like) if kept is None else kept


def _state(like: Tensor, channels: int) -> Tensor:
    return torch.empty((4, channels), dtype=torch.float32, device=like.device)
