"""The plots of a study, each a function of the results document."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from pathnet.analysis import effective_window, path_length_distribution
from pathnet.files import writable_folder, write_atomically
from pathnet.study import style

Document = dict[str, Any]
TAU_GROUPS = 8  # medians in the plot of reorderings, over draws of neighbouring tau


def draw_figures(document: Document, folder: Path) -> None:
    """Write every figure that the results hold data for, as PNG and SVG, into `folder`."""
    writable_folder(folder, "out")
    for name, draw in FIGURES.items():
        if not _has_data(name, document):
            continue
        with style.plot_style():
            figure = Figure(figsize=style.WIDE)
            draw(document, figure)
            save = partial(figure.savefig, facecolor="white")
            write_atomically(folder / f"{name}.svg", partial(save, format="svg", metadata={"Date": None}))
            figure.set_layout_engine("none")  # the layout is found; finding it again takes half the time
            write_atomically(folder / f"{name}.png", partial(save, format="png"))


def _has_data(figure: str, document: Document) -> bool:
    if figure == "training":
        return bool(document["training"])
    return figure == "lengths" or any(figure in net for net in document["nets"].values())


def net_label(document: Document, title: str) -> str:
    """What a net is called in legends and tables."""
    blocks, keep = document["net"]["blocks"], document["net"].get("keep")
    names = {
        "full": "trained on all blocks",
        "effective": f"trained on {keep} of {blocks} blocks a step",
        "trained": "net of the weights file",
    }
    return names[title]


def _delete_each(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in document["nets"].items():
        errors = [100 * net["delete_each"][str(block)]["error"] for block in range(document["net"]["blocks"])]
        axes.plot(
            errors,
            style.MARKERS[title],
            ls="-",
            lw=0.8,
            color=style.COLOURS[title],
            label=net_label(document, title),
        )
        axes.axhline(100 * net["whole"]["0"]["error"], color=style.COLOURS[title], lw=0.9, ls=(0, (4, 3)))
    for start in document["net"]["stage_starts"]:
        axes.axvline(start, color=style.GREY, lw=0.9, ls=":", zorder=0)
        style.note(axes, start, 0.99, "  stage start")
    axes.set(xlabel="deleted block", ylabel="test error, %", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    _legend_above(axes)


def _delete_random(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in document["nets"].items():
        counts = sorted(map(int, net["delete_random"]))
        errors = [[100 * lesion["error"] for lesion in net["delete_random"][str(count)]] for count in counts]
        _median_and_spread(axes, title, counts, errors, net_label(document, title))
    _chance(axes, document)
    axes.set(xlabel="deleted blocks", ylabel="test error, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    _legend_above(axes)


def _reorder(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in document["nets"].items():
        colour, marker = style.COLOURS[title], style.MARKERS[title]
        drawn = _tau_and_error([trial for part in net["reorder"].values() for trial in part])
        axes.plot(*drawn, marker, color=colour, alpha=0.35, mew=0)
        by_tau = drawn[:, (-drawn[0]).argsort()]
        groups = np.array_split(by_tau, min(TAU_GROUPS, by_tau.shape[1]), axis=1)
        middles = [np.median(group, axis=1) for group in groups]
        axes.plot(*np.array(middles).T, marker=marker, color=colour, label=net_label(document, title))
    _chance(axes, document)
    axes.set(xlabel="Kendall's τ of the new order with the old one", ylabel="test error, %", ylim=(0, 100))
    axes.invert_xaxis()
    _legend_above(axes)


def _lengths(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    shares = path_length_distribution(document["net"]["blocks"])
    window = effective_window(shares)
    inside = (np.arange(len(shares)) >= window.first) & (np.arange(len(shares)) <= window.last)
    axes.bar(np.arange(len(shares)), 100 * shares, 0.8, color=np.where(inside, style.BLUE, style.PALE))
    axes.set(xlabel="path length, blocks", ylabel="share of all paths, %")
    style.note(
        axes,
        window.last + 1.5,
        0.9,
        f"{100 * window.contribution:.1f} % of the paths\nare {window.first} to {window.last} blocks long",
    )


def _gradients(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    net = _net_with_gradients(document)
    lengths = range(len(net["gradients"]))
    norms = [np.array([np.nan if v is None else v for v in net["gradients"][str(k)]], dtype=float) for k in lengths]
    for length, values in zip(lengths, norms, strict=True):
        axes.plot([length] * len(values), 10**values, "o", ms=2.2, mew=0, color=style.GREY, alpha=0.5)
    quantiles = np.array([10 ** np.nanquantile(values, (0.1, 0.5, 0.9)) for values in norms])
    axes.fill_between(
        lengths, quantiles[:, 0], quantiles[:, 2], color=style.SKY, alpha=0.35, lw=0, label="10 % to 90 %"
    )
    axes.plot(lengths, quantiles[:, 1], color=style.BLUE, label="median of the drawn paths")
    means = np.array([np.nanmean(values) for values in norms])
    slope = net["contribution"]["decades_per_block"]
    fitted = 10 ** (np.nanmean(means) + slope * (np.arange(len(means)) - (len(means) - 1) / 2))
    axes.plot(
        lengths,
        fitted,
        color=style.VERMILLION,
        lw=1.2,
        ls=(0, (5, 3)),
        label=f"fit: {slope:+.2f} decades a block".replace("-", "−"),
    )
    axes.set(xlabel="path length, blocks", ylabel="gradient norm at the image", yscale="log")
    _legend(axes)


def _contribution(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    result = _net_with_gradients(document)["contribution"]
    window, lengths = result["window"], np.arange(len(result["shares"]))
    inside = (lengths >= window["first"]) & (lengths <= window["last"])
    shares = 100 * np.array(result["shares"])
    axes.bar(lengths[~inside], shares[~inside], 0.8, color=style.PALE)
    axes.bar(lengths[inside], shares[inside], 0.8, color=style.BLUE, label="frequency × magnitude")
    frequency = 100 * path_length_distribution(len(lengths) - 1)
    axes.step(lengths, frequency, where="mid", color=style.VERMILLION, lw=1.2, label="frequency alone")
    axes.set(xlabel="path length, blocks", ylabel="share, %")
    _legend(axes)


def _spectrum(document: Document, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    net = _net_with_gradients(document)
    spectrum, means = net["spectrum"]["0"], net["contribution"]["log10_mean_norms"]
    lengths = np.arange(len(means))
    bounds = [
        np.nan if mean is None else math.log10(math.comb(len(means) - 1, k)) + mean for k, mean in enumerate(means)
    ]
    sums = np.array([np.nan if norm is None else norm for norm in spectrum["log10_norms"]], dtype=float)
    left.plot(lengths, bounds, color=style.VERMILLION, lw=1.2, ls=(0, (5, 3)), label="number × mean norm")
    left.plot(lengths, sums, color=style.BLUE, label="norm of the sum")
    left.axhline(spectrum["log10_gradient"], color=style.GREY, lw=0.9, ls=(0, (2, 2)), label="the whole gradient")
    left.set(xlabel="path length, blocks", ylabel="gradient norm at the image")
    left.yaxis.set_major_formatter(lambda value, position: f"$10^{{{value:.0f}}}$")
    right.bar(lengths, 100 * np.array(spectrum["shares"]), 0.8, color=style.BLUE)
    right.axhline(0, color=style.GREY, lw=0.8)
    right.set(xlabel="path length, blocks", ylabel="share of the gradient, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.8)


def _training(document: Document, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    share = {"full": 1.0, "effective": document["net"]["keep"] / document["net"]["blocks"]}  # of the blocks, each step
    for title, epochs in document["training"].items():
        look = {
            "color": style.COLOURS[title],
            "marker": style.MARKERS[title],
            "label": net_label(document, title),
        }
        work = [share[title] * epoch for epoch in range(1, len(epochs) + 1)]
        left.plot(work, [epoch["loss"] for epoch in epochs], **look)
        right.plot(work, [100 * (1 - epoch["test_accuracy"]) for epoch in epochs], **look)
    left.set(xlabel="work, in epochs on all blocks", ylabel="training loss", yscale="log")
    right.set(xlabel="work, in epochs on all blocks", ylabel="test error, %", yscale="symlog", ylim=(0, 100))
    for axes in (left, right):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, handlelength=1.8)


FIGURES: dict[str, Callable[[Document, Figure], None]] = {
    "delete_each": _delete_each,
    "delete_random": _delete_random,
    "reorder": _reorder,
    "lengths": _lengths,
    "gradients": _gradients,
    "contribution": _contribution,
    "spectrum": _spectrum,
    "training": _training,
}


def _net_with_gradients(document: Document) -> Document:
    return next(net for net in document["nets"].values() if "contribution" in net)


def _median_and_spread(axes: Axes, title: str, x: list[int], values: list[list[float]], label: str) -> None:
    colour, marker = style.COLOURS[title], style.MARKERS[title]
    low, middle, high = np.array([np.quantile(v, (0.1, 0.5, 0.9)) for v in values]).T
    for position, trials in zip(x, values, strict=True):
        axes.plot([position] * len(trials), trials, marker, ms=3, mew=0, color=colour, alpha=0.3)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
    axes.plot(x, middle, marker=marker, color=colour, label=label)


def _tau_and_error(trials: list[dict[str, float]]) -> np.ndarray:
    return np.array([[trial["tau"], 100 * trial["error"]] for trial in trials]).T


def _chance(axes: Axes, document: Document) -> None:
    chance = 100 * (1 - 1 / document["data"]["classes"])
    axes.axhline(chance, color=style.GREY, lw=0.9, ls=(0, (2, 2)))
    axes.text(
        0.995,
        chance + 1,
        "guessing",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=style.SOFT,
    )


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", handlelength=1.8)


def _legend_above(axes: Axes) -> None:
    """Where points fill the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.8, borderaxespad=0.2)
