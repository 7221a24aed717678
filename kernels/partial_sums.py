"""The weight gradients of a run: partial sums of all its convolutions in one tensor, which one launch adds up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pathnet.kernels.block_run import BlockRun, Shapes
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import Behind, Source, sum_slots_pass, weight_gradient_pass
from pathnet.kernels.settings import weight_slots, weight_tile


class PartialSums(NamedTuple):
    """Of the convolutions whose weights need a gradient; a run that trains none has no sums."""

    blocks: BlockRun
    shapes: Shapes
    sums: Tensor | None  # float32 [slots, weights]
    columns: dict[int, int]  # index of a convolution -> its first column in `sums`

    def add(self, index: int, behind: Behind, prologue: str, source: Source, scale: float = 1.0) -> None:
        """Fill the slots of a convolution of `source`, whose output times `scale` has the gradient `behind`."""
        if launch := self.launch(index, behind, prologue, source, scale):
            run(launch)

    def launch(self, index: int, behind: Behind, prologue: str, source: Source, scale: float = 1.0) -> Launch | None:
        """The launch of `add`; None where the weights need no gradient."""
        if self.sums is None or index not in self.columns:
            return None
        block, place = divmod(index, self.blocks.depth)
        name, weight, precision = f"weight gradient conv{place + 1}", self.blocks.weights[index], self.blocks.precision
        return weight_gradient_pass(name, self.shapes[block][place], behind, prologue, source, weight, self.sums,
                                    self.columns[index], scale, precision)  # fmt: skip

    def total(self) -> Tensor | None:
        """The weight gradients in a row, each laid out as its weight is."""
        if self.sums is None:
            return None
        total = torch.empty(self.sums.shape[1], dtype=self.blocks.weights[0].dtype, device=self.sums.device)
        run(sum_slots_pass(self.sums, total))
        return total


def partial_sums(blocks: BlockRun, shapes: Shapes, like: Tensor, needs: Sequence[bool]) -> PartialSums:
    """Memory for the sums of the weights that `needs` asks for."""
    columns, width = {}, 0
    for index, (weight, need) in enumerate(zip(blocks.weights, needs, strict=True)):
        if need:
            columns[index], width = width, width + weight.numel()
    if not columns:
        return PartialSums(blocks, shapes, None, columns)
    largest = max((geometry for convs in shapes for geometry in convs), key=lambda geometry: geometry.weights)
    tile = weight_tile(largest.inputs, largest.outputs)
    programs = largest.side * triton.cdiv(largest.inputs, tile.i) * triton.cdiv(largest.outputs, tile.o)
    end = shapes[0][-1]
    slots = weight_slots(end.pixels_out, programs, tile.p, largest.weights, like.element_size(), end.outputs)
    sums = torch.empty((slots, width), dtype=torch.float32, device=like.device)
    return PartialSums(blocks, shapes, sums, columns)
