"""The weight gradients of a run: partial sums of all its convolutions in one tensor, which one launch adds up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pathnet.kernels.block_run import BlockRun, Shapes
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.passes import Behind, Source, weight_gradient_pass, wide
from pathnet.kernels.rebuilt_passes import rebuilt_weight_pass
from pathnet.kernels.settings import SUMMED, WARPS, weight_slots, weight_tile
from pathnet.kernels.traffic import requested
from pathnet.kernels.vendor import copy_all, vendor_weight_gradient
from pathnet.kernels.weight_gradient import sum_slots


class PartialSums(NamedTuple):
    """Of the convolutions whose weights need a gradient; a run that trains none has no sums."""

    blocks: BlockRun
    shapes: Shapes
    sums: Tensor | None  # float32 [slots, weights]
    columns: dict[int, int]  # index of a convolution -> its first column in `sums`
    whole: dict[int, Tensor | None]  # index of a convolution of the vendor's -> its gradient, once it is there

    def add(self, index: int, behind: Behind, prologue: str, source: Source, scale: float = 1.0) -> None:
        """Fill the slots of a convolution of `source`, whose output times `scale` has the gradient `behind`.

        The vendor's read both as they are: no prologue.
        """
        if index in self.whole:
            self.whole[index] = self._whole(index, behind.g, source.x, scale)
        elif launch := self.launch(index, behind, prologue, source, scale):
            run(launch)

    def launch(self, index: int, behind: Behind, prologue: str, source: Source, scale: float = 1.0) -> Launch | None:
        """The launch of `add`; None where the weights need no gradient."""
        if self.sums is None or index not in self.columns:
            return None
        block, place = divmod(index, self.blocks.depth)
        name, weight, precision = f"weight gradient conv{place + 1}", self.blocks.weights[index], self.blocks.precision
        if behind.expansion is not None:
            return rebuilt_weight_pass(name, self.shapes[block][place], behind, source, weight, self.sums,
                                       self.columns[index], precision)  # fmt: skip
        return weight_gradient_pass(name, self.shapes[block][place], behind, prologue, source, weight, self.sums,
                                    self.columns[index], scale, precision)  # fmt: skip

    def total(self) -> Tensor | None:
        """The weight gradients in a row, each laid out as its weight is."""
        summed = self._summed()
        if not self.whole:
            return summed
        weights, order = self.blocks.weights, sorted({**self.columns, **self.whole})
        total = weights[0].new_empty(sum(weights[index].numel() for index in order))
        targets, sources, end = [], [], 0
        for index in order:
            begin, end = end, end + weights[index].numel()
            target, source = total[begin:end], self.whole.get(index)
            if source is not None:
                target = target.as_strided(source.shape, weights[index].stride())
            elif summed is not None:
                source = summed[self.columns[index] :][: end - begin]
            assert source is not None  # the walk has come by each convolution
            targets.append(target)
            sources.append(source)
        copy_all("weight gradients", targets, sources)
        return total

    def _summed(self) -> Tensor | None:
        if self.sums is None:
            return None
        total = torch.empty(self.sums.shape[1], dtype=self.blocks.weights[0].dtype, device=self.sums.device)
        run(sum_slots_pass(self.sums, total))
        return total

    def _whole(self, index: int, g: Tensor, x: Tensor | None, scale: float) -> Tensor:
        assert x is not None
        block, place = divmod(index, self.blocks.depth)
        geometry, weight = self.shapes[block][place], self.blocks.weights[index]
        return vendor_weight_gradient(f"weight gradient conv{place + 1}", geometry, g, x, weight, scale)


def partial_sums(
    blocks: BlockRun, shapes: Shapes, like: Tensor, needs: Sequence[bool], vendors: Collection[int] = ()
) -> PartialSums:
    """Memory for the sums of the weights that `needs` asks for; those of `vendors` need none."""
    columns, width = {}, 0
    for index, (weight, need) in enumerate(zip(blocks.weights, needs, strict=True)):
        if need and index not in vendors:
            columns[index], width = width, width + weight.numel()
    whole: dict[int, Tensor | None] = {index: None for index in vendors if needs[index]}
    if not columns:
        return PartialSums(blocks, shapes, None, columns, whole)
    convs = [geometry for convs in shapes for geometry in convs]
    largest = max((g for index, g in enumerate(convs) if index not in vendors), key=lambda geometry: geometry.weights)
    tile = weight_tile(largest.inputs, largest.outputs)
    programs = largest.side * triton.cdiv(largest.inputs, tile.i) * triton.cdiv(largest.outputs, tile.o)
    end = shapes[0][-1]
    slots = weight_slots(end.pixels_out, programs, tile.p, largest.weights, like.element_size(), end.outputs)
    sums = torch.empty((slots, width), dtype=torch.float32, device=like.device)
    return PartialSums(blocks, shapes, sums, columns, whole)


def sum_slots_pass(partial: Tensor, total: Tensor) -> Launch:
    """total [weights of the run] = the sum of its slots."""
    arguments = {"partial": partial, "total": total, "slots": len(partial), "slot_size": total.numel()}
    grid = (triton.cdiv(total.numel(), SUMMED),)
    constants = {"WIDE": wide(partial), "BLOCK": SUMMED}
    reads, writes = requested(arguments, "partial"), requested(arguments, "total")
    return Launch("sum of weight gradients", sum_slots, grid, arguments, constants, WARPS, 1, reads, writes)
