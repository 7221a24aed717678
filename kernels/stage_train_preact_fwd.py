"""The forward of a run of gated pre-activation blocks: two launches a block, and one for the run's first norm.

x' = x + s conv2(relu(norm2 u1)) and u1 = conv1(relu(norm1 x)): what the backward reads of a block is x and u1.
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
from pathnet.kernels.vendor import cast_weights

KEPT = 4  # tensors a block: x, u1 and the states of both norms


def keeps(gates: Sequence[int], depth: int = 2) -> list[bool]:
    """What the backward of a run reads of each block: x (that of block 0 is the run's own input), u1, both states."""
    kept = [[has_gradient(gate)] * KEPT for gate in gates]
    kept[0][0] = False
    return [keep for block in kept for keep in block]


def kept_tensors(gates: Sequence[int], x: Tensor, shapes: Shapes, vendors: Collection[int] = ()) -> list[Tensor | None]:
    """Fresh memory for what `keeps` lists, None for the rest, and for what the vendor's convolutions put out."""
    wanted, kept = iter(keeps(gates)), list[Tensor | None]()
    for block, (one, _) in enumerate(shapes):
        kept += [empty(x, shapes[block - 1][-1]) if next(wanted) else None]
        kept += [empty(x, one) if next(wanted) and 2 * block not in vendors else None]
        kept += [_state(x, channels) if next(wanted) else None for channels in (one.inputs, one.outputs)]
    return kept


def stage_train_preact_fwd(x: Tensor, skip: Tensor | None, blocks: BlockRun) -> tuple[Tensor, list[Tensor | None]]:
    """Run the blocks; returns y and what `kept_tensors` lists. x and skip (h(x) of block 0) are in channels_last."""
    shapes = blocks.shapes(x.shape[0], x.shape[2], x.shape[3])
    vendors, space = blocks.vendors(shapes, x.dtype), run_workspace(x, shapes)
    kept, weights = kept_tensors(blocks.gates, x, shapes, vendors), cast_weights(blocks.weights, vendors, x.dtype)
    stream, through, last = x, x if skip is None else skip, len(shapes) - 1
    state = _or(kept[2], _state, x, x.shape[1])
    run(first_norm_pass(x, blocks.norms[0], state, space))
    for block, (one, two) in enumerate(shapes):
        place, at = 2 * block, KEPT * block
        state2 = _or(kept[at + 3], _state, x, one.outputs)
        read = "norm", Source(u=stream, state=state), None, "none", weights[place], blocks.norms[place + 1]
        if place in vendors:
            u1 = separate_forward(1, one, *read, state2, space)
            kept[at + 1] = u1 if has_gradient(blocks.gates[block]) else None
        else:
            u1 = _or(kept[at + 1], empty, x, one)
            run(forward_pass("forward conv1", one, *read, u1, state2, space, blocks.precision))
        below, _, state_below, _ = kept[at + KEPT : at + 2 * KEPT] if block < last else [None] * KEPT
        stream = _or(below, empty, x, two)
        state = _or(state_below, _state, x, two.outputs)
        norm1 = blocks.norms[place + 2] if block < last else None
        joins = Source(u=u1, state=state2), through, blocks.multipliers[block], weights[place + 1], norm1, stream
        if place + 1 in vendors:
            separate_residual(2, two, *joins, state, space)
        else:
            run(residual_pass("forward conv2", two, *joins, state, space, blocks.precision))
        through = stream
    return stream, kept


def _or(kept: Tensor | None, fresh, *like) -> Tensor:
    """What is kept, else fresh memory that lives until the next block."""
    return fresh(*like) if kept is None else kept


def _state(like: Tensor, channels: int) -> Tensor:
    return torch.empty((4, channels), dtype=torch.float32, device=like.device)
