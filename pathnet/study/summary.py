"""Results in a few lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pathnet.analysis import mean_interval
from pathnet.study.lesions import best_to_drop
from pathnet.study.subject import TITLE
from pathnet.study.tables import NO_LESIONS

Document = dict[str, Any]
NAMES = {
    "delete_each": "one block deleted",
    "delete_pairs": "two blocks deleted, all pairs",
    "delete_stage_starts": "blocks deleted that start a stage",
    "delete_random": "random blocks deleted, {} at a time",
    "reorder": "random pairs swapped, {} at a time",
    "listed": "lesions of the list",
    "drop_greedily": "blocks to do without",
}
UNDRAWN = ("delete_pairs", "delete_stage_starts", "listed", "drop_greedily")


def lesion_summary(document: Document) -> str:
    """The whole net, then a line for each list of lesions: the mean with its interval of draws, the range of others."""
    net, data = document["nets"][TITLE], document["data"]
    whole = net["whole"]["0"]
    trained = f", trained under {sampler}," if (sampler := document["net"]["sampler"]) else ""
    lines = [f"{document['net']['name']}{trained} on {data['evaluated']:,} images: error {_percent(whole['error'])}"]
    lines += [line for name in NAMES if name in net for line in _lines(name, net[name])]
    lost = sum(lesion["loss"] is None for lesion in _all(net))
    if lost:
        lines.append(f"{lost} of the lesions drive the loss beyond all numbers; it is null in the results")
    return "\n".join(lines)


def list_lines(document: Document) -> list[str]:
    """A line for each list of lesions that has no figure of its own."""
    nets = document["nets"].values()
    return [line for net in nets for name in UNDRAWN if name in net for line in _lines(name, net[name])]


def gradient_summary(document: Document) -> str:
    """The slope of the drawn norms, the window of frequency times magnitude, and the exact shares."""
    net = document["nets"][TITLE]
    summary, spectrum = net["contribution"], net["spectrum"]["0"]
    window, low_high = summary["window"], summary["slope_interval"]
    shares = spectrum["shares"]
    peak = int(np.argmax(shares))
    return "\n".join(
        [
            f"{document['net']['name']}, one batch of {document['data']['evaluated']} images:",
            f"a path's gradient changes by {summary['decades_per_block']:+.3f} decades for each block that it runs "
            f"through (95 %: {low_high[0]:+.3f} to {low_high[1]:+.3f})",
            f"95 % of frequency x magnitude lies in lengths {window['first']} to {window['last']}",
            f"exact: length {peak} adds most to the gradient, {_percent(shares[peak])} of it; "
            f"all lengths add up to it within {spectrum['mismatch']:.0e}",
        ]
    )


def _lines(name: str, values: dict[str, Any]) -> Iterator[str]:
    if name == "drop_greedily":
        yield from _chosen(values)
        return
    if not isinstance(next(iter(values.values())), list):
        errors = {key: lesion["error"] for key, lesion in values.items()}
        worst = max(errors, key=errors.__getitem__)
        yield (
            f"{NAMES[name]}: error {_percent(min(errors.values()))} to {_percent(errors[worst])} ({worst}), "
            f"median {_percent(float(np.median(list(errors.values()))))}, {len(errors)} lesions"
        )
        return
    for count, trials in values.items():
        mean, low, high = mean_interval([trial["error"] for trial in trials])
        interval = "" if math.isnan(low) else f" (95 %: {_percent(max(low, 0.0))} to {_percent(min(high, 1.0))})"
        yield f"{NAMES[name].format(count)}: mean error {_percent(mean)}{interval}, {len(trials)} draws"


def _chosen(values: dict[str, Any]) -> Iterator[str]:
    """One line for each number of blocks: the best of the candidates."""
    for count in sorted({len(lesion["deleted"]) for lesion in values.values()}):
        blocks = best_to_drop(values, count)
        error = values[",".join(map(str, blocks))]["error"]
        yield f"blocks to do without, {count} found greedily: {', '.join(map(str, blocks))}, error {_percent(error)}"


def _all(net: Document) -> Iterator[dict[str, Any]]:
    for name, values in net.items():
        if name not in NO_LESIONS:
            for value in values.values():
                yield from value if isinstance(value, list) else [value]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
