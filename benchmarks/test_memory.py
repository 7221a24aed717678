"""Memory of the training steps: bytes kept for the backward and the peak of the process, against eager."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.memory import kept_by_gates, saved_bytes
from benchmarks.peak import peak_bytes
from benchmarks.providers import ALL_BLOCKS, CHANNELS_LAST, PATHNET, Shared, rivals


def test_memory(benchmark, whole_net_step):
    """Count, exactly, what one step keeps, and measure what it holds at its peak."""
    shared = Shared.of(whole_net_step)
    ours = shared.pathnet()
    eager = {name: p for name, p in rivals(shared, compiled=False).items() if name in (CHANNELS_LAST, ALL_BLOCKS)}
    figures = {}
    for name, provider in (eager | {PATHNET: ours}).items():
        provider.step()  # momentum buffers exist from here on
        provider.module.zero_grad()
        saved = saved_bytes(provider.step, provider.module)
        figures[name] = {"saved": saved, "peak": peak_bytes(whole_net_step, name)}
    benchmark.pedantic(ours.step, rounds=1)
    benchmark.extra_info.update(kind="memory", case=asdict(whole_net_step), bytes=figures)


def test_memory_of_a_block(benchmark, kind_of_block):
    """Count what blocks under each gate keep, in units of T, the bytes of their stream."""
    kept = benchmark.pedantic(kept_by_gates, args=(kind_of_block,), rounds=1)
    benchmark.extra_info.update(kind="blocks", block=kind_of_block, kept=kept)
