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
