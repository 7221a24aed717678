"""The backward of a run of gated pre-activation blocks: four launches a block with a gradient, and two for the ends.

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
from pathnet.kernels.stage_train_preact_fwd import KEPT
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
    behind, grad_skip = Behind(grad_y), None
    for block in reversed(range(len(gates))):
        if has_gradient(gates[block]):
            input_, *rest = kept[KEPT * block : KEPT * (block + 1)]
            behind, entered = _block(state, block, behind, x if block == 0 else input_, *rest)
            if block == 0 and has_skip:
                behind, grad_skip = behind._replace(skip=None), entered
    if has_skip and not has_gradient(gates[0]):
        grad_skip = _departed(behind) if needs_skip else None
        return Gradients(None, grad_skip, partial.total(), state.gradients)
    grad_x = _departed(behind) if needs_x else None
    grad_skip = _departed(Behind(grad_y)) if grad_skip is grad_y else grad_skip  # an op never returns its input
    return Gradients(grad_x, grad_skip if needs_skip else None, partial.total(), state.gradients)


def _block(state: _Run, block: int, behind: Behind, x: Tensor, u1: Tensor, *states: Tensor) -> tuple[Behind, Tensor]:
    """From the gradient of the block's value to that behind its norm1, and the former itself."""
    blocks, (one, two), index = state.blocks, state.shapes[block], 2 * block
    norm1, norm2 = state.norm(index, x, states[0]), state.norm(index + 1, u1, states[1])
    scale, weight1, weight2 = blocks.multipliers[block], *blocks.weights[index : index + 2]
    if index + 1 in state.vendors:
        entered = gradient_entering(2, behind)
        behind2 = separate_inner(2, two, entered, weight2, norm2, state.space, state.partial, index + 1, scale)
    else:
        entered = behind.g if behind.enters == "value" else torch.empty_like(behind.g)
        behind2 = Behind(torch.empty_like(u1), u1, norm2.state, norm2.slopes)
        run(
            residual_gradient_pass("data gradient conv2", two, behind, scale, entered, weight2, norm2, behind2.g,
                                   state.space, blocks.precision)
        )  # fmt: skip
        state.partial.add(index + 1, Behind(entered), "norm", Source(u=u1, state=norm2.state), scale)
    skip = None if blocks.gates[block] == Gate.RESIDUAL else entered
    if index in state.vendors:
        inner = gradient_entering(1, behind2), weight1, norm1, state.space, state.partial, index
        return separate_inner(1, one, *inner)._replace(skip=skip), entered
    behind1 = Behind(torch.empty_like(x), x, norm1.state, norm1.slopes, skip)
    run(
        inner_gradient_pass("data gradient conv1", one, behind2, weight1, norm1, behind1.g, state.space,
                            blocks.precision)
    )  # fmt: skip
    state.partial.add(index, behind2, "norm", Source(u=x, state=norm1.state))
    return behind1, entered


def _departed(behind: Behind) -> Tensor:
    entered = torch.empty_like(behind.g)
    run(depart_pass(behind, entered))
    return entered
