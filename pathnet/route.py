"""A route: the gates of one forward, resolved against a net, on their way from the net to the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.gates import Gate


class Route(NamedTuple):
    """Gates and multipliers of some blocks, a column a block, on the CPU but for live gates."""

    gates: Tensor  # int8 [blocks] or [batch, blocks]
    multiplier: Tensor  # float64 [blocks] or [batch, blocks]
    present: Tensor | None = None  # bool [blocks, 5]: gates that occur on any rank; None: those of `gates`
    update: bool = True  # whether running statistics move: not in a recomputation
    mask_rows: bool = False  # bn="all": rows are multiplied, not skipped
    live: bool = False  # gates [blocks] stand on the device of the images, and nobody reads them on the host

    def at(self, blocks: Sequence[int]) -> Route:
        """The columns of `blocks`, in that order."""
        contiguous = all(block == blocks[0] + i for i, block in enumerate(blocks))
        index: slice | list[int] = slice(blocks[0], blocks[-1] + 1) if contiguous else list(blocks)
        present = None if self.present is None else self.present[index]
        return self._replace(gates=self.gates[..., index], multiplier=self.multiplier[..., index], present=present)

    def split(self, sizes: Sequence[int]) -> list[Route]:
        """A route for each stage of `sizes` blocks."""
        gates, multiplier = self.gates.split(sizes, -1), self.multiplier.split(sizes, -1)
        present = [None] * len(sizes) if self.present is None else self.present.split(sizes)
        parts = zip(gates, multiplier, present, strict=True)
        return [self._replace(gates=g, multiplier=m, present=p) for g, m, p in parts]

    def occurring(self) -> list[set[Gate]]:
        """For each block the gates that occur in this step, on any rank; a masked OFF row computes as a FULL one."""
        table = present_gates(self.gates) if self.present is None else self.present
        sets = [{gate for gate, there in zip(Gate, row, strict=True) if there} for row in table.tolist()]
        if self.mask_rows and self.gates.dim() == 2:
            sets = [{Gate.FULL if gate is Gate.OFF else gate for gate in gates} for gates in sets]
        return sets


def present_gates(gates: Tensor) -> Tensor:
    """bool [blocks, 5]: which gates occur in each column of `gates`, [blocks] or [batch, blocks]."""
    rows = gates if gates.dim() == 2 else gates.unsqueeze(0)
    return torch.stack([(rows == gate).any(0) for gate in Gate], dim=-1)
