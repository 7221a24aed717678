"""The plots of a study, each a function of the results document."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from pathnet.files import writable_folder, write_atomically
from pathnet.study import lesion_figures, path_figures, style, training_figures
from pathnet.study.nets import Document

FIGURES: dict[str, Callable[[Document, Figure], None]] = {
    "delete_each": lesion_figures.delete_each,
    "delete_random": lesion_figures.delete_random,
    "reorder": lesion_figures.reorder,
    "lengths": path_figures.lengths,
    "gradients": path_figures.gradients,
    "contribution": path_figures.contribution,
    "spectrum": path_figures.spectrum,
    "training": training_figures.training,
    "rules": training_figures.rules,
}


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
