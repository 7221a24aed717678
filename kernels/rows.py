"""Rows of a batch that stand where a table says, so that gates may differ from image to image and nothing is gathered.

A table lists images, and says how many elements behind the start of some tensor each stands: in that tensor, or in
another that is reached from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathnet.kernels.launch import Launch
from pathnet.kernels.passes import wide
from pathnet.kernels.settings import COPIED, WARPS
from pathnet.kernels.traffic import requested

ALIGNED = 16  # elements; what Triton asks of integers before it joins loads


@triton.jit
def rows_of(start, table, image, valid, size, ALIGN: tl.constexpr):
    """Pointers [pixels, 1] that an offset into a tensor of the listed images moves to where these stand."""
    away = tl.load(table + image, valid, 0) - image.to(tl.int64) * size
    return (start + tl.multiple_of(away, [ALIGN]))[:, None]


@triton.jit
def copy_rows(source, target, table, count, size, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The listed rows from source to the same rows of target."""
    at = tl.program_id(0)
    if WIDE:
        at = at.to(tl.int64)
    at = at * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(table + at // size, inside, 0) + at % size
    tl.store(target + place, tl.load(source + place, inside), inside)


class Table(NamedTuple):
    """Where some images stand."""

    rows: Tensor  # int64 [images], in elements
    places: tuple[int, ...]  # how many of them stand in each of the tensors
    align: int  # a power of 2 that divides all of them

    @property
    def images(self) -> int:
        return sum(self.places)

    def shares(self, total: int, *names: str) -> dict[str, int]:
        """What falls to each of the tensors, called `names`, of a total over all images."""
        return {name: total * own // max(1, self.images) for name, own in zip(names, self.places, strict=True)}


class Listed(NamedTuple):
    """Images on the host: row r of tensor t is r plus the rows of the tensors before it. All are in channels_last."""

    rows: Tensor  # int64 [images]
    tensors: tuple[Tensor, ...]


def tables(lists: Sequence[Listed]) -> list[Table]:
    """The tables of all lists, moved to the device of their tensors at once."""
    offsets, places = zip(*map(_offsets, lists), strict=True)
    device = lists[0].tensors[0].device
    moved = torch.cat(offsets).to(device, non_blocking=True).split([len(own) for own in offsets])
    return [Table(*table) for table in zip(moved, places, map(_align, lists, offsets), strict=True)]


def _offsets(listed: Listed) -> tuple[Tensor, tuple[int, ...]]:
    start, size = listed.tensors[0], listed.tensors[0][0].numel()
    offsets, places, first = torch.zeros_like(listed.rows), [], 0
    for tensor in listed.tensors:
        own = (listed.rows >= first) & (listed.rows < first + len(tensor))
        distance = (tensor.data_ptr() - start.data_ptr()) // start.element_size()
        offsets += own * ((listed.rows - first) * size + distance)
        places.append(int(own.sum()))
        first += len(tensor)
    return offsets, tuple(places)


def _align(listed: Listed, offsets: Tensor) -> int:
    size = listed.tensors[0][0].numel()
    return next(align for align in (ALIGNED, 8, 4, 2, 1) if size % align == 0 and not (offsets % align).any())


def copy_pass(source: Tensor, target: Tensor, table: Table) -> Launch:
    """The listed rows of target are those of source; both are in channels_last."""
    size = source[0].numel()
    count = table.images * size
    arguments = {"source": source, "target": target, "table": table.rows, "count": count, "size": size}
    constants = {"WIDE": wide(source), "BLOCK": COPIED}
    moved = {name: count * source.element_size() for name in ("source", "target")}
    reads, writes = requested(arguments, "table", source=count), requested(arguments, target=count)
    grid = (triton.cdiv(count, COPIED),)
    return Launch("copy of rows", copy_rows, grid, arguments, constants, WARPS, 1, reads, writes, touched=moved)
