"""Memory of the training steps: bytes kept for the backward and peak of tensor memory, against eager."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.memory import peak_bytes, saved_bytes
from benchmarks.providers import ALL_BLOCKS, CHANNELS_LAST, Shared, accepted_backends, rivals


def test_memory(benchmark, whole_net_step):
    """Count, exactly, what one step keeps and what it holds at its peak."""
    shared = Shared.of(whole_net_step)
    ours, _ = accepted_backends(shared)
    eager = {name: p for name, p in rivals(shared).items() if name in (CHANNELS_LAST, ALL_BLOCKS)}
    figures = {}
    for name, provider in (eager | ours).items():
        provider.step()  # momentum buffers exist from here on
        provider.module.zero_grad()
        saved = saved_bytes(provider.step, provider.module)
        provider.module.zero_grad()
        figures[name] = {"saved": saved, "peak": peak_bytes(provider.step)}
    benchmark.pedantic(list(ours.values())[-1].step, rounds=1)
    benchmark.extra_info.update(kind="memory", case=asdict(whole_net_step), bytes=figures)
