"""Which form a convolution takes: fused in one launch, or the vendor's between separate passes.

The one table; docs/gpu-kernels.md derives it on paper, nobody has measured it.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from pathnet.kernels.traffic import Geometry

Chip = tuple[int, int]  # compute capability


class Least(NamedTuple):
    """From how many channels on, the fewer of a convolution's two numbers, the vendor's convolution wins."""

    three: int  # 3x3
    one: int  # 1x1


NEVER = Least(1 << 30, 1 << 30)
LEAST: dict[Chip, Least] = {
    (8, 0): Least(128, 512),
    (8, 6): NEVER,
    (8, 9): NEVER,
    (9, 0): Least(128, 1024),
    (10, 0): Least(64, 256),
    (12, 0): NEVER,
}  # of products on tensor cores; a chip that is not listed goes by the one before it
IEEE = Least(16, 128)  # of float32 products in full precision, on every chip
PIXELS = 1 << 14  # below, the four launches that the separate form adds weigh more than what it wins

REBUILT = 64  # inner channels of a bottleneck: of more, a program would hold too many to rebuild its output from


def rebuilds(geometry: Geometry, dtype: torch.dtype, precision: str) -> bool:
    """Whether kernels rebuild what such a last convolution gives, where a net asks to keep nothing of it.

    Products in full precision hold their operands in registers, which leaves no room for a second product.
    """
    return geometry.inputs <= REBUILT and not (dtype == torch.float32 and precision == "ieee")


def calls_vendor(geometry: Geometry, dtype: torch.dtype, precision: str, chip: Chip | None) -> bool:
    """Whether a convolution is the vendor's: in groups always, else as the table says; without a GPU it is fused."""
    if geometry.groups > 1:
        return True
    if chip is None or geometry.pixels_out < PIXELS:
        return False
    exact = dtype == torch.float32 and precision == "ieee"
    least = IEEE if exact else LEAST[max(known for known in LEAST if known <= chip)]
    return min(geometry.inputs, geometry.outputs) >= (least.three if geometry.side == 3 else least.one)


@cache
def chip_of(device: torch.device) -> Chip | None:
    """None where there is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None
