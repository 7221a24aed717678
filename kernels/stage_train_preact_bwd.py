"""The backward of a run of gated pre-activation blocks: two launches a convolution, and two for the ends.

FORWARD blocks launch nothing: without a ReLU behind the sum the gradient passes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.block_run import BlockRun, Shapes, norm_tables, numbers_of, run_workspace, widest
from pathnet.kernels.launch import run
from pathnet.kernels.partial_sums import PartialSums, partial_sums
from pathnet.kernels.passes import Before, Behind, Source, inner_gradient_pass
from pathnet.kernels.preact_passes import depart_pass, residual_gradient_pass
from pathnet.kernels.separate import gradient_entering, separate_inner
from pathnet.kernels.stage_train_bwd import Gradients
from pathnet.kernels.stage_train_plan import has_gradient
from pathnet.kernels.vendor import cast_weights
from pathnet.kernels.workspace import Workspace


class _Run(NamedTuple):
    blocks: BlockRun
    shapes: Shapes
    slopes: Tensor  # float32 [norms, 2, most channels]
    gradients: Tensor  # as slopes
    space: Workspace
    partial: PartialSums
    vendors: frozenset[int]  # convolutions in the separate-pass form

    def norm(self, index: int, u: Tensor, state: Tensor) -> Before:
        slopes, gradients = (numbers_of(table[index], 2, u.shape[1]) for table in (self.slopes, self.gradients))
        return Before(u, state, slopes, gradients, 1.0, self.blocks.norms[index].batch_stats)


def stage_train_preact_bwd(
    grad_y: Tensor, x: Tensor, kept: Sequence[Tensor | None], blocks: BlockRun, has_skip: bool,
    needs_x: bool, needs_skip: bool, needs_weights: Sequence[bool],
) -> Gradients:  # fmt: skip
    """The gradients asked for; grad_y and x are in channels_last, and `kept` is that of `stage_train_preact_fwd`.

    With `has_skip` that of the shortcut leaves block 0 beside that of x, and where block 0 is FORWARD instead of it.
    """
    shapes, gates = blocks.shapes(x.shape[0], x.shape[2], x.shape[3]), blocks.gates
    slopes = norm_tables(grad_y, len(blocks.norms), 2, max(x.shape[1], widest(shapes)))
    vendors, space = blocks.vendors(shapes, x.dtype), run_workspace(x, shapes)
    partial = partial_sums(blocks, shapes, grad_y, needs_weights, vendors)
    read = [place for place in vendors if has_gradient(gates[place // blocks.depth])]
    blocks = blocks._replace(weights=cast_weights(blocks.weights, read, grad_y.dtype))
    state = _Run(blocks, shapes, slopes, torch.empty_like(slopes), space, partial, vendors)
    behind, grad_skip, width = Behind(grad_y), None, 2 * blocks.depth
    for block in reversed(range(len(gates))):
        if has_gradient(gates[block]):
            first, *rest = kept[width * block : width * (block + 1)]
            own = [x if block == 0 else first, *rest]
            behind, entered = _block(state, block, behind, [t for t in own if t is not None])
            if block == 0 and has_skip:
                behind, grad_skip = behind._replace(skip=None), entered
    if has_skip and not has_gradient(gates[0]):
        grad_skip = _departed(behind) if needs_skip else None
        return Gradients(None, grad_skip, partial.total(), state.gradients)
    grad_x = _departed(behind) if needs_x else None
    grad_skip = _departed(Behind(grad_y)) if grad_skip is grad_y else grad_skip  # an op never returns its input
    return Gradients(grad_x, grad_skip if needs_skip else None, partial.total(), state.gradients)


def _block(state: _Run, block: int, behind: Behind, kept: Sequence[Tensor]) -> tuple[Behind, Tensor]:
    """From the gradient of the block's value to that behind its first norm, and the former itself.

    kept: x, each u but the last, and the state of each norm.
    """
    depth, place = state.blocks.depth, state.blocks.depth * block
    norms = [state.norm(place + index, kept[index], kept[depth + index]) for index in range(depth)]
    behind, entered = _last(state, block, behind, norms[-1])
    for index in reversed(range(depth - 1)):
        behind = _inner(state, block, index, behind, norms[index])
    return behind._replace(skip=None if state.blocks.gates[block] == Gate.RESIDUAL else entered), entered


def _last(state: _Run, block: int, behind: Behind, norm: Before) -> tuple[Behind, Tensor]:
    """Through the last convolution of a block: the gradient behind its norm, and that of the block's value."""
    blocks, geometry, scale = state.blocks, state.shapes[block][-1], state.blocks.multipliers[block]
    depth, place = blocks.depth, blocks.depth * (block + 1) - 1
    weight = blocks.weights[place]
    if place in state.vendors:
        entered = gradient_entering(depth, behind)
        through = separate_inner(depth, geometry, entered, weight, norm, state.space, state.partial, place, scale)
        return through, entered
    entered = behind.g if behind.enters == "value" else torch.empty_like(behind.g)
    through = Behind(torch.empty_like(norm.u), norm.u, norm.state, norm.slopes)
    run(
        residual_gradient_pass(f"data gradient conv{depth}", geometry, behind, scale, entered, weight, norm, through.g,
                               state.space, blocks.precision)
    )  # fmt: skip
    state.partial.add(place, Behind(entered), "norm", Source(u=norm.u, state=norm.state), scale)
    return through, entered


def _inner(state: _Run, block: int, index: int, behind: Behind, norm: Before) -> Behind:
    """Through another convolution: the gradient behind its norm."""
    blocks, geometry, place = state.blocks, state.shapes[block][index], state.blocks.depth * block + index
    weight = blocks.weights[place]
    if place in state.vendors:
        entered = gradient_entering(index + 1, behind)
        return separate_inner(index + 1, geometry, entered, weight, norm, state.space, state.partial, place)
    through = Behind(torch.empty_like(norm.u), norm.u, norm.state, norm.slopes)
    run(
        inner_gradient_pass(f"data gradient conv{index + 1}", geometry, behind, weight, norm, through.g, state.space,
                            blocks.precision)
    )  # fmt: skip
    state.partial.add(place, behind, "norm", Source(u=norm.u, state=norm.state))
    return through


def _departed(behind: Behind) -> Tensor:
    entered = torch.empty_like(behind.g)
    run(depart_pass(behind, entered))
    return entered
