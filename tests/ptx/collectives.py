"""Instructions in which the threads of a warp or of a block meet: barriers, shuffles, matrices."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ptx import floats
from ptx.arithmetic import Step, instruction
from ptx.memory import WARP
from ptx.parse import Instruction, PtxError
from ptx.transfers import addresses, load, spread

LANE = np.arange(WARP)
U32 = np.dtype(np.uint32)


@instruction(r"bar\.sync")
def _barrier(match: re.Match, what: Instruction) -> Step:
    if what.operands != ("0",):
        raise PtxError(f"line {what.line}: only barrier 0 of the whole block is known, not {what.operands}.")
    return lambda block: block.wait()


@instruction(r"bar\.warp\.sync")
def _warp_barrier(match: re.Match, what: Instruction) -> Step:
    def step(block: Any) -> None:
        warps = _whole(block, what.operands[0])
        block.times[warps] += 1

    return step


def _whole(block: Any, mask: str) -> np.ndarray:
    """The active threads [warps, 32] that the mask names: all of a warp."""
    warps = block.warps()
    if (block.read(mask, U32)[warps] != 0xFFFFFFFF).any():
        raise PtxError("it names a part of a warp.")
    return warps


@instruction(r"shfl\.sync\.(bfly|idx)\.b32")
def _shuffle(match: re.Match, what: Instruction) -> Step:
    """The value of lane ^ by, or of lane `by`, within segments; a lane outside keeps its own."""
    target, *rest = what.operands
    inside = rest.pop(0) if len(rest) == 5 else None
    source, by, bounds, mask = rest

    def step(block: Any) -> None:
        warps = _whole(block, mask)
        value, partner = block.read(source, U32)[warps], block.read(by, U32)[warps].astype(np.int64) & 31
        bound = block.read(bounds, U32)[warps].astype(np.int64)
        segment = bound >> 8 & 31
        last = LANE & segment | bound & 31 & ~segment
        wanted = LANE ^ partner if match.group(1) == "bfly" else LANE & segment | partner & ~segment
        within = wanted <= last
        found = np.take_along_axis(value, np.where(within, wanted, LANE), 1)
        lanes = warps.reshape(-1)
        block.write(target, spread(block, found.reshape(-1), lanes))
        if inside is not None:
            block.write(inside, spread(block, within.reshape(-1), lanes))

    return step


@instruction(r"vote\.sync\.ballot\.b32")
def _ballot(match: re.Match, what: Instruction) -> Step:
    target, source, mask = what.operands

    def step(block: Any) -> None:
        warps = _whole(block, mask)
        votes = block.read(source, np.dtype(bool))[warps]
        bits = (votes.astype(np.uint32) << LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
        block.write(target, spread(block, bits.repeat(WARP), warps.reshape(-1)))

    return step


@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16")
def _load_matrices(match: re.Match, what: Instruction) -> Step:
    """8x8 matrices of two bytes: lane l gives the address of row l % 8 of matrix l / 8.

    It gets elements 2 (l % 4) and the next of row l / 4 of each; .trans: of column l / 4.
    """
    count = int(match.group(1))
    targets, source = what.operands
    targets = targets if isinstance(targets, tuple) else (targets,)

    def step(block: Any) -> None:
        warps = block.warps()
        rows = warps[:, : 8 * count].reshape(-1)
        found = load(block, "shared", addresses(block, source, rows), 16, rows).view(np.uint16)
        matrices = found.reshape(len(warps), count, 8, 8)
        if match.group(2):
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(len(warps), count, WARP)
        for i, target in enumerate(targets):
            block.write(target, spread(block, pairs[:, i].reshape(-1), warps.reshape(-1)))

    return step


def _fragment(block: Any, names: tuple[str, ...], warps: np.ndarray) -> np.ndarray:
    """Registers as [warps, lanes, registers]."""
    return np.stack([block.read(name, U32)[warps] for name in names], 2)


GROUP, IN_GROUP = LANE // 4, LANE % 4  # a fragment's row (of b its column), and the place within it


def _halves(kind: str, bits: np.ndarray) -> np.ndarray:
    """[warps, lanes, registers] of two halves as float64 [..., registers, 2]."""
    pairs = np.ascontiguousarray(bits).view(np.uint16).reshape(*bits.shape, 2)
    return (floats.from_bf16(pairs) if kind == "bf16" else pairs.view(np.float16)).astype(np.float64)


def _matrices_of_halves(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a [warps, 16, 16] and b [warps, 16, 8] of mma.m16n8k16."""
    left, right = np.empty((len(a), 16, 16)), np.empty((len(b), 16, 8))
    halves, others = _halves(kind, a), _halves(kind, b)
    for register in range(4):
        row, column = GROUP + 8 * (register % 2), 2 * IN_GROUP + 8 * (register // 2)
        for half in range(2):
            left[:, row, column + half] = halves[:, :, register, half]
    for register in range(2):
        for half in range(2):
            right[:, 2 * IN_GROUP + 8 * register + half, GROUP] = others[:, :, register, half]
    return left, right


def _matrices_of_tf32(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a [warps, 16, 8] and b [warps, 8, 8] of mma.m16n8k8; the low 13 bits of an operand are not read."""
    left, right = np.empty((len(a), 16, 8)), np.empty((len(b), 8, 8))
    values, others = (np.bitwise_and(bits, np.uint32(0xFFFFE000)).view(np.float32) for bits in (a, b))
    for register in range(4):
        left[:, GROUP + 8 * (register % 2), IN_GROUP + 4 * (register // 2)] = values[:, :, register]
    for register in range(2):
        right[:, IN_GROUP + 4 * register, GROUP] = others[:, :, register]
    return left, right


@instruction(r"mma\.sync\.aligned\.m16n8k(16|8)\.row\.col\.f32\.(f16|bf16|tf32)\.(f16|bf16|tf32)\.f32")
def _multiply(match: re.Match, what: Instruction) -> Step:
    """d = a b + c, summed in float64 and rounded once; the order of a GPU's float32 sums is nowhere said."""
    kind = match.group(2)
    if kind != match.group(3) or (match.group(1) == "8") != (kind == "tf32"):
        raise PtxError(f"line {what.line}: the instruction {what.opcode} is not known.")
    matrices = _matrices_of_tf32 if kind == "tf32" else _matrices_of_halves
    target, a, b, c = what.operands

    def step(block: Any) -> None:
        warps = block.warps()
        left, right = matrices(kind, _fragment(block, a, warps), _fragment(block, b, warps))
        products = left @ right
        added = _fragment(block, c, warps).view(np.float32)
        for i, name in enumerate(target):
            row, column = GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2
            total = (products[:, row, column] + added[:, :, i]).astype(np.float32)
            block.write(name, spread(block, total.reshape(-1), warps.reshape(-1)))

    return step
