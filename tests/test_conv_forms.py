"""The table of forms is what the model on paper says: fused convolutions, or the vendor's between separate passes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from pathnet.kernels.conv_forms import IEEE, LEAST, NEVER, PIXELS, calls_vendor
from pathnet.kernels.traffic import Geometry

LAUNCH = 2e-6  # seconds of each launch that one form has more than the other
CLOCK = 128  # bytes of shared memory a clock and multiprocessor


class Paper(NamedTuple):
    """A chip: data sheet, and what share of its peak a vendor's convolution of 64 channels and more is given."""

    peak: float
    bandwidth: float
    products: int  # multiply-adds a clock and multiprocessor
    weights: int  # bytes of shared memory an element of the weights' operand
    weight_gradient: float  # t(tensor cores) / t(shared memory) there, docs/gpu-kernels.md
    share: float


CHIPS = {
    (8, 0): Paper(312e12, 2.04e12, 1024, 18, 0.20, 0.5),
    (8, 6): Paper(71e12, 0.94e12, 512, 18, 0.40, 0.5),
    (8, 9): Paper(165e12, 1.01e12, 512, 18, 0.40, 0.5),
    (9, 0): Paper(989e12, 3.35e12, 2048, 14, 0.10, 0.24),
    (10, 0): Paper(2250e12, 8.0e12, 4096, 18, 0.05, 0.24),
}


def fused(chip: Paper, side: int, channels: int) -> float:
    """Seconds a pixel of the three passes behind a norm: bytes, or the products that shared memory feeds."""
    k, n, operations = min(channels, 32), min(channels, 64), 2 * side**2 * channels**2

    def fed(prologue: int) -> float:
        return min(1, CLOCK * CLOCK * n * k / chip.products / (CLOCK * k * prologue + n * k * chip.weights))

    passes = (2, fed(8)), (4, fed(12)), (3, chip.weight_gradient * min(1, channels / 32))
    return sum(max(2 * t * channels / chip.bandwidth, operations / chip.peak / share) for t, share in passes)


def separate(chip: Paper, side: int, channels: int) -> float:
    """Activation, statistics, norm backward and sums (10 T), and three convolutions of 2 T."""
    share, operations = chip.share * min(1, channels / 64), 2 * side**2 * channels**2
    each = max(2 * 2 * channels / chip.bandwidth, operations / chip.peak / share)
    return 2 * 10 * channels / chip.bandwidth + 3 * each


def wins(chip: Paper, side: int, channels: int) -> bool:
    return PIXELS * separate(chip, side, channels) + 4 * LAUNCH < PIXELS * fused(chip, side, channels)


@pytest.mark.parametrize("chip", CHIPS, ids=str)
def test_the_table_is_what_the_model_says(chip):
    sizes = [2**power for power in range(4, 12)]
    for side, least in ((3, LEAST[chip].three), (1, LEAST[chip].one)):
        assert [c for c in sizes if wins(CHIPS[chip], side, c)] == [c for c in sizes if c >= least]


def chosen(channels: int, chip=(9, 0), side=3, dtype=torch.float16, images=64, groups=1, precision="tf32") -> bool:
    return calls_vendor(Geometry(images, 16, 16, channels, channels, 1, side, groups), dtype, precision, chip)


def test_what_the_table_chooses():
    assert chosen(128) and not chosen(64) and not chosen(128, images=63)
    assert not chosen(128, side=1) and chosen(1024, side=1)
    assert chosen(64, (10, 0)) and chosen(64, (10, 3)) and not chosen(1024, (12, 0)) and LEAST[12, 0] == NEVER
    assert chosen(IEEE.three, (8, 6), dtype=torch.float32, precision="ieee")
    assert not chosen(16, (8, 6), dtype=torch.float32) and not chosen(16, dtype=torch.float16, precision="ieee")
    assert chosen(16, images=1, groups=4) and chosen(16, None, groups=4) and not chosen(1024, None)
