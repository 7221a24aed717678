"""Top-1 of trained weights, where `--weights` and `--images` give some."""

from __future__ import annotations

from benchmarks.predictions import compare
from benchmarks.providers import NotAvailableError


def test_predictions(benchmark, trained, precision, images, not_available):
    """Count the predictions that pathnet shares with eager PyTorch."""
    try:
        trained.pathnet(precision)
    except NotAvailableError as reason:
        not_available(str(reason))
    figures = benchmark.pedantic(compare, args=(trained, precision, images), rounds=1)
    benchmark.extra_info.update(kind="predictions", **figures)
