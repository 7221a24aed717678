"""The backward of a run of basic blocks whose gates differ from image to image: five launches a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathnet.kernels.block_run import BlockRun, Shapes, empty
from pathnet.kernels.launch import run
from pathnet.kernels.partial_sums import PartialSums, partial_sums
from pathnet.kernels.passes import Before, Behind, Source, inner_gradient_pass
from pathnet.kernels.rows import Listed, Table, copy_pass, reads_rows, tables
from pathnet.kernels.rows_train_fwd import RowsKept, geometries, kept_of
from pathnet.kernels.rows_train_passes import Masks, arrive_rows_pass, mask_rows_pass, outer_rows_pass
from pathnet.kernels.rows_train_plan import RowsPlan, plan_rows
from pathnet.kernels.stage_train_bwd import Gradients
from pathnet.kernels.workspace import Workspace, workspace


class _Run(NamedTuple):
    blocks: BlockRun
    plan: RowsPlan
    kept: RowsKept
    shapes: Shapes  # over the images with a gradient
    x: Tensor
    grad_y: Tensor
    grad_x: Tensor
    listed: list[Table]
    slopes: Tensor  # float32 [norms, 2, C]
    gradients: Tensor  # as slopes
    space: Workspace
    partial: PartialSums


def rows_train_bwd(
    grad_y: Tensor, x: Tensor, gates: np.ndarray, kept: Sequence[Tensor], blocks: BlockRun, needs_x: bool,
    needs_weights: Sequence[bool],
) -> Gradients:  # fmt: skip
    """The gradients asked for; grad_y and x are in channels_last, `kept` is that of `rows_train_fwd`."""
    plan = plan_rows(gates)
    held, grad_x = kept_of(plan, kept), torch.empty_like(grad_y)
    shapes = geometries(x, blocks, [block.gradients for block in plan.blocks])
    slopes = grad_y.new_empty((len(blocks.norms), 2, shapes[0][1].outputs), dtype=torch.float32)
    smallest = min((own for own in shapes if own[0].images), key=lambda own: own[0].images, default=shapes[0])
    partial = partial_sums(blocks, [smallest], grad_y, needs_weights)._replace(shapes=shapes)
    space = workspace(x, len(x) * x[0, 0].numel(), max(shapes[0][1].outputs, x.shape[1]))
    listed = _tables(plan, x, grad_y, grad_x, held.values)
    state = _Run(blocks, plan, held, shapes, x, grad_y, grad_x, listed, slopes, torch.empty_like(slopes), space,
                 partial)  # fmt: skip
    for index in reversed(range(len(plan.blocks))):
        if plan.blocks[index].gradients:
            behind, arrived = _inner(state, index)
            if needs_x or any(block.gradients for block in plan.blocks[:index]):
                _outer(state, index, behind, arrived)
    if needs_x:
        _ends(state)
    return Gradients(grad_x if needs_x else None, None, partial.total(), state.gradients)


def _inner(state: _Run, index: int) -> tuple[Behind, Tensor]:
    """From the gradient of the block's sum, which is returned too, to that behind norm1; and those of both weights."""
    block, (one, two) = state.plan.blocks[index], state.shapes[index]
    arrivals, _, masks, sources = state.listed[4 * index : 4 * index + 4]
    own = state.kept.blocks[index]
    assert own is not None
    u1, u2, states = own[0][: block.gradients], own[1][: block.gradients], own[2]
    values, precision = len(block.images) * one.pixels_in // one.images, state.blocks.precision
    weights = state.blocks.weights[2 * index : 2 * index + 2]
    norm1, norm2 = (_before(state, 2 * index + i, u, states[i]) for i, u in enumerate((u1, u2)))
    g = empty(state.x, two)
    run(
        arrive_rows_pass(state.grad_y, state.grad_x, arrivals, Masks(state.kept.bits, masks), norm2, values, g,
                         state.space)
    )  # fmt: skip
    behind2 = Behind(g, u2, states[1], norm2.slopes)
    behind1 = Behind(empty(state.x, one), u1, states[0], norm1.slopes)
    run(
        inner_gradient_pass("data gradient conv2", two, behind2, weights[1], norm1, behind1.g, state.space, precision,
                            values)
    )  # fmt: skip
    state.partial.add(2 * index + 1, behind2, "norm", Source(u=u1, state=states[0]))
    source = Source(x=state.x, rows=sources.rows, align=sources.align)
    if launch := state.partial.launch(2 * index, behind1, "rows", source):
        run(reads_rows(launch, sources, x_in=state.x, kept=state.kept.values))
    return behind1, g


def _outer(state: _Run, index: int, behind: Behind, skip: Tensor) -> None:
    one, weight, skips = state.shapes[index][0], state.blocks.weights[2 * index], state.plan.blocks[index].skips
    targets = state.listed[4 * index + 1]
    run(outer_rows_pass(one, behind, weight, skip, skips, state.grad_x, targets, state.blocks.precision))


def _before(state: _Run, index: int, u: Tensor, of_norm: Tensor) -> Before:
    norm = state.blocks.norms[index]
    return Before(u, of_norm, state.slopes[index], state.gradients[index], norm.multiplier, norm.batch_stats)


def _ends(state: _Run) -> None:
    """The gradient of images that begin with FORWARD blocks, and of those that run nothing."""
    arrivals, targets, masks, untouched = state.listed[-4:]
    if targets.images:
        run(mask_rows_pass(state.grad_y, state.grad_x, arrivals, targets, Masks(state.kept.bits, masks)))
    if untouched.images:
        run(copy_pass(state.grad_y, state.grad_x, untouched))


def _tables(plan: RowsPlan, x: Tensor, grad_y: Tensor, grad_x: Tensor, values: Tensor) -> list[Table]:
    """Arrivals, targets, masks and sources of the images of each block with a gradient, then those of the ends."""
    lists = list[Listed | np.ndarray]()
    for block in plan.blocks:
        images, trained = block.images[: block.gradients], block.sources[: block.gradients]
        trained = np.where(trained < len(x), trained, trained - len(x)) if block.trains else images
        lists += [Listed(block.arrivals, (grad_y, grad_x)), Listed(images, (grad_x,)), block.masks[: len(images)]]
        lists.append(Listed(trained, (x, values)))
    lists += [Listed(plan.end_arrivals, (grad_y, grad_x)), Listed(plan.ends, (grad_x,)), plan.end_masks]
    return tables([*lists, Listed(plan.untouched, (grad_x,))], x.device)
