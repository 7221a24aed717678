"""How many of the 2^n paths have which length."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def path_length_distribution(blocks: int) -> np.ndarray:
    """Share of the 2^n paths that run through exactly k blocks, C(n, k) / 2^n, float64 `[n + 1]`.

    The mean is n/2 and the variance n/4. Source: Veit et al. 2016, section 5 and figure 6a.
    """
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {blocks}")
    return np.array([comb(blocks, length) / 2**blocks for length in range(blocks + 1)])


def weighted_length_distribution(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """What the paths of each length hold of all weight, where block i gives t_i to its residual branch and 1 - t_i to
    its shortcut, `weights` t `[n]`; float64 `[n + 1]`, the distribution of a sum of independent draws.

    t = 1/2 is a residual net. Under stochastic depth, which keeps block i with probability p_i, a random path of a
    random step has t_i = p_i / 2 (Huang et al. 2016). The transform gates of a highway net, averaged over images, are
    its t (Srivastava et al. 2015; Veit et al. 2016, section 6). Raises ValueError for a weight outside 0..1.
    """
    t = np.asarray(weights, dtype=float)
    if t.ndim != 1 or not len(t) or not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"weights must hold a number in 0..1 for each block, got {weights!r}")
    distribution = np.ones(1)
    for through in t:
        distribution = np.convolve(distribution, (1 - through, through))
    return distribution


def surviving_paths(blocks: int, deleted: int) -> np.ndarray:
    """Share of the paths of each length that `deleted` blocks leave alive, C(n - d, k) / C(n, k), float64 `[n + 1]`.

    Long paths go first, since each deleted block takes all paths that run through it. Source: Veit et al. 2016,
    section 6.
    """
    if not 0 <= deleted <= blocks:
        raise ValueError(f"deleted must lie in 0..{blocks}, the number of blocks, not {deleted}")
    return np.array([comb(blocks - deleted, length) / comb(blocks, length) for length in range(blocks + 1)])
