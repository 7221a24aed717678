"""The nets of a study: their titles in the results, and what reports call them."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
PAPER_BLOCKS = 54  # of the net of Veit et al. 2016, whose figures stand beside those of equal nets
FULL, DEPTH, EFFECTIVE, CONTROL = "full", "depth", "effective", "vgg"


def net_label(document: Document, title: str) -> str:
    """What a net is called in legends and tables."""
    blocks, keep = document["net"]["blocks"], document["net"].get("keep")
    names = {
        FULL: "trained on all blocks",
        DEPTH: "trained with stochastic depth",
        EFFECTIVE: f"trained on {keep} of {blocks} blocks a step",
        CONTROL: "VGG with 15 layers, no shortcuts",
        "trained": "net of the weights file",
    }
    return names[title]


def nets_with(document: Document, experiment: str) -> list[tuple[str, Document]]:
    """The nets, with their titles, on which `experiment` was measured."""
    return [(title, net) for title, net in document["nets"].items() if experiment in net]
