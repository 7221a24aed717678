"""The forward of a run of gated basic blocks: two launches a block, and one for the value that the run puts out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.kernels.launch import run
from pathnet.kernels.passes import Norm, Source, forward_pass, merge_pass
from pathnet.kernels.stage_train_plan import bits_at, has_gradient, keeps_input, mask_at, owner
from pathnet.kernels.traffic import Geometry
from pathnet.kernels.workspace import workspace


class BlockRun(NamedTuple):
    """A run as the op's flat lists say it: two convolutions and two norms a block."""

    weights: Sequence[Tensor]
    norms: list[Norm]
    strides: list[int]
    gates: list[int]
    precision: str  # of float32 products: tf32 or ieee

    def geometry(self, images: int, height: int, width: int) -> Iterator[tuple[Geometry, Geometry]]:
        """The two convolutions of each block, for a run's input of this size."""
        for block, stride in enumerate(self.strides):
            first, second = self.weights[2 * block : 2 * block + 2]
            one = Geometry(images, height, width, first.shape[1], first.shape[0], stride)
            height, width = one.rows, one.columns
            yield one, Geometry(images, height, width, second.shape[1], second.shape[0], 1)


def empty(like: Tensor, geometry: Geometry) -> Tensor:
    """What a convolution puts out, in channels_last memory."""
    shape = geometry.images, geometry.outputs, geometry.rows, geometry.columns
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def empty_bits(like: Tensor, geometry: Geometry) -> Tensor:
    """One bit for each element of what a convolution puts out."""
    return torch.empty((geometry.pixels_out, -(-geometry.outputs // 8)), dtype=torch.uint8, device=like.device)


def keeps(gates: Sequence[int]) -> list[bool]:
    """What the backward of a run reads, five a block: x, u1, u2, the norms' states, the mask before the block.

    Then the mask behind the run's last ReLUs.
    """
    kept = []
    for block, gate in enumerate(gates):
        gradient = has_gradient(gate)
        kept += [keeps_input(gates, block), gradient, gradient, gradient, gradient and mask_at(gates, block) == "bits"]
    return [*kept, True]


def kept_tensors(gates: Sequence[int], x: Tensor, shapes: Sequence[tuple[Geometry, Geometry]]) -> list[Tensor | None]:
    """Fresh memory for what `keeps` lists, None for the rest."""
    wanted, kept = iter(keeps(gates)), list[Tensor | None]()
    for one, two in shapes:
        kept += [empty(x, two) if next(wanted) else None]  # a block that keeps its input has a stride of 1
        kept += [empty(x, geometry) if next(wanted) else None for geometry in (one, two)]
        kept += [x.new_empty((2, 4, two.outputs), dtype=torch.float32) if next(wanted) else None]
        kept += [empty_bits(x, two) if next(wanted) else None]
    return [*kept, empty_bits(x, shapes[-1][1])]


def stage_train_fwd(x: Tensor, skip: Tensor | None, blocks: BlockRun) -> tuple[Tensor, list[Tensor | None]]:
    """Run the blocks; returns y and what `kept_tensors` lists. x and skip (h(x) of block 0) are in channels_last."""
    shapes = list(blocks.geometry(x.shape[0], x.shape[2], x.shape[3]))
    kept = kept_tensors(blocks.gates, x, shapes)
    space = workspace(x, shapes[0][1].pixels_out, shapes[0][1].outputs)
    stream = x if skip is None else skip
    source, prologue = Source(x=x), "input"
    for block, (one, two) in enumerate(shapes):
        _, u1, u2, states, _ = kept[5 * block : 5 * block + 5]
        u1, u2 = (empty(x, one), empty(x, two)) if u1 is None or u2 is None else (u1, u2)
        states = x.new_empty((2, 4, two.outputs), dtype=torch.float32) if states is None else states
        bits, join = _mask(blocks.gates, block, kept)
        weights, norms = blocks.weights[2 * block : 2 * block + 2], blocks.norms[2 * block : 2 * block + 2]
        run(
            forward_pass("forward conv1", one, prologue, source, bits, join, weights[0], norms[0], u1, states[0], space,
                         blocks.precision)
        )  # fmt: skip
        run(
            forward_pass("forward conv2", two, "norm", Source(u=u1, state=states[0]), None, "none", weights[1],
                         norms[1], u2, states[1], space, blocks.precision)
        )  # fmt: skip
        stream = stream if source.merged is None else source.merged
        merged = kept[5 * (block + 1)] if block + 1 < len(shapes) else None
        merged = empty(x, two) if merged is None else merged
        source, prologue = Source(stream, u2, states[1], merged), "merge"
    bits, join = _mask(blocks.gates, len(shapes), kept)
    assert bits is not None and source.merged is not None
    run(merge_pass(source, bits, join))
    return source.merged, kept


def _mask(gates: Sequence[int], position: int, kept: Sequence[Tensor | None]) -> tuple[Tensor | None, str]:
    """The bits that the program making this position of the stream writes, and how."""
    if position == 0 or (join := bits_at(gates, position)) == "none":
        return None, "none"
    place = owner(gates, position)
    return kept[-1] if place == len(gates) else kept[5 * place + 4], join
