"""Means of random draws, with what chance alone explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent draws and the ends of its interval, mean -+ t s / sqrt(N), by Student's t.

    The ends are NaN for a single draw. Raises ValueError for none.
    """
    count = len(values)
    if not count:
        raise ValueError("values must hold at least one draw, but they are empty")
    mean = float(np.mean(values))
    if count < 2:
        return mean, math.nan, math.nan
    reach = float(student_t.ppf((1 + level) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return mean, mean - reach, mean + reach
