"""Launches and bytes of a training step on a GPU, eager's and ours: counted on tensors without memory, not timed.

`python -m benchmarks.counts --out docs/benchmarks.md` writes the section of that page anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.eager import FORWARD, FULL, BasicBlock, Block, Bottleneck, PreActBlock
from benchmarks.eager_counter import Counted, cast_convolutions, count

BATCH, SIDE = 128, 32
STAGES = ((16, 32, 18), (32, 16, 17), (64, 8, 17))  # channels, side and identity blocks of ResNet-110
FORMS: tuple[tuple[str, type[Block], str], ...] = (
    ("basic block, FULL", BasicBlock, "basic"),
    ("pre-activation block, FULL", PreActBlock, "preact"),
    ("bottleneck block, FULL", Bottleneck, "bottleneck"),
    ('the same, `recompute="conv3"`', Bottleneck, "recomputed_bottleneck"),
)  # a row each: its name, eager's block and our form
HEADING = "## Launches and bytes on a GPU, counted"
TEXT = """Counted on tensors without memory, not timed: no GPU was measured. A training step in float16 at batch
128; T is the size of a block's value. Eager is mixed precision in channels-last (`benchmarks/eager_counter.py`); the
second number of its bytes is for batch norms that read their input twice. Ours are the Triton kernels as their launches
describe themselves ([gpu-kernels.md](gpu-kernels.md)). A block is one in the middle of a run, activations alone; a net
is all 52 identity blocks of ResNet-110, with weights and the ends of runs.
Written by `python -m benchmarks.counts --out docs/benchmarks.md`."""


@cache
def section() -> str:
    """The heading, what was counted, and the table; without Triton its columns are dashes."""
    header = ["step", "eager launches", "bytes", "saved", "our launches", "bytes", "saved"]
    lines = [header, ["---", *["---:"] * 6], *_rows()]
    return "\n".join([HEADING, "", TEXT, "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def _rows() -> Iterator[list[str]]:
    ours = find_spec("triton") is not None
    for name, kind, form in FORMS:
        yield [name, *_block(kind, FULL), *(_our_block(kind, form) if ours else ["-"] * 3)]
    for name, step in (("all FULL", 1), ("17 of 52 FULL, the rest FORWARD", 3)):
        yield [f"ResNet-110, {name}", *_net(step), *(_our_net(step) if ours else ["-"] * 3)]


def _block(kind: type[Block], gate: int) -> list[str]:
    """What a second block of a run adds to the first."""
    one, two = (_eager(kind, 16, SIDE, [gate] * blocks) for blocks in (1, 2))
    size = BATCH * 16 * kind.expansion * SIDE * SIDE * 2
    least, again, saved = (
        (getattr(two, field) - getattr(one, field)) / size for field in ("large_bytes", "again_bytes", "saved_bytes")
    )
    return [str(two.launches - one.launches), f"{least:g} to {least + again:g} T", f"{saved:g} T"]


def _net(step: int) -> list[str]:
    counts = [_eager(BasicBlock, channels, side, gates) for channels, side, gates in _stages(step)]
    least, again, saved = (sum(getattr(c, f) for c in counts) for f in ("unique_bytes", "again_bytes", "saved_bytes"))
    bytes_ = f"{least / 2**30:.2f} to {(least + again) / 2**30:.2f} GiB"
    return [str(sum(c.launches for c in counts)), bytes_, f"{saved / 2**20:.0f} MiB"]


def _eager(kind: type[Block], channels: int, side: int, gates: list[int]) -> Counted:
    with torch.device("meta"):
        outer = channels * kind.expansion
        blocks = [cast_convolutions(kind(outer, channels, 1, None)) for _ in gates]
        x = torch.empty(BATCH, outer, side, side, dtype=torch.float16, memory_format=torch.channels_last)
    return count(blocks, gates, x)


def _stages(step: int) -> Iterator[tuple[int, int, list[int]]]:
    """Channels, side and gates of the stages; every so many-th block of the net is FULL."""
    gates = iter(FULL if block % step == step - 1 else FORWARD for block in range(sum(count for _, _, count in STAGES)))
    for channels, side, blocks in STAGES:
        yield channels, side, [next(gates) for _ in range(blocks)]


def _ours(channels: int, side: int, gates: list[int], form: str = "basic") -> tuple[int, int, int, list[Tensor]]:
    """Launches, unique bytes of all and of activations, and what is kept, the run's input too where it is read."""
    from pathnet.kernels.catalogue import meta_kept, meta_run
    from pathnet.kernels.launch import WORKSPACE

    launches = meta_run(channels, gates, "float16", images=BATCH, side=side, form=form)
    least = BATCH * side * side
    touched = [
        launch.arguments[name]
        for launch in launches
        for names in (launch.reads, launch.writes)
        for name in names
        if name not in WORKSPACE
    ]
    large = [t for t in touched if t.numel() >= least]
    x = torch.empty(BATCH, channels, side, side, dtype=torch.float16, device="meta")
    kept = [t for t in meta_kept(channels, gates, BATCH, side, form) if t.numel() >= least]
    return len(launches), _bytes(touched), _bytes(large), [*kept, *([x] if gates[0] == FULL else [])]


def _our_block(kind: type[Block], form: str) -> list[str]:
    channels = 16 * kind.expansion
    one, two = (_ours(channels, SIDE, [FULL] * blocks, form) for blocks in (2, 3))
    size = BATCH * channels * SIDE * SIDE * 2
    saved = (_bytes(two[3]) - _bytes(one[3])) / size
    return [str(two[0] - one[0]), f"{(two[2] - one[2]) / size:g} T", f"{saved:g} T"]


def _our_net(step: int) -> list[str]:
    runs = [_ours(channels, side, gates) for channels, side, gates in _stages(step)]
    launches, unique = (sum(run[i] for run in runs) for i in (0, 1))
    saved = sum(_bytes(run[3]) for run in runs)
    return [str(launches), f"{unique / 2**30:.2f} GiB", f"{saved / 2**20:.0f} MiB"]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def with_section(page: str) -> str:
    """The page with this section written anew; it stands before what is not fast yet."""
    before, heading, after = page.partition("## What is not fast yet")
    return before.partition(HEADING)[0] + section() + "\n" + heading + after


def main() -> None:
    """Print the section and, with `--out`, write it into a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--out", type=Path, help="the page, which has the section already or gets it")
    arguments = parser.parse_args()
    print(section())
    if arguments.out:
        arguments.out.write_text(with_section(arguments.out.read_text()))


if __name__ == "__main__":
    main()
