"""Which blocks a trained net misses least: whole blocks to drop for good."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pathnet.analysis.evaluate import Data
from pathnet.analysis.lesions import Lesion, delete_all
from pathnet.models import PathNet


def drop_greedily(net: PathNet, data: Data, count: int) -> list[Lesion]:
    """Drop `count` blocks one by one, each time the one without which the net errs least, by loss among equals.

    Lesion k of the result deletes k + 1 blocks, in the order of their choice. It takes n + (n - 1) + ... evaluations.
    """
    _check_count(count, net)
    dropped: list[Lesion] = []
    for _ in range(count):
        before = dropped[-1].deleted if dropped else ()
        candidates = [(*before, block) for block in range(net.num_blocks) if block not in before]
        dropped.append(_least(delete_all(net, data, candidates)))
    return dropped


def drop_exhaustively(net: PathNet, data: Data, count: int) -> Lesion:
    """The `count` blocks without which the net errs least of all C(n, count) choices, by loss among equals."""
    _check_count(count, net)
    best = []
    for first in range(net.num_blocks - count + 1):  # in parts, so that few predictions are kept at a time
        others = combinations(range(first + 1, net.num_blocks), count - 1)
        best.append(_least(delete_all(net, data, [(first, *rest) for rest in others])))
    return _least(best)


def _least(lesions: Sequence[Lesion]) -> Lesion:
    return min(lesions, key=lambda lesion: (lesion.error, lesion.loss))


def _check_count(count: int, net: PathNet) -> None:
    if not 1 <= count <= net.num_blocks:
        raise ValueError(f"count must lie in 1..{net.num_blocks}, the blocks of the net, not {count}")
