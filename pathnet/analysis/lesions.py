"""Lesions: a trained net without some of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pathnet.analysis.evaluate import Data, evaluate
from pathnet.gates import Paths
from pathnet.models import PathNet


@dataclass(frozen=True)
class Lesion:
    """The deleted blocks, counted from 0, and the error (in 0..1) and mean cross-entropy without them."""

    deleted: tuple[int, ...]
    error: float
    loss: float


def delete_each(net: PathNet, data: Data, blocks: Iterable[int] | None = None) -> list[Lesion]:
    """Delete single blocks, one after the other: all of them, or those of `blocks`.

    A deleted block passes its shortcut alone. Source: Veit et al. 2016, section 4.1 and figure 3.
    """
    chosen = range(net.num_blocks) if blocks is None else blocks
    return delete_all(net, data, [(int(block),) for block in chosen])


def delete_random(net: PathNet, data: Data, counts: Iterable[int], trials: int, seed: int = 0) -> list[Lesion]:
    """Delete k blocks drawn uniformly without replacement, `trials` times for each k of `counts`.

    A draw depends on `seed`, k and the trial alone. Source: Veit et al. 2016, section 4.2 and figure 5a.
    """
    subsets = [subset for count in counts for subset in drawn_subsets(net.num_blocks, count, trials, seed)]
    return delete_all(net, data, subsets)


def drawn_subsets(blocks: int, count: int, trials: int, seed: int) -> list[tuple[int, ...]]:
    """`trials` draws of `count` of `blocks`, each without replacement and in order."""
    if not 0 <= count <= blocks:
        raise ValueError(f"counts must lie in 0..{blocks}, the blocks of the net, but one is {count}")
    draw = np.random.default_rng([seed, count])
    return [tuple(sorted(draw.choice(blocks, count, replace=False).tolist())) for _ in range(trials)]


def delete_pairs(net: PathNet, data: Data) -> list[Lesion]:
    """Delete every pair of blocks, all n (n - 1) / 2 of them, in lexicographic order."""
    return delete_all(net, data, list(combinations(range(net.num_blocks), 2)))


def delete_stage_starts(net: PathNet, data: Data) -> list[Lesion]:
    """Delete each block whose shortcut changes the shape, and at last all of them together.

    These are the peaks of figure 3 of Veit et al. 2016.
    """
    return delete_all(net, data, stage_starts(net))


def stage_starts(net: PathNet) -> list[tuple[int, ...]]:
    """Each block whose shortcut changes the shape, and at last all of them."""
    starts = [index for index, block in enumerate(net.blocks) if not block.has_identity_shortcut]
    return [*((start,) for start in starts), tuple(starts)]


def delete_all(net: PathNet, data: Data, subsets: Sequence[Iterable[int]]) -> list[Lesion]:
    """One lesion for each of `subsets`, which name blocks from 0 and share what they begin with (`evaluate`)."""
    deleted = [tuple(subset) for subset in subsets]
    results = evaluate(net, data, [Paths.delete(net.num_blocks, subset) for subset in deleted])
    return [Lesion(subset, result.error, result.loss) for subset, result in zip(deleted, results, strict=True)]
