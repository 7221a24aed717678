"""What the results say, in the few figures that a reader wants first, beside those of the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from pathnet.analysis import effective_window, mean_interval, path_length_distribution
from pathnet.study.nets import net_label

Document = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One row of the summary: the question, what this run gives, what the paper says."""

    question: str
    here: str
    paper: str


def percent(share: float, digits: int = 1) -> str:
    """A share as percent with a thin space, as in `12.3 %`."""
    return f"{100 * share:.{digits}f}\u202f%"


def findings(document: Document) -> list[Finding]:
    """The summary table, in the order of the report."""
    net = next(iter(document["nets"].values()))
    return [*_errors(document), *_lesions(document, net), *_rules(document), *_paths(document, net)]


def _errors(document: Document) -> Iterator[Finding]:
    for title, net in document["nets"].items():
        if "whole" not in net:
            continue
        paper = {"effective": "5.96\u202f% (23 of 54)", "vgg": "not printed", "depth": "not printed"}
        error = percent(net["whole"]["0"]["error"])
        yield Finding(f"Test error, {net_label(document, title)}", error, paper.get(title, "6.10\u202f%"))


def _lesions(document: Document, net: Document) -> Iterator[Finding]:
    if "delete_each" in net:
        yield Finding("Deleting one block costs", _cost_of_one(net), "little, except where a stage starts")
    if "depth" in document["nets"]:
        cost = _cost_of_one(document["nets"]["depth"])
        yield Finding("The same after stochastic depth", cost, "slightly less; stage starts matter less")
    if "vgg" in document["nets"]:
        cost = _cost_of_one(document["nets"]["vgg"])
        yield Finding("Deleting one layer of the VGG net costs", cost, "everything: it guesses (90\u202f% error)")
    for count, paper in ((10, "about 20\u202f% (10 of 54)"), (20, "severe (20 of 54)")):
        if str(count) in net.get("delete_random", {}):
            error = mean_error(net["delete_random"][str(count)])
            yield Finding(f"Mean error with {count} random blocks deleted", error, paper)


def mean_error(trials: list[Document]) -> str:
    """Mean error of random draws and, of more than one, the 95 % interval of the mean, inside 0..1."""
    mean, low, high = mean_interval([trial["error"] for trial in trials])
    if math.isnan(low):
        return percent(mean)
    return f"{percent(mean)} (95\u202f%: {percent(max(low, 0))} to {percent(min(high, 1))})"


def _rules(document: Document) -> Iterator[Finding]:
    rules = document["nets"].get("effective", {}).get("rules")
    if rules:
        errors = rules["0"]
        yield Finding(
            "The net of effective paths without a rule, with the multiplier, with statistics estimated anew",
            ", ".join(percent(errors[rule]) for rule in ("none", "multiplier", "statistics")),
            "rule not stated",
        )


def _paths(document: Document, net: Document) -> Iterator[Finding]:
    lengths = effective_window(path_length_distribution(document["net"]["blocks"]))
    yield Finding(
        "95\u202f% of the paths have a length of", f"{lengths.first} to {lengths.last} blocks", "19 to 35 blocks"
    )
    if "contribution" not in net:
        return
    summary, window = net["contribution"], net["contribution"]["window"]
    yield Finding(
        "The gradient changes with the length of its path by",
        f"{_signed(summary['decades_per_block'], 2)} decades a block (95\u202f%: {_interval(summary)})",
        "falls exponentially; slope not printed",
    )
    yield Finding(
        "95\u202f% of frequency × magnitude lies in",
        f"{window['first']} to {window['last']} blocks: {_share_of_paths(window['paths'])} of the paths",
        "5 to 17 blocks: 0.45\u202f% of the paths",
    )
    exact = effective_window(magnitude_shares(net))
    yield Finding(
        "95\u202f% of the gradient itself, summed exactly, lies in",
        f"{exact.first} to {exact.last} blocks",
        "not measured",
    )


def observations(document: Document) -> dict[str, str]:
    """One sentence for each figure that there are measurements for: what this run shows, in figures."""
    title, net = next(iter(document["nets"].items()))
    subject = f"the net {net_label(document, title)}" if title != "trained" else f"the {net_label(document, title)}"
    sentences = {}
    if "delete_each" in net:
        whole = percent(net["whole"]["0"]["error"])
        sentences["delete_each"] = f"Here {subject} errs on {whole} as it is; {_single_deletions(document, net)}"
    if "delete_random" in net:
        means = _over_counts(net["delete_random"], "deleted blocks")
        overlay = _compared(document, "delete_random")
        sentences["delete_random"] = f"Here the mean error of {subject} is {means}." + overlay + _cost_of_hits(net)
    if "reorder" in net:
        means = _over_counts(net["reorder"], "swapped pairs")
        sentences["reorder"] = f"Here the mean error of {subject} is {means}." + _compared(document, "reorder")
    return sentences | (_of_gradients(net) if "contribution" in net else {})


def _of_gradients(net: Document) -> dict[str, str]:
    summary = net["contribution"]
    span = np.nanmax(means := _finite(summary["log10_mean_norms"])) - np.nanmin(means)
    return {
        "gradients": f"Here the mean norm spans {span:.1f} decades, "
        f"{_signed(summary['decades_per_block'], 2)} for each block that the path runs through.",
        "contribution": f"Here lengths {summary['window']['first']} to {summary['window']['last']} hold "
        f"{percent(summary['window']['contribution'])} of the product, and "
        f"{_share_of_paths(summary['window']['paths'])} of all paths have such a length.",
        "spectrum": _exact_sums(net),
    }


def magnitude_shares(net: Document) -> np.ndarray:
    """Shares of the path lengths in the gradient without their sign, scaled to add up to 1."""
    shares = np.abs(net["spectrum"]["0"]["shares"])
    return shares / shares.sum()


def excess(net: Document) -> str:
    """How many times the gradient's norm all numbers of paths times their mean norms are, added up."""
    means = _finite(net["contribution"]["log10_mean_norms"])
    logs = means + [math.log10(math.comb(len(means) - 1, length)) for length in range(len(means))]
    total = logsumexp(np.nan_to_num(logs, nan=-np.inf) * math.log(10)) / math.log(10)
    times = 10 ** (total - net["spectrum"]["0"]["log10_gradient"])
    return f"{times:,.0f}" if times >= 10 else f"{times:.1f}"


def _exact_sums(net: Document) -> str:
    spectrum = net["spectrum"]["0"]
    window, peak = effective_window(magnitude_shares(net)), int(np.argmax(spectrum["shares"]))
    return (
        f"Here number × mean norm, added over all lengths, is {excess(net)} times the norm of the gradient. "
        f"Length {peak} adds most to the gradient, {percent(spectrum['shares'][peak])}, and lengths {window.first} to "
        f"{window.last} make up {percent(window.contribution)} of what all lengths add or take away."
    )


def _single_deletions(document: Document, net: Document) -> str:
    lesions = sorted(net["delete_each"].values(), key=lambda lesion: -lesion["error"])
    median = np.median([lesion["error"] for lesion in lesions])
    worst = ", ".join(f"{lesion['deleted'][0]} ({percent(lesion['error'])})" for lesion in lesions[:3])
    starts = " and ".join(map(str, document["net"]["stage_starts"]))
    return f"the median deletion gives {percent(median)}, the three worst are blocks {worst}; stages start at {starts}."


def _over_counts(parts: Document, what: str) -> str:
    counts = sorted(map(int, parts))
    picked = sorted({counts[0], counts[len(counts) // 2], counts[-1]})
    means = [f"{mean_error(parts[str(count)])} with {count}" for count in picked]
    return " and ".join(filter(None, (", ".join(means[:-1]), means[-1]))) + f" {what}"


def _compared(document: Document, experiment: str) -> str:
    """A sentence on the other nets at the middle count; empty where there are none."""
    others = {title: net[experiment] for title, net in list(document["nets"].items())[1:] if experiment in net}
    if not others:
        return ""
    counts = sorted(map(int, next(iter(others.values()))))
    middle = counts[len(counts) // 2]
    errors = [f"{mean_error(parts[str(middle)])} {net_label(document, title)}" for title, parts in others.items()]
    return f" With {middle} it is, of the nets with other trainings, {' and '.join(errors)}."


def _cost_of_hits(net: Document) -> str:
    """A sentence on the draws that hit one of the three costliest blocks; empty where these err no more than others."""
    if "delete_each" not in net:
        return ""
    singles = sorted(net["delete_each"].values(), key=lambda lesion: -lesion["error"])
    costliest = sorted(lesion["deleted"][0] for lesion in singles[:3])
    draws = {count: _hit_and_spared(lesions, costliest) for count, lesions in net["delete_random"].items()}
    count, (hit, spared) = max(draws.items(), key=lambda item: min(map(len, item[1])))  # where both are many
    if min(len(hit), len(spared)) < 2 or np.median(hit) <= np.median(spared):
        return ""
    return (
        f" Much hangs on the blocks that cost most alone, {', '.join(map(str, costliest))}: of the draws of {count} "
        f"blocks, those that hit one of them have a median error of {percent(np.median(hit))}, "
        f"the others {percent(np.median(spared))}."
    )


def _hit_and_spared(lesions: list[Document], blocks: list[int]) -> tuple[list[float], list[float]]:
    """Errors of the lesions that delete one of `blocks`, and of those that delete none."""
    errors: tuple[list[float], list[float]] = [], []
    for lesion in lesions:
        errors[set(blocks).isdisjoint(lesion["deleted"])].append(lesion["error"])
    return errors


def _finite(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _interval(summary: Document) -> str:
    return " to ".join(_signed(end, 2) for end in summary["slope_interval"])


def _cost_of_one(net: Document) -> str:
    whole = net["whole"]["0"]["error"]
    errors = [lesion["error"] - whole for lesion in net["delete_each"].values()]
    return f"{_signed(100 * np.median(errors), 1)} points (median), {_signed(100 * max(errors), 1)} (worst)"


def _share_of_paths(share: float) -> str:
    return percent(share, 2) if share >= 1e-4 else f"{100 * share:.0e}\u202f%"
