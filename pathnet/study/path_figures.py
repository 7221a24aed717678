"""Plots of path lengths and of the gradient by path length."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from pathnet.analysis import (
    effective_window,
    path_length_distribution,
    surviving_paths,
    weighted_length_distribution,
)
from pathnet.samplers import StochasticDepth
from pathnet.study import nets, style
from pathnet.study.nets import Document

TRAINED_ON = {"depth": "stochastic depth", "effective": "{keep} of {blocks} blocks"}
DELETED = (1 / 54, 5 / 54, 10 / 54, 20 / 54)  # of all blocks, where survivors are counted


def lengths(document: Document, figure: Figure) -> None:
    """How many paths have which length, in the net and in steps of training, and what deletions leave of them."""
    left, right = figure.subplots(1, 2)
    blocks = document["net"]["blocks"]
    shares = path_length_distribution(blocks)
    window = effective_window(shares)
    inside = (np.arange(len(shares)) >= window.first) & (np.arange(len(shares)) <= window.last)
    left.bar(
        np.arange(len(shares)),
        100 * shares,
        0.8,
        color=np.where(inside, style.BLUE, style.PALE),
        label="all blocks",
    )
    for title, trained in _trained_lengths(document).items():
        look = {"color": style.COLOURS[title], "ls": style.LINES[title]}
        left.plot(100 * trained, lw=1.4, **look, label=TRAINED_ON[title].format(**document["net"]))
    style.lengths_axis(left)
    left.set(ylabel="share of the paths, %")
    if document["training"]:
        left.legend(loc="upper right", handlelength=1.8, title="paths in a step on")
    colours = (style.SKY, style.BLUE, style.GREEN, style.VERMILLION)
    deletions = sorted({max(1, round(blocks * part)) for part in DELETED})
    for deleted, colour, dash in zip(deletions, colours, style.LINES.values(), strict=False):
        alive = 100 * surviving_paths(blocks, deleted)
        right.plot(np.where(alive > 0, alive, np.nan), color=colour, ls=dash, label=f"{deleted} deleted")
    style.lengths_axis(right)
    right.set(ylabel="paths that survive, %", yscale="log", ylim=(1e-4, 150))
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


def gradients(document: Document, figure: Figure) -> None:
    """Norm of the gradient along drawn paths, by their length."""
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
    style.lengths_axis(axes)
    axes.set(ylabel=_gradient_norm(document), yscale="log")
    style.legend(axes)


def _gradient_norm(document: Document) -> str:
    """The label of an axis: where the gradient is taken."""
    return (
        "gradient norm at the stem's output"
        if document["settings"].get("at") == "stem"
        else "gradient norm at the image"
    )


def contribution(document: Document, figure: Figure) -> None:
    """Frequency times magnitude of each length."""
    axes = figure.add_subplot()
    result = _net_with_gradients(document)["contribution"]
    window, lengths = result["window"], np.arange(len(result["shares"]))
    inside = (lengths >= window["first"]) & (lengths <= window["last"])
    shares = 100 * np.array(result["shares"])
    axes.bar(lengths[~inside], shares[~inside], 0.8, color=style.PALE)
    axes.bar(lengths[inside], shares[inside], 0.8, color=style.BLUE, label="frequency × magnitude")
    frequency = 100 * path_length_distribution(len(lengths) - 1)
    axes.step(lengths, frequency, where="mid", color=style.VERMILLION, lw=1.2, label="frequency alone")
    if document["net"]["blocks"] == nets.PAPER_BLOCKS:
        below = -0.015 * axes.get_ylim()[1]
        axes.hlines(below, 5, 17, lw=3, color=style.INK, label="the paper's window, CIFAR-10")
    style.lengths_axis(axes)
    axes.set(ylabel="share, %")
    style.legend(axes)


def spectrum(document: Document, figure: Figure) -> None:
    """The exact gradient by path length: norms of the sums, and signed shares."""
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
    style.lengths_axis(left)
    left.set(ylabel=_gradient_norm(document))
    left.yaxis.set_major_formatter(lambda value, position: f"$10^{{{value:.0f}}}$")
    right.bar(lengths, 100 * np.array(spectrum["shares"]), 0.8, color=style.BLUE)
    right.axhline(0, color=style.GREY, lw=0.8)
    style.lengths_axis(right)
    right.set(ylabel="share of the gradient, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.8)


def _net_with_gradients(document: Document) -> Document:
    return next(net for net in document["nets"].values() if "contribution" in net)
