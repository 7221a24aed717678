"""Seconds of every case: plain PyTorch, torch.compile and pathnet in turns.

The table that pytest-benchmark prints is pathnet's fastest backend alone; `pathnet bench` prints them all.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch._dynamo.utils import counters

from benchmarks import agreement
from benchmarks.bounds import Bound, count_work
from benchmarks.harness import Race
from benchmarks.providers import ALL_BLOCKS, CHANNELS_LAST, COMPILED, NCHW, Shared, accepted_backends, rivals


def test_speed(benchmark, case, rounds, ceilings):
    """Time the case; a backend that disagrees with the plain net fails here and gets no number."""
    torch._dynamo.reset()
    counters.clear()
    shared = Shared.of(case)
    ours, refused = accepted_backends(shared)
    for name in ours:
        agreement.check(case, name.removeprefix("pathnet "))
    race = Race({name: provider.step for name, provider in (rivals(shared) | ours).items()})
    race.warm_up(2)
    benchmark.pedantic(race.run_subject, setup=race.run_rivals, rounds=rounds)
    if COMPILED in race.calls:
        assert counters["stats"]["unique_graphs"] >= 1, "torch.compile must have compiled a graph, it ran eagerly"
    bound = Bound.of(*count_work(case), ceilings)
    baselines = [name for name in (NCHW, CHANNELS_LAST, ALL_BLOCKS, COMPILED) if name in race.calls]
    benchmark.extra_info.update(
        kind="speed",
        case=asdict(case),
        subject=list(ours)[-1],
        refused=refused,
        bound=asdict(bound),
        **race.summary(baselines),
    )
