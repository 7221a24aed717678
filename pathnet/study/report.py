"""`report.html`: one file that holds everything, plots included."""

from __future__ import annotations

import base64
from datetime import datetime
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from pathnet.analysis import surviving_paths
from pathnet.files import write_atomically
from pathnet.study.findings import excess, findings, observations, percent
from pathnet.study.nets import net_label
from pathnet.study.summary import list_lines

FILE_NAME = "report.html"


def write_report(document: dict[str, Any], out: Path) -> Path:
    """Render the results and the plots in `out/plots` into `out/report.html` and return its path."""
    templates = Environment(
        loader=PackageLoader("pathnet.study", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = templates.get_template("report.html.j2").render(
        **document,
        title=_title(document),
        name=_name(document),
        measured={name for net in document["nets"].values() for name in net},
        lists=list_lines(document),
        findings=findings(document),
        observations=observations(document),
        plot=lambda name: _inline(out / "plots" / f"{name}.svg"),
        label=lambda name: net_label(document, name),
        lost=_lost_paths(document["net"]["blocks"]),
        worst_start=lambda name: max(_start_errors(document, name)),
        percent=percent,
        median=np.median,
        excess=next((excess(net) for net in document["nets"].values() if "contribution" in net), None),
        spectrum=next((net["spectrum"]["0"] for net in document["nets"].values() if "spectrum" in net), None),
        written=datetime.now().strftime("%-d %B %Y, %H:%M"),
    )
    path = out / FILE_NAME
    write_atomically(path, lambda beside: beside.write_text(html, encoding="utf-8"))
    return path


def _start_errors(document: dict[str, Any], title: str) -> list[float]:
    """Errors of a net without one of the blocks that start a stage."""
    return [document["nets"][title]["delete_each"][str(start)]["error"] for start in document["net"]["stage_starts"]]


def _lost_paths(blocks: int) -> dict[str, float]:
    """What is left of short and of long paths when a fifth of the blocks is deleted."""
    deleted, shorter, longer = max(1, round(blocks / 5.4)), max(1, round(blocks / 10.8)), blocks // 2
    left = surviving_paths(blocks, deleted)
    return {
        "deleted": deleted,
        "shorter": shorter,
        "longer": longer,
        "short": float(left[shorter]),
        "long": float(left[longer]),
    }


def _name(document: dict[str, Any]) -> str:
    """What weights said of their net, or what was asked for."""
    return document["net"].get("name") or document["settings"]["net"]


def _title(document: dict[str, Any]) -> str:
    name = _name(document)
    kind, depth = "pre‑activation ResNet" if name.startswith("preact") else "ResNet", name.lstrip(ascii_letters + "_")
    return f"The paths of a {kind}\u2011{depth}"  # a hyphen that does not break


def _inline(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
