"""A run of gated blocks as the ops' flat lists say it, and the memory that its convolutions fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.kernels.conv_forms import Chip, calls_vendor, rebuilds
from pathnet.kernels.passes import Norm
from pathnet.kernels.traffic import Geometry
from pathnet.kernels.workspace import Workspace, workspace

Shapes = Sequence[Sequence[Geometry]]  # of the convolutions of each block


class BlockRun(NamedTuple):
    """Blocks of one form: as many convolutions as norms, the same number in each block."""

    weights: Sequence[Tensor]
    norms: list[Norm]
    strides: list[int]
    gates: list[int]
    multipliers: list[float]
    precision: str  # of float32 products: tf32 or ieee
    chip: Chip | None = None  # compute capability of the GPU
    recomputes: bool = False  # nobody keeps what the last convolution of a block gives for the backward

    @property
    def depth(self) -> int:
        """How many convolutions a block has."""
        return len(self.weights) // len(self.gates)

    def shapes(self, images: int, height: int, width: int) -> list[list[Geometry]]:
        """The convolutions of each block, for a run's input of this size."""
        return conv_shapes(self.weights, self.strides, images, height, width)

    def vendors(self, shapes: Shapes, dtype: torch.dtype) -> frozenset[int]:
        """Which convolutions, counted through the blocks, take the separate-pass form for activations of `dtype`."""
        convs = (geometry for convs in shapes for geometry in convs)
        return frozenset(
            place for place, geometry in enumerate(convs) if calls_vendor(geometry, dtype, self.precision, self.chip)
        )

    def rebuilds(self, shapes: Shapes, dtype: torch.dtype) -> bool:
        """Whether nobody stores what last convolutions give: who reads it is fused, and rebuilds it tile by tile."""
        vendors, ends = self.vendors(shapes, dtype), (0, self.depth - 1)
        fused = not any(place % self.depth in ends for place in vendors)
        return self.recomputes and fused and all(rebuilds(convs[-1], dtype, self.precision) for convs in shapes)


def conv_shapes(
    weights: Sequence[Tensor], strides: Sequence[int], images: int, height: int, width: int
) -> list[list[Geometry]]:
    """The convolutions of blocks of one form, for an input of this size; the first 3x3 of a block strides.

    Behind a block's first convolution, weights of fewer inputs than there are channels are those of groups.
    """
    found, rest = list[list[Geometry]](), iter(weights)
    for stride in strides:
        found.append([])
        for _ in range(len(weights) // len(strides)):
            outputs, inputs, side, _ = next(rest).shape
            groups = found[-1][-1].outputs // inputs if found[-1] else 1
            own, stride = (stride, 1) if side == 3 else (1, stride)
            found[-1].append(Geometry(images, height, width, inputs * groups, outputs, own, side, groups))
            height, width = found[-1][-1].rows, found[-1][-1].columns
    return found


def empty(like: Tensor, geometry: Geometry) -> Tensor:
    """What a convolution puts out, in channels_last memory."""
    shape = geometry.images, geometry.outputs, geometry.rows, geometry.columns
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def empty_bits(like: Tensor, geometry: Geometry) -> Tensor:
    """One bit for each element of what a convolution puts out."""
    return torch.empty((geometry.pixels_out, -(-geometry.outputs // 8)), dtype=torch.uint8, device=like.device)


def widest(shapes: Shapes) -> int:
    """The most channels of a convolution's output."""
    return max(geometry.outputs for block in shapes for geometry in block)


def numbers_of(table: Tensor, rows: int, channels: int) -> Tensor:
    """The first numbers of a table of the widest norm as [rows, channels], side by side in memory."""
    return table.flatten()[: rows * channels].view(rows, channels)


def norm_tables(like: Tensor, norms: int, rows: int, channels: int) -> Tensor:
    """Numbers of norms of at most so many channels, for `numbers_of`."""
    return torch.empty((norms, rows, channels), dtype=torch.float32, device=like.device)


def run_workspace(like: Tensor, shapes: Shapes, copies: int = 1) -> Workspace:
    """Slots for every norm of a run, on the sides of its convolutions, for so many gradients at once."""
    first = shapes[0][0]
    return workspace(like, first.pixels_in, copies * max(first.inputs, widest(shapes)))
