"""One look for every plot: colours that the colour-blind and grey printers tell apart, no frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

# Okabe and Ito's colours; each net has a marker and a dash of its own too.
BLUE, VERMILLION, SKY, GREEN = "#0072B2", "#D55E00", "#56B4E9", "#009E73"
GREY, INK = "#8A8F98", "#1F2430"
SOFT, PALE = "#5B6270", "#C9CED6"  # remarks; bars that are not meant
COLOURS = {"full": BLUE, "depth": GREEN, "effective": VERMILLION, "vgg": INK, "trained": BLUE}
MARKERS = {"full": "o", "depth": "^", "effective": "s", "vgg": "D", "trained": "o"}
LINES = {"full": "-", "depth": (0, (5, 1.5)), "effective": (0, (5, 1.5, 1, 1.5)), "vgg": (0, (1, 1)), "trained": "-"}
WIDE = (7.2, 3.5)  # inches

SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILLION, SKY, GREY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 9.5,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.dpi": 200,
    "svg.hashsalt": "pathnet",  # equal results give equal files
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 9,
    "xtick.major.width": 0.8,
    "ytick.color": INK,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Apply the style to the figures made inside."""
    with matplotlib.rc_context(SETTINGS):
        yield


def note(axes: Axes, x: float, y: float, text: str, **kwargs: Any) -> None:
    """A small grey remark in data coordinates of x and axes coordinates of y."""
    placed: dict[str, Any] = {"ha": "left", "va": "top", "fontsize": 8.5, "color": SOFT, **kwargs}
    axes.text(x, y, text, transform=axes.get_xaxis_transform(), **placed)


def lengths_axis(*all_axes: Axes) -> None:
    """Path lengths, which are whole numbers, along x."""
    for axes in all_axes:
        axes.set_xlabel("path length, blocks")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def of_net(title: str) -> dict[str, Any]:
    """Colour, marker and dash of the curve of the net called `title`."""
    return {"color": COLOURS[title], "marker": MARKERS[title], "ls": LINES[title]}


def chance(axes: Axes, document: dict[str, Any]) -> None:
    """The error of guessing, as a line."""
    chance = 100 * (1 - 1 / document["data"]["classes"])
    axes.axhline(chance, color=GREY, lw=0.9, ls=(0, (2, 2)))
    axes.text(
        0.995,
        chance + 1,
        "guessing",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=SOFT,
    )


def legend(axes: Axes) -> None:
    """Where there is room inside the axes."""
    axes.legend(loc="best", handlelength=1.8)


def legend_above(axes: Axes) -> None:
    """Where points fill the axes."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=2.4, borderaxespad=0.2)


def percent_axis(axes: Axes) -> None:
    """Errors of 1 % and of 90 % in one view: linear below 1 %, logarithmic above."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
