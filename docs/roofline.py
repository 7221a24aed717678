"""What the passes of the CPU kernels compute and move, and what a core can do at best: the tables of cpu-kernels.md.

Counts follow csrc/cpu; ceilings were measured by benchmarks/ceilings.cpp. docs/drawings.py writes all down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# One thread, AVX-512, the highest of several runs: 10^9 multiply-adds a second, and GB/s (memory: non-temporal stores).
PEAK = 91.9
READ = {"L2": 144.0, "memory": 15.9}
WRITE = {"L2": 50.0, "memory": 24.6}

SHAPES = {16: "16x32x32", 32: "32x16x16", 64: "64x8x8"}
BITS = 1 / 32  # of T: one bit beside each float
FLOAT, BLOCK = 4, 16
BLOCKS = 18  # of a stage of ResNet-110


@dataclass(frozen=True)
class Pass:
    """One pass over the batch, with what it moves through memory, in T."""

    key: str  # in the drawing; passes of equal traffic share one
    form: str
    name: str
    prologue: str
    epilogue: str
    reads: dict[str, float]
    writes: dict[str, float]
    products: int = 1  # 2: the gradients of the input and of the weights


def values(*names: str) -> dict[str, float]:
    return {name: BITS if name.startswith("bits") else 1.0 for name in names}


POST, PRE = "post-activation", "pre-activation"
PASSES = (
    Pass("a", POST, "forward, conv1", "x = ReLU(norm2(u2') + x')", "sums of u1", values("u2'", "x'"),
         values("x", "bits", "u1")),
    Pass("b", POST, "forward, conv2", "ReLU(norm1(u1))", "sums of u2", values("u1"), values("u2")),
    Pass("c", POST, "backward, conv2", "norm2's backward; ReLU(norm1(u1))", "ReLU mask; sums of g1",
         values("g", "u2", "u1"), values("g1"), 2),
    Pass("d", POST, "backward, conv1", "norm1's backward; x", "+ g; bits'; sums of g'",
         values("g1", "u1", "x", "g", "u2'", "bits'"), values("g'"), 2),
    Pass("b", PRE, "forward, conv1", "ReLU(norm1(x))", "sums of u1", values("x"), values("u1")),
    Pass("e", PRE, "forward, conv2", "ReLU(norm2(u1))", "+ x; sums of x*", values("u1", "x"), values("x*")),
    Pass("e", PRE, "backward, conv2", "g = g* + norm1*'s backward; ReLU(norm2(u1))", "ReLU mask; sums of g2",
         values("g*", "g1*", "x*", "u1"), values("g", "g2"), 2),
    Pass("c", PRE, "backward, conv1", "norm2's backward; ReLU(norm1(x))", "ReLU mask; sums of g1",
         values("g2", "u1", "x"), values("g1"), 2),
)  # fmt: skip


# ---- counts of one tile of all C channels ---------------------------------------------------------------------------


def tile_bytes(channels: int) -> int:
    """1 T: 16 outputs."""
    return 16 * channels * FLOAT


def multiply_adds(channels: int, products: int) -> int:
    return 36 * channels * channels * products


def transform_operations(channels: int, products: int) -> int:
    """winograd.h, weight_gradient.h: 12 operations for 6 values, 4 columns that no other tile shares and 6 rows.

    The output has as many; the weight gradient transforms the input once more, and the gradient, by 10 operations.
    """
    per_channel = 120 + 120 + (120 + 100) * (products - 1)
    return channels * per_channel


def panel_tiles(channels: int) -> int:
    """convolve.h, AVX-512."""
    blocks = channels // BLOCK
    least = 64 if blocks * blocks > 16 else 16
    return max(32 // blocks, least)


def cache_bytes(channels: int, products: int) -> tuple[float, float]:
    """Read and written beyond the first cache, at most: as if no image or panel stayed in it."""
    image, panel, weights = tile_bytes(channels), 36 * channels * FLOAT, 36 * channels * channels * FLOAT
    read, write = image + 2 * panel + weights / panel_tiles(channels), image + 2 * panel
    if products == 2:  # two images into two panels, whose products are added to the 36 sums once in 32 tiles
        read, write = read + 2 * image + 2 * panel + weights / 32, write + image + 2 * panel + weights / 32
    return read, write


def memory_bytes(step: Pass, channels: int) -> tuple[float, float]:
    size = tile_bytes(channels)
    return sum(step.reads.values()) * size, sum(step.writes.values()) * size


def nanoseconds(moved: tuple[float, float], level: str) -> float:
    return moved[0] / READ[level] + moved[1] / WRITE[level]


def arithmetic(channels: int, products: int) -> float:
    return (multiply_adds(channels, products) + transform_operations(channels, products)) / PEAK


# ---- tables ---------------------------------------------------------------------------------------------------------


def in_t(size: float) -> str:
    return f"{math.floor(size)}" + (" + 1/32" if size % 1 else "")


def passes_table() -> str:
    lines = ["| | pass | reads | T | writes | T |", "|---|---|---|---:|---|---:|"]
    for form in (POST, PRE):
        steps = [step for step in PASSES if step.form == form]
        for step in steps:
            lines.append(
                f"| {form} | {step.name} | {', '.join(step.reads)} | {in_t(sum(step.reads.values()))} "
                f"| {', '.join(step.writes)} | {in_t(sum(step.writes.values()))} |"
            )
        read = sum(sum(step.reads.values()) for step in steps)
        write = sum(sum(step.writes.values()) for step in steps)
        lines.append(f"| {form} | **both directions** | | **{in_t(read)}** | | **{in_t(write)}** |")
    return "\n".join(lines)


def floors_table() -> str:
    lines = [
        "| shape | pass | FMA | transforms | FMA/byte, second cache | FMA/byte, memory "
        "| arithmetic, ns | second cache, ns | memory, ns |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for channels, shape in SHAPES.items():
        seen = set()
        for step in PASSES:
            if (step.key, step.products) not in seen:
                name = f"{step.key}, {step.name.partition(',')[0]}"
                lines.append(_floor(shape, name, channels, step.products, memory_bytes(step, channels)))
            seen.add((step.key, step.products))
        stage = 2 * BLOCKS  # convolutions for one reading and one writing of the stage's ends
        moved = tile_bytes(channels) / stage, tile_bytes(channels) / stage
        lines.append(_floor(shape, "v, evaluation", channels, 1, moved))
    return "\n".join(lines)


def _floor(shape: str, name: str, channels: int, products: int, moved: tuple[float, float]) -> str:
    work, cached = multiply_adds(channels, products), cache_bytes(channels, products)
    more = transform_operations(channels, products) / work
    times = arithmetic(channels, products), nanoseconds(cached, "L2"), nanoseconds(moved, "memory")
    return (
        f"| {shape} | {name} | {work} | +{more:.0%} | {work / sum(cached):.2f} | {work / sum(moved):.3g} "
        f"| {' | '.join(f'{time:.0f}' for time in times)} |"
    )
