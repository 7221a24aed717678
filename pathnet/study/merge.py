"""Results of several runs on the same weights and images as one document, and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathnet.files import writable_folder
from pathnet.study.figures import draw_figures
from pathnet.study.report import write_report
from pathnet.study.results import load_results

Document = dict[str, Any]


def report_on(folders: Sequence[Path], out: Path) -> Path:
    """Draw the plots and write the `report.html` of what `folders` hold into `out`; its path.

    A study stands alone; lesions and gradients of the same weights and images go together. ValueError where a run is
    not finished, and where they do not fit together.
    """
    documents = [_finished(folder) for folder in folders]
    document = documents[0] if documents[0]["command"] == "study" and len(documents) == 1 else merged(documents)
    draw_figures(document, writable_folder(out, "out") / "plots")
    return write_report(document, out)


def merged(documents: Sequence[Document]) -> Document:
    """One document of lesions and gradients; what the gradients were measured on is called so in the settings."""
    _check_together(documents)
    whole: Document = {}
    for document in sorted(documents, key=lambda document: document["command"]):  # lesions say which images
        settings = dict(document["settings"])
        if document["command"] == "gradients":
            settings |= {"gradient_images": settings.pop("images"), "gradient_part": settings.pop("part")}
        together = {
            "settings": whole.get("settings", {}) | settings,
            "nets": {name: whole.get("nets", {}).get(name, {}) | net for name, net in document["nets"].items()},
            "seconds": whole.get("seconds", {}) | document["seconds"],
        }
        whole |= document | together
    return whole


def _check_together(documents: Sequence[Document]) -> None:
    first = documents[0]["identity"]
    if any(document["command"] == "study" for document in documents):
        raise ValueError("folders must be one study, or lesions and gradients, but a study is among several")
    for document in documents:
        for name, value in document["identity"].items():
            if value != first[name]:
                raise ValueError(f"folders must hold runs on the same {name}, but it is {first[name]} and {value}")
    names = [name for document in documents for net in document["nets"].values() for name in net if name != "whole"]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"folders must hold each experiment once, but {', '.join(twice)} stands in several")


def _finished(folder: Path) -> Document:
    document = load_results(folder)
    if not document["complete"]:
        raise ValueError(f"{folder} holds a run that is not finished; the command that began it resumes it")
    return document
