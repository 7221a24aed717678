"""Plots of lesions and reorderings, the nets of all trainings overlaid."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pathnet.analysis import mean_interval
from pathnet.study import style
from pathnet.study.nets import CONTROL, PAPER_BLOCKS, Document, net_label, nets_with

TAU_GROUPS = 8  # medians in the plot of reorderings, over draws of neighbouring tau ...
FEWEST_DRAWS = 3  # ... at least so many, for a line through single draws would show chance alone


def delete_each(document: Document, figure: Figure) -> None:
    """Test error after deleting each single block, of every net."""
    axes = figure.add_subplot()
    for title, net in document["nets"].items():
        errors = [100 * lesion["error"] for lesion in net["delete_each"].values()]
        label = net_label(document, title)
        axes.plot(errors, **style.of_net(title), lw=0.9, label=f"{label}, one layer" if title == CONTROL else label)
        axes.axhline(100 * net["whole"]["0"]["error"], color=style.COLOURS[title], lw=0.9, ls=(0, (1, 2)), zorder=1)
    for start in document["net"]["stage_starts"]:
        axes.axvline(start, color=style.GREY, lw=0.9, ls=":", zorder=0)
        style.note(axes, start, 0.99, "  stage start")
    style.chance(axes, document)
    what = "deleted block (of VGG: layer)" if CONTROL in document["nets"] else "deleted block"
    axes.set(xlabel=what, ylabel="test error, %")
    style.percent_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    style.legend_above(axes)


def delete_random(document: Document, figure: Figure) -> None:
    """Test error after deleting random blocks, by their number."""
    axes = figure.add_subplot()
    for title, net in nets_with(document, "delete_random"):
        counts = sorted(map(int, net["delete_random"]))
        errors = [[100 * lesion["error"] for lesion in net["delete_random"][str(count)]] for count in counts]
        _mean_and_interval(axes, title, counts, errors, net_label(document, title))
    style.chance(axes, document)
    if document["net"]["blocks"] == PAPER_BLOCKS:
        axes.plot(10, 20, "*", ms=11, color=style.INK, mfc="white", label="the paper, CIFAR-10: about 20 %")
    axes.set(xlabel="deleted blocks", ylabel="test error, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    style.legend_above(axes)


def reorder(document: Document, figure: Figure) -> None:
    """Test error against Kendall's tau of the order."""
    axes = figure.add_subplot()
    for title, net in nets_with(document, "reorder"):
        drawn = _tau_and_error([trial for part in net["reorder"].values() for trial in part])
        axes.plot(*drawn, style.MARKERS[title], color=style.COLOURS[title], ms=3, alpha=0.3, mew=0)
        by_tau = drawn[:, (-drawn[0]).argsort()]
        count = max(1, min(TAU_GROUPS, by_tau.shape[1] // FEWEST_DRAWS))
        groups = np.array_split(by_tau, count, axis=1)
        middles = [np.median(group, axis=1) for group in groups]
        axes.plot(*np.array(middles).T, **style.of_net(title), label=net_label(document, title))
    style.chance(axes, document)
    axes.set(xlabel="Kendall's τ of the new order with the old one", ylabel="test error, %", ylim=(0, 100))
    axes.invert_xaxis()
    style.legend_above(axes)


def _mean_and_interval(axes: Axes, title: str, x: list[int], values: list[list[float]], label: str) -> None:
    look = style.of_net(title)
    for position, trials in zip(x, values, strict=True):
        axes.plot([position] * len(trials), trials, look["marker"], ms=3, mew=0, color=look["color"], alpha=0.25)
    mean, low, high = np.array([mean_interval(trials) for trials in values]).T
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    axes.plot(x, mean, **look, label=label)


def _tau_and_error(trials: list[dict[str, float]]) -> np.ndarray:
    return np.array([[trial["tau"], 100 * trial["error"]] for trial in trials]).T
