"""Lesions: a trained net without some of its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pathnet.analysis.evaluate import evaluate
from pathnet.gates import Paths
from pathnet.models import PathResNet


@dataclass(frozen=True)
class Lesion:
    """The deleted blocks, counted from 0, and the error (in 0..1) and mean cross-entropy without them."""

    deleted: tuple[int, ...]
    error: float
    loss: float


def delete_each(net: PathResNet, data: tuple[Tensor, Tensor], blocks: Iterable[int] | None = None) -> list[Lesion]:
    """Delete single blocks, one after the other: all of them, or those of `blocks`.

    A deleted block passes its shortcut alone. Source: Veit et al. 2016, section 4.1 and figure 3.
    """
    chosen = range(net.num_blocks) if blocks is None else blocks
    return _lesions(net, data, [(int(block),) for block in chosen])


def delete_random(
    net: PathResNet, data: tuple[Tensor, Tensor], counts: Iterable[int], trials: int, seed: int = 0
) -> list[Lesion]:
    """Delete k blocks drawn uniformly without replacement, `trials` times for each k of `counts`.

    A draw depends on `seed`, k and the trial alone. Source: Veit et al. 2016, section 4.2 and figure 5a.
    """
    subsets = []
    for count in counts:
        if not 0 <= count <= net.num_blocks:
            raise ValueError(f"counts must lie in 0..{net.num_blocks}, the blocks of the net, but one is {count}")
        draw = np.random.default_rng([seed, count])
        subsets += [tuple(sorted(draw.choice(net.num_blocks, count, replace=False).tolist())) for _ in range(trials)]
    return _lesions(net, data, subsets)


def _lesions(net: PathResNet, data: tuple[Tensor, Tensor], subsets: list[tuple[int, ...]]) -> list[Lesion]:
    results = evaluate(net, data, [Paths.delete(net.num_blocks, subset) for subset in subsets])
    return [Lesion(subset, result.error, result.loss) for subset, result in zip(subsets, results, strict=True)]
