"""Plots of the trainings, and of the rules by which their nets are tested."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from pathnet.study import style
from pathnet.study.nets import CONTROL, FULL, Document, net_label, nets_with

RULES = {
    "none": "no rule",
    "multiplier": "branches multiplied",
    "statistics": "batch norm re-estimated",
    "both": "both",
}


def training(document: Document, figure: Figure) -> None:
    """Learning curves of the residual nets, against the blocks that ran."""
    left, right = figure.subplots(1, 2)
    for title, epochs in document["training"].items():
        if title == CONTROL:
            continue
        look = {**style.of_net(title), "label": net_label(document, title)}
        work = np.arange(1, len(epochs) + 1) * len(document["training"]["full"]) / len(epochs)
        left.plot(work, [epoch["loss"] for epoch in epochs], **look)
        right.plot(work, [100 * (1 - epoch["test_accuracy"]) for epoch in epochs], **look)
    left.set(xlabel="work, in epochs on all blocks", ylabel="training loss", yscale="log")
    right.set(xlabel="work, in epochs on all blocks", ylabel="test error, %")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    style.percent_axis(right)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2
    )


def rules(document: Document, figure: Figure) -> None:
    """Test errors of nets trained under samplers, by the rule of testing."""
    axes = figure.add_subplot()
    places = np.arange(len(RULES))[::-1]
    for (title, net), shift in zip(nets_with(document, "rules"), (0.12, -0.12), strict=False):
        errors = [100 * net["rules"]["0"][rule] for rule in RULES]
        look: dict[str, Any] = {"color": style.COLOURS[title], "label": net_label(document, title)}
        axes.plot(errors, places + shift, style.MARKERS[title], ms=6, **look)
        for error, place in zip(errors, places, strict=True):
            at: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
            axes.annotate(f"{error:.1f}", (error, place + shift), **at)
    full = 100 * document["nets"][FULL]["whole"]["0"]["error"]
    axes.axvline(full, color=style.COLOURS[FULL], lw=0.9, ls=(0, (1, 2)), label=net_label(document, FULL))
    axes.set_yticks(places, RULES.values())
    axes.set(xlabel="test error, %", ylim=(-0.6, len(RULES) - 0.4), xlim=(0, 100))
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    style.legend_above(axes)
