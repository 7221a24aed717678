"""Which path lengths carry the gradient: frequency times magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student_t

from pathnet.analysis.gradients import GradientByLength
from pathnet.analysis.lengths import path_length_distribution


@dataclass(frozen=True)
class Window:
    """Path lengths `first`..`last`, the share of all contributions they hold, and the share of all paths."""

    first: int
    last: int
    contribution: float
    paths: float


@dataclass(frozen=True)
class Contribution:
    """By path length 0..n: log10 of the mean norm, and frequency times mean norm, scaled to add up to 1.

    `window` is the smallest one that holds 95 % (or the asked `mass`) of the shares.
    `decades_per_block` is the slope of the log10 norms over the length, fitted by least squares, and `slope_interval`
    its 95 % interval, from the scatter around the line.
    The product bounds the gradient of a length from above: the paths of one length partly cancel.
    """

    log10_mean_norms: tuple[float, ...]
    shares: tuple[float, ...]
    window: Window
    decades_per_block: float
    slope_interval: tuple[float, float]


def contribution(gradients: Sequence[GradientByLength], mass: float = 0.95) -> Contribution:
    """Frequency times magnitude of the lengths 0..n and the smallest window that holds `mass` of it.

    `gradients` has one entry for every length in order. Source: Veit et al. 2016, section 5 and figure 6c.
    """
    lengths = [entry.length for entry in gradients]
    if lengths != list(range(len(lengths))) or len(lengths) < 2:
        raise ValueError(f"gradients must hold every length 0, 1, ..., n in order, got {lengths}")
    if not any(np.isfinite(norm) for entry in gradients for norm in entry.log10_norms):
        raise ValueError(
            "gradients must hold one norm above zero at least, but every path of every length carries none"
        )
    means = np.array([entry.log10_mean for entry in gradients])
    frequency = path_length_distribution(len(lengths) - 1)
    logs = np.log10(frequency) + means
    products = 10.0 ** (logs - logs.max())
    shares = products / products.sum()
    window = effective_window(shares, mass)
    return Contribution(tuple(means.tolist()), tuple(shares.tolist()), window, *_slope(gradients))


def effective_window(shares: Sequence[float] | np.ndarray, mass: float = 0.95) -> Window:
    """The smallest window of lengths that holds `mass` of `shares`, which add up to 1; the first of equals."""
    if not 0 < mass <= 1:
        raise ValueError(f"mass must lie in (0, 1], not {mass}")
    shares = np.asarray(shares, dtype=float)
    total = np.concatenate([[0.0], np.cumsum(shares)])
    frequency = path_length_distribution(len(shares) - 1)
    for width in range(1, len(shares) + 1):
        held = total[width:] - total[:-width]
        first = int(held.argmax())
        if held[first] >= mass - 1e-12:
            break
    last = first + width - 1
    return Window(first, last, float(held[first]), float(frequency[first : last + 1].sum()))


def _slope(gradients: Sequence[GradientByLength]) -> tuple[float, tuple[float, float]]:
    points = [(entry.length, norm) for entry in gradients for norm in entry.log10_norms if np.isfinite(norm)]
    if len({length for length, _ in points}) < 2:
        return 0.0, (0.0, 0.0)
    fit = linregress(*np.array(points).T)
    freedom = len(points) - 2
    reach = float(student_t.ppf(0.975, freedom) * fit.stderr) if freedom else 0.0
    return float(fit.slope), (float(fit.slope) - reach, float(fit.slope) + reach)
