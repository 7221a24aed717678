"""Rows of a batch that stand where a table says, so that gates may differ from image to image and nothing is gathered.

A table lists images, and says how many elements behind the start of some tensor each stands: in that tensor, or in
another that is reached from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
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

    rows: np.ndarray  # int64 [images]
    tensors: tuple[Tensor, ...]


def tables(lists: Sequence[Listed | np.ndarray], device: torch.device) -> list[Table]:
    """The tables of all lists, moved to the device at once; numbers int64 of the listed images go as they are.

    Each starts at a multiple of 16 bytes, as every pointer does: else Triton would compile the kernels once more.
    """
    described = [(own, (len(own),), 1) if isinstance(own, np.ndarray) else _offsets(own) for own in lists]
    numbers, places, aligns = zip(*described, strict=True)
    padded = [np.pad(own, (0, len(own) % 2)) for own in numbers]
    moved = torch.from_numpy(np.concatenate(padded)).to(device, non_blocking=True)
    parts = moved.split([len(own) for own in padded])
    rows = [part[: len(own)] for part, own in zip(parts, numbers, strict=True)]
    return [Table(*table) for table in zip(rows, places, aligns, strict=True)]


def _offsets(listed: Listed) -> tuple[np.ndarray, tuple[int, ...], int]:
    """The fields of a `Table`, its rows on the host."""
    start, size = listed.tensors[0], listed.tensors[0][0].numel()
    offsets, places, first = np.zeros_like(listed.rows), list[int](), 0
    for tensor in listed.tensors:
        own = (listed.rows >= first) & (listed.rows < first + len(tensor))
        distance = (tensor.data_ptr() - start.data_ptr()) // start.element_size()
        offsets += own * ((listed.rows - first) * size + distance)
        places.append(int(own.sum()))
        first += len(tensor)
    return offsets, tuple(places), align_of(size, *offsets)


def align_of(*elements: int) -> int:
    """The largest power of 2, up to what Triton asks for, that divides all of them."""
    return next(align for align in (ALIGNED, 8, 4, 2, 1) if not any(number % align for number in elements))


def reads_rows(launch: Launch, table: Table, **tensors: Tensor) -> Launch:
    """The launch, whose reads of the first tensor, its argument, are of the rows that the table lists in all."""
    shares, touched, reached = _shares(table, launch.reads, tensors)
    return launch._replace(
        reads=launch.reads | shares, reached={**launch.reached, **reached}, touched={**launch.touched, **touched}
    )


def writes_rows(launch: Launch, table: Table, **tensors: Tensor) -> Launch:
    """As `reads_rows`."""
    shares, touched, reached = _shares(table, launch.writes, tensors)
    return launch._replace(
        writes=launch.writes | shares, reached={**launch.reached, **reached}, touched={**launch.touched, **touched}
    )


def _shares(
    table: Table, requested: dict[str, int], tensors: dict[str, Tensor]
) -> tuple[dict[str, int], dict[str, int], dict[str, Tensor]]:
    start, *others = tensors
    row = tensors[start][0].numel() * tensors[start].element_size()
    shares, touched = (table.shares(total, *tensors) for total in (requested[start], table.images * row))
    return shares, touched, {name: tensors[name] for name in others}


def copy_pass(source: Tensor, target: Tensor, table: Table) -> Launch:
    """The listed rows of target are those of source; both are in channels_last."""
    size = source[0].numel()
    count = table.images * size
    arguments = {"source": source, "target": target, "table": table.rows, "count": count, "size": size}
    constants = {"WIDE": wide(source), "BLOCK": COPIED}
    reads, writes = requested(arguments, "table", source=count), requested(arguments, target=count)
    grid = (triton.cdiv(count, COPIED),)
    launch = Launch("copy of rows", copy_rows, grid, arguments, constants, WARPS, 1, reads, writes)
    return writes_rows(reads_rows(launch, table, source=source), table, target=target)
