"""A route: the gates of one forward, resolved against a net, on their way from the net to the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.gates import Gate


class Route(NamedTuple):
    """Gates and multipliers of some blocks, a column a block, on the CPU."""

    gates: Tensor  # int8 [blocks] or [batch, blocks]
    multiplier: Tensor  # float64 [blocks] or [batch, blocks]
    present: Tensor | None = None  # bool [blocks, 5]: gates that occur on any rank; None: those of `gates`
    update: bool = True  # whether running statistics move: not in a recomputation
    mask_rows: bool = False  # bn="all": rows are multiplied, not skipped

    def at(self, blocks: Sequence[int]) -> Route:
        """The columns of `blocks`, in that order."""
        gates, multiplier = (torch.stack([t.select(-1, i) for i in blocks], -1) for t in (self.gates, self.multiplier))
        present = None if self.present is None else torch.stack([self.present[i] for i in blocks])
        return self._replace(gates=gates, multiplier=multiplier, present=present)

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
