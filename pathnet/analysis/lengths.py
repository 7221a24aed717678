"""How many of the 2^n paths have which length."""

from __future__ import annotations

from math import comb

import numpy as np


def path_length_distribution(blocks: int) -> np.ndarray:
    """Share of the 2^n paths that run through exactly k blocks, C(n, k) / 2^n, float64 `[n + 1]`.

    The mean is n/2 and the variance n/4. Source: Veit et al. 2016, section 5 and figure 6a.
    """
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {blocks}")
    return np.array([comb(blocks, length) / 2**blocks for length in range(blocks + 1)])


def surviving_paths(blocks: int, deleted: int) -> np.ndarray:
    """Share of the paths of each length that `deleted` blocks leave alive, C(n - d, k) / C(n, k), float64 `[n + 1]`.

    Long paths go first, since each deleted block takes all paths that run through it. Source: Veit et al. 2016,
    section 6.
    """
    if not 0 <= deleted <= blocks:
        raise ValueError(f"deleted must lie in 0..{blocks}, the number of blocks, not {deleted}")
    return np.array([comb(blocks - deleted, length) / comb(blocks, length) for length in range(blocks + 1)])
