"""Seconds of every case: plain PyTorch, torch.compile and pathnet in turns.

The table that pytest-benchmark prints is pathnet alone; `pathnet bench` prints them all.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch._dynamo.utils import counters

from benchmarks import agreement
from benchmarks.bounds import count_work
from benchmarks.harness import Race
from benchmarks.providers import COMPILED, PATHNET, NotAvailableError, Shared, rivals
from benchmarks.ran import what_ran


def test_speed(benchmark, case, rounds, compiled, not_available):
    """Time the case; where pathnet disagrees with the plain net this fails and there is no number."""
    torch._dynamo.reset()
    counters.clear()
    shared = Shared.of(case)
    try:
        ours = shared.pathnet()
    except NotAvailableError as reason:
        not_available(str(reason))
    agreement.check(case)
    calls = {name: provider.step for name, provider in rivals(shared, compiled=compiled).items()}
    race = Race({**calls, PATHNET: ours.step})
    race.warm_up(2)
    ran = what_ran(case, ours)
    benchmark.pedantic(race.run_subject, setup=race.run_rivals, rounds=rounds)
    if COMPILED in race.calls:
        assert counters["stats"]["unique_graphs"] >= 1, "torch.compile must have compiled a graph, it ran eagerly"
    benchmark.extra_info.update(
        kind="speed",
        case=asdict(case),
        ran=asdict(ran),
        work=asdict(count_work(case)),
        **race.summary(list(calls)),
    )
