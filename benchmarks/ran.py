"""What really ran in one step of pathnet, so that a quiet fall-back to plain PyTorch shows."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pathnet
from benchmarks.cases import EVALUATION, Case
from benchmarks.providers import Provider

CONVOLUTIONS = ("convolution", "convolution_backward")


@dataclass(frozen=True)
class Ran:
    """One step, forward and backward.

    `blocks`: how many blocks each backend runs, as `pathnet.explain` says; `ops`: how often each of pathnet's ops
    was called; `convolutions`: those that PyTorch ran outside of them; `refusals`: why the CPU kernels left blocks out.
    """

    blocks: dict[str, int]
    ops: dict[str, int]
    convolutions: int
    refusals: list[str]

    def __str__(self) -> str:
        blocks = ", ".join(f"{backend} {count}" for backend, count in self.blocks.items())
        ops = ", ".join(f"{count} x {op}" for op, count in self.ops.items()) or "no op of pathnet"
        return f"{blocks} ({ops}, {self.convolutions} x convolution of PyTorch)"


def what_ran(case: Case, provider: Provider) -> Ran:
    """Run pathnet's step of the case once more and look."""
    with torch.no_grad() if case.work == EVALUATION else nullcontext():
        rows = pathnet.explain(provider.net, replace(case, stage=None).input()).blocks
    if case.stage is not None:
        sizes = [len(stage) for stage in provider.net.stages]
        start = sum(sizes[: case.stage - 1])
        rows = rows[start : start + sizes[case.stage - 1]]
    with _Recorder() as recorder:
        provider.step()
    refusals = dict.fromkeys(row.reasons["cpu"] for row in rows if "cpu" in row.reasons)
    return Ran(
        blocks=dict(Counter(row.backend for row in rows)),
        ops=dict(recorder.ours),
        convolutions=recorder.convolutions,
        refusals=list(refusals),
    )


class _Recorder(TorchDispatchMode):
    """Counts pathnet's ops and PyTorch's convolutions as they reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func._schema.name.split("::")
        if namespace == "pathnet":
            self.ours[name] += 1
        self.convolutions += name in CONVOLUTIONS
        return func(*args, **(kwargs or {}))
