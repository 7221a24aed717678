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

from pathnet.analysis import (
    effective_window,
    mean_interval,
    path_length_distribution,
    surviving_paths,
    weighted_length_distribution,
)
from pathnet.files import writable_folder, write_atomically
from pathnet.samplers import StochasticDepth
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
        "depth": "trained with stochastic depth",
        "vgg": "VGG with 15 layers, no shortcuts",
        "effective": f"trained on {keep} of {blocks} blocks a step",
        "trained": "net of the weights file",
    }
    return names[title]


def _delete_each(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in document["nets"].items():
        errors = [100 * lesion["error"] for lesion in net["delete_each"].values()]
        label = net_label(document, title)
        axes.plot(errors, **style.of_net(title), lw=0.9, label=f"{label}, one layer" if title == "vgg" else label)
        axes.axhline(100 * net["whole"]["0"]["error"], color=style.COLOURS[title], lw=0.9, ls=(0, (1, 2)), zorder=1)
    for start in document["net"]["stage_starts"]:
        axes.axvline(start, color=style.GREY, lw=0.9, ls=":", zorder=0)
        style.note(axes, start, 0.99, "  stage start")
    _chance(axes, document)
    axes.set(xlabel="deleted block (of VGG: layer)", ylabel="test error, %")
    _percent_axis(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    _legend_above(axes)


def _delete_random(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in _with(document, "delete_random"):
        counts = sorted(map(int, net["delete_random"]))
        errors = [[100 * lesion["error"] for lesion in net["delete_random"][str(count)]] for count in counts]
        _mean_and_interval(axes, title, counts, errors, net_label(document, title))
    _chance(axes, document)
    axes.set(xlabel="deleted blocks", ylabel="test error, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    _legend_above(axes)


def _reorder(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    for title, net in _with(document, "reorder"):
        drawn = _tau_and_error([trial for part in net["reorder"].values() for trial in part])
        axes.plot(*drawn, style.MARKERS[title], color=style.COLOURS[title], ms=3, alpha=0.3, mew=0)
        by_tau = drawn[:, (-drawn[0]).argsort()]
        groups = np.array_split(by_tau, min(TAU_GROUPS, by_tau.shape[1]), axis=1)
        middles = [np.median(group, axis=1) for group in groups]
        axes.plot(*np.array(middles).T, **style.of_net(title), label=net_label(document, title))
    _chance(axes, document)
    axes.set(xlabel="Kendall's τ of the new order with the old one", ylabel="test error, %", ylim=(0, 100))
    axes.invert_xaxis()
    _legend_above(axes)


def _lengths(document: Document, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    blocks = document["net"]["blocks"]
    shares = path_length_distribution(blocks)
    window = effective_window(shares)
    inside = (np.arange(len(shares)) >= window.first) & (np.arange(len(shares)) <= window.last)
    left.bar(np.arange(len(shares)), 100 * shares, 0.8, color=np.where(inside, style.BLUE, style.PALE), label="all")
    for title, trained in _trained_lengths(document).items():
        look = {"color": style.COLOURS[title], "ls": style.LINES[title]}
        left.plot(100 * trained, lw=1.4, **look, label=TRAINED_ON[title].format(**document["net"]))
    left.set(xlabel="path length, blocks", ylabel="share of the paths, %")
    left.legend(loc="upper right", handlelength=1.8, title="paths in a step of training" if document["training"] else None)
    colours = (style.SKY, style.BLUE, style.GREEN, style.VERMILLION)
    deletions = sorted({max(1, round(blocks * part)) for part in (1 / 54, 5 / 54, 10 / 54, 20 / 54)})
    for deleted, colour, dash in zip(deletions, colours, style.LINES.values(), strict=False):
        left_alive = surviving_paths(blocks, deleted)
        right.plot(np.where(left_alive > 0, 100 * left_alive, np.nan), color=colour, ls=dash, label=f"{deleted} deleted")
    right.set(xlabel="path length, blocks", ylabel="paths that survive, %", yscale="log", ylim=(1e-4, 150))
    right.yaxis.set_major_formatter("{x:g}")
    right.legend(loc="lower left", handlelength=1.8)


def _trained_lengths(document: Document) -> dict[str, np.ndarray]:
    """Path lengths in a step of each training on fewer blocks, `[m + 1]` each."""
    if not document["training"]:
        return {}
    blocks = document["net"]["blocks"]
    kept = StochasticDepth(document["settings"]["survival"]).survival(blocks)
    return {
        "depth": weighted_length_distribution(kept / 2),
        "effective": path_length_distribution(document["net"]["keep"]),
    }


def _rules(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    places = np.arange(len(RULES))[::-1]
    for (title, net), shift in zip(_with(document, "rules"), (0.12, -0.12), strict=False):
        errors = [100 * net["rules"]["0"][rule] for rule in RULES]
        axes.plot(errors, places + shift, style.MARKERS[title], ms=6, color=style.COLOURS[title], label=net_label(document, title))
        for error, place in zip(errors, places, strict=True):
            axes.annotate(f"{error:.1f}", (error, place + shift), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
    full = document["nets"].get("full")
    if full:
        axes.axvline(100 * full["whole"]["0"]["error"], color=style.BLUE, lw=0.9, ls=(0, (1, 2)), label="net trained on all blocks")
    axes.set_yticks(places, RULES.values())
    axes.set(xlabel="test error, %", ylim=(-0.6, len(RULES) - 0.4), xlim=(0, 100))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _legend_above(axes, columns=3)


def _gradients(document: Document, figure: Figure) -> None:
    axes = figure.add_subplot()
    net = _net_with_gradients(document)
    lengths = range(len(net["gradients"]))
    norms = [np.array([np.nan if v is None else v for v in net["gradients"][str(k)]], dtype=float) for k in lengths]
    for length, values in zip(lengths, norms, strict=True):
        axes.plot([length] * len(values), 10**values, "o", ms=2.2, mew=0, color=style.GREY, alpha=0.5)
    quantiles = np.array([10 ** np.nanquantile(values, (0.1, 0.5, 0.9)) for values in norms])
    axes.fill_between(
        lengths, quantiles[:, 0], quantiles[:, 2], color=style.SKY, alpha=0.35, lw=0, label="10 % to 90 % of the paths"
    )
    summary = net["contribution"]
    means = np.array([np.nan if mean is None else mean for mean in summary["log10_mean_norms"]])
    axes.plot(lengths, quantiles[:, 1], color=style.BLUE, label="median")
    axes.plot(lengths, 10**means, color=style.GREEN, lw=1.2, ls=style.LINES["depth"], label="mean")
    centres = np.array([np.nanmean(values) for values in norms])
    slope, (low, high) = summary["decades_per_block"], summary["slope_interval"]
    fitted = 10 ** (np.nanmean(centres) + slope * (np.arange(len(centres)) - (len(centres) - 1) / 2))
    label = f"fit: {slope:+.3f} decades a block (95 %: {low:+.3f} to {high:+.3f})".replace("-", "−")
    axes.plot(lengths, fitted, color=style.VERMILLION, lw=1.2, ls=(0, (5, 3)), label=label)
    axes.set(xlabel="path length, blocks", ylabel=_gradient_norm(document), yscale="log")
    _legend(axes)


def _gradient_norm(document: Document) -> str:
    """The label of an axis: where the gradient is taken."""
    return "gradient norm at the stem's output" if document["settings"].get("at") == "stem" else "gradient norm at the image"


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
    left.set(xlabel="path length, blocks", ylabel=_gradient_norm(document))
    left.yaxis.set_major_formatter(lambda value, position: f"$10^{{{value:.0f}}}$")
    right.bar(lengths, 100 * np.array(spectrum["shares"]), 0.8, color=style.BLUE)
    right.axhline(0, color=style.GREY, lw=0.8)
    right.set(xlabel="path length, blocks", ylabel="share of the gradient, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.8)


def _training(document: Document, figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    for title, epochs in document["training"].items():
        if title == "vgg":
            continue
        look = {**style.of_net(title), "label": net_label(document, title)}
        work = np.arange(1, len(epochs) + 1) * len(document["training"]["full"]) / len(epochs)
        left.plot(work, [epoch["loss"] for epoch in epochs], **look)
        right.plot(work, [100 * (1 - epoch["test_accuracy"]) for epoch in epochs], **look)
    left.set(xlabel="work, in epochs on all blocks", ylabel="training loss", yscale="log")
    right.set(xlabel="work, in epochs on all blocks", ylabel="test error, %")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    _percent_axis(right)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)


RULES = {
    "none": "no rule",
    "multiplier": "branches multiplied",
    "statistics": "batch norm re-estimated",
    "both": "both",
}
TRAINED_ON = {"depth": "stochastic depth", "effective": "{keep} of {blocks}"}
FIGURES: dict[str, Callable[[Document, Figure], None]] = {
    "delete_each": _delete_each,
    "delete_random": _delete_random,
    "reorder": _reorder,
    "lengths": _lengths,
    "gradients": _gradients,
    "contribution": _contribution,
    "spectrum": _spectrum,
    "training": _training,
    "rules": _rules,
}


def _net_with_gradients(document: Document) -> Document:
    return next(net for net in document["nets"].values() if "contribution" in net)


def _with(document: Document, experiment: str) -> list[tuple[str, Document]]:
    """The nets, with their titles, on which `experiment` was measured."""
    return [(title, net) for title, net in document["nets"].items() if experiment in net]


def _mean_and_interval(axes: Axes, title: str, x: list[int], values: list[list[float]], label: str) -> None:
    look = style.of_net(title)
    for position, trials in zip(x, values, strict=True):
        axes.plot([position] * len(trials), trials, look["marker"], ms=3, mew=0, color=look["color"], alpha=0.25)
    mean, low, high = np.array([mean_interval(trials) for trials in values]).T
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    axes.plot(x, mean, **look, label=label)


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


def _legend_above(axes: Axes, columns: int = 2) -> None:
    """Where points fill the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, handlelength=2.4, borderaxespad=0.2)


def _percent_axis(axes: Axes) -> None:
    """Errors of 1 % and of 90 % in one view: linear below 1 %, logarithmic above."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
