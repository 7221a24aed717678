"""What a multiprocessor of each chip holds (CUDA C++ Programming Guide, technical specifications)."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """Limits of a multiprocessor; each holds 65536 registers."""

    blocks: int
    warps: int
    shared_kib: int  # one thread block may have all but RESERVED of it


CHIPS = {
    80: Chip(32, 64, 164),
    86: Chip(16, 48, 100),
    87: Chip(16, 48, 164),
    89: Chip(24, 48, 100),
    90: Chip(32, 64, 228),
    100: Chip(32, 64, 228),
    103: Chip(32, 64, 228),
    120: Chip(24, 48, 100),
}  # by ten times the compute capability
ARCHS = (80, 86, 89, 90, 100)  # what `pathnet kernels` compiles for, unless it is told
REGISTERS = 65536
RESERVED = 1024  # bytes of shared memory that the system takes of each thread block
GRANULE = 8  # registers of a thread are handed out by so many


def most_shared(arch: int) -> int:
    """Bytes of shared memory that one thread block may have."""
    return CHIPS.get(arch, CHIPS[90]).shared_kib * 1024 - RESERVED


def resident_blocks(arch: int, registers: int, shared_bytes: int, warps: int) -> int:
    """Thread blocks that a multiprocessor holds at once, each of so many warps, and registers a thread."""
    chip = CHIPS.get(arch, CHIPS[90])
    by_registers = REGISTERS // (-(-registers // GRANULE) * GRANULE * 32 * warps)
    by_shared = chip.shared_kib * 1024 // (shared_bytes + RESERVED)
    return min(chip.blocks, chip.warps // warps, by_registers, by_shared)
