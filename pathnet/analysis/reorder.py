"""Reordering: a trained net whose blocks of equal shape have changed places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from pathnet.analysis.evaluate import Data, evaluate
from pathnet.gates import Paths
from pathnet.models import PathNet


@dataclass(frozen=True)
class Reordering:
    """An order (`order[p]` stands at position p), its swaps and Kendall tau, and the net's error and loss."""

    swaps: int
    order: tuple[int, ...]
    tau: float
    error: float
    loss: float


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation of `order` with 0, 1, 2, ...: 1 - 4 inversions / (n (n - 1))."""
    return float(kendalltau(range(len(order)), order).statistic)


def swapped_order(
    blocks: int, groups: Sequence[Sequence[int]], swaps: int, draw: np.random.Generator
) -> tuple[int, ...]:
    """Swap two positions of one group, `swaps` times; groups are drawn in proportion to their pairs."""
    pairs = np.array([len(group) * (len(group) - 1) for group in groups], dtype=float)
    if swaps and not pairs.sum():
        raise ValueError("swaps needs two blocks of equal shape, but every block of this net has a shape of its own")
    order = list(range(blocks))
    for _ in range(swaps):
        group = groups[draw.choice(len(groups), p=pairs / pairs.sum())]
        first, second = draw.choice(group, 2, replace=False)
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def drawn_orders(net: PathNet, swaps: int, trials: int, seed: int) -> list[tuple[int, ...]]:
    """`trials` draws of an order that `swaps` swaps make."""
    draw = np.random.default_rng([seed, swaps])
    return [swapped_order(net.num_blocks, net.swappable(), swaps, draw) for _ in range(trials)]


def reorder(net: PathNet, data: Data, swaps: Iterable[int], trials: int, seed: int = 0) -> list[Reordering]:
    """Swap k random pairs of blocks of equal shape, `trials` times for each k of `swaps`.

    A draw depends on `seed`, k and the trial alone. Source: Veit et al. 2016, section 4.3 and figure 5b.
    """
    drawn = [(count, order) for count in swaps for order in drawn_orders(net, count, trials, seed)]
    whole = Paths.delete(net.num_blocks, [])
    results = evaluate(net, data, [whole.reordered(order) for _, order in drawn])
    return [
        Reordering(count, order, kendall_tau(order), result.error, result.loss)
        for (count, order), result in zip(drawn, results, strict=True)
    ]
