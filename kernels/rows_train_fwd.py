"""The forward of a run of basic blocks whose gates differ from image to image: three launches a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathnet.kernels.block_run import BlockRun, Shapes, empty
from pathnet.kernels.launch import run
from pathnet.kernels.passes import Source, forward_pass
from pathnet.kernels.rows import Listed, Table, copy_pass, reads_rows, tables
from pathnet.kernels.rows_train_passes import Masks, merge_rows_pass
from pathnet.kernels.rows_train_plan import RowsPlan, plan_rows
from pathnet.kernels.traffic import Geometry
from pathnet.kernels.workspace import workspace


class RowsKept(NamedTuple):
    """What the backward of a run reads."""

    values: Tensor  # blocks' inputs that weights are trained on, [kept, C, H, W]
    bits: Tensor  # uint8 [masks, H W, ceil(C / 8)]
    blocks: list[tuple[Tensor, Tensor, Tensor] | None]  # u1, u2 and the norms' states of each block with a gradient

    def flat(self) -> list[Tensor]:
        return [self.values, self.bits, *(tensor for own in self.blocks if own is not None for tensor in own)]


def kept_of(plan: RowsPlan, flat: Sequence[Tensor]) -> RowsKept:
    """The inverse of `RowsKept.flat`."""
    values, bits, *rest = flat
    each = iter(zip(*[iter(rest)] * 3, strict=True))
    return RowsKept(values, bits, [next(each) if block.gradients else None for block in plan.blocks])


def geometries(x: Tensor, blocks: BlockRun, images: Sequence[int]) -> Shapes:
    """The two convolutions of each block over so many images."""
    each = blocks.shapes(1, x.shape[2], x.shape[3])
    return [[conv._replace(images=count) for conv in convs] for convs, count in zip(each, images, strict=True)]


def kept_tensors(plan: RowsPlan, x: Tensor, shapes: Shapes) -> RowsKept:
    """Fresh memory for it."""
    n, channels, h, w = x.shape
    values = torch.empty((plan.kept, channels, h, w), dtype=x.dtype, device=x.device).contiguous(
        memory_format=torch.channels_last
    )
    bits = torch.empty((plan.masks, h * w, -(-channels // 8)), dtype=torch.uint8, device=x.device)
    return RowsKept(values, bits, [
        fresh(x, *own) if block.gradients else None for block, own in zip(plan.blocks, shapes, strict=True)
    ])  # fmt: skip


def fresh(x: Tensor, one: Geometry, two: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """u1, u2 and the norms' states of a block."""
    return empty(x, one), empty(x, two), torch.empty((2, 4, two.outputs), dtype=torch.float32, device=x.device)


def rows_train_fwd(x: Tensor, gates: np.ndarray, blocks: BlockRun) -> tuple[Tensor, RowsKept]:
    """x, channels_last, through blocks of gates [N, blocks], on the host, each of which runs at least one image."""
    plan = plan_rows(gates)
    shapes = geometries(x, blocks, [len(block.images) for block in plan.blocks])
    kept, y = kept_tensors(plan, x, shapes), torch.empty_like(x)
    *listed, untouched = _tables(plan, x, y, kept.values)
    space = workspace(x, shapes[0][0].pixels_in // len(plan.blocks[0].images) * len(x), shapes[0][1].outputs)
    for index, block in enumerate(plan.blocks):
        u1, u2, states = kept.blocks[index] or fresh(x, *shapes[index])
        sources, targets, masks = listed[3 * index : 3 * index + 3]
        weights, norms = blocks.weights[2 * index : 2 * index + 2], blocks.norms[2 * index : 2 * index + 2]
        one, two = shapes[index]
        source = Source(x=x, rows=sources.rows, align=sources.align)
        first = forward_pass("rows: forward conv1", one, "rows", source, None, "none", weights[0], norms[0], u1,
                             states[0], space, blocks.precision)  # fmt: skip
        run(reads_rows(first, sources, x_in=x, y=y, kept=kept.values))
        run(
            forward_pass("forward conv2", two, "norm", Source(u=u1, state=states[0]), None, "none", weights[1],
                         norms[1], u2, states[1], space, blocks.precision)
        )  # fmt: skip
        joins = int((block.masks < 0).sum())
        run(merge_rows_pass(u2, states[1], sources, targets, Masks(kept.bits, masks), joins, x, y, kept.values))
    if untouched.images:
        run(copy_pass(x, y, untouched))
    return y, kept


def _tables(plan: RowsPlan, x: Tensor, y: Tensor, values: Tensor) -> list[Table]:
    """Sources, targets and masks of each block, then the images that run nothing."""
    lists = list[Listed | np.ndarray]()
    for block in plan.blocks:
        lists += [Listed(block.sources, (x, y, values)), Listed(block.targets, (y, values)), block.masks]
    return tables([*lists, Listed(plan.untouched, (x,))], x.device)
