"""Lesions that the kernel of the whole net takes at once: one launch over images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet.analysis.prefixes import Sequenced
from pathnet.ops.net_eval import Net, net_eval_masks
from pathnet.route import Route


class Masks(NamedTuple):
    """Different lesions as the tables of `net_eval_masks`; `ending[m]` are the entries that mask m stands for."""

    gates: Tensor
    scales: Tensor
    orders: list[tuple[int, ...] | None]
    ending: list[list[int]]

    def logits(self, x: Tensor, net: Net) -> Tensor:
        """Logits `[masks, N, classes]` of images x `[N, C, H, W]`."""
        return net_eval_masks(x, net, self.gates, self.scales, self.orders).transpose(0, 1)


def masks_of(
    routes: Sequence[Route], orders: Sequence[tuple[int, ...] | None], sequences: Sequence[Sequenced]
) -> Masks:
    """A mask for each of the different `sequences`."""
    alike: dict[Sequenced, list[int]] = {}
    for index, sequence in enumerate(sequences):
        alike.setdefault(sequence, []).append(index)
    ending = list(alike.values())
    firsts = [indices[0] for indices in ending]
    gates = torch.stack([routes[index].gates for index in firsts])
    scales = torch.stack([routes[index].multiplier for index in firsts])
    return Masks(gates, scales, [orders[index] for index in firsts], ending)
