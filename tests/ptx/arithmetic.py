"""Instructions that compute a register of a thread from registers of that thread."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ptx import floats
from ptx.parse import Instruction

Step = Callable[[Any], None]  # executes one instruction for the active threads of a block
Build = Callable[[re.Match, Instruction], Step]
TABLE: list[tuple[re.Pattern, Build]] = []
LETTERS = {"b": "u", "u": "u", "s": "i", "f": "f"}
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
           "ge": np.greater_equal}  # fmt: skip


def dtype(name: str) -> np.dtype:
    """Of a PTX type: pred, b32, s16, f32, ..."""
    return np.dtype(bool) if name == "pred" else np.dtype(f"{LETTERS[name[0]]}{int(name[1:]) // 8}")


def instruction(pattern: str) -> Callable[[Build], Build]:
    """Register what builds the step of every opcode that is exactly this pattern."""

    def register(build: Build) -> Build:
        TABLE.append((re.compile(pattern), build))
        return build

    return register


def computes(pattern: str, result: str | None = None) -> Callable[[Callable], Callable]:
    """A function of the sources, all of the type in the pattern's first group; `result` is the type it gives."""

    def register(function: Callable) -> Callable:
        @instruction(pattern)
        def build(match: re.Match, what: Instruction) -> Step:
            kind = dtype(match.group(1))
            target, *sources = what.operands

            def step(block: Any) -> None:
                block.write(target, function(*(block.read(source, kind) for source in sources)))

            return step

        return function

    return register


computes(r"add\.([su](?:16|32|64)|f32)")(np.add)
computes(r"sub\.([su](?:16|32|64)|f32)")(np.subtract)
computes(r"mul\.lo\.([su](?:16|32|64))")(np.multiply)
computes(r"mul\.(f32)")(np.multiply)
computes(r"mad\.lo\.([su](?:16|32|64))")(lambda a, b, c: a * b + c)
computes(r"fma\.rn\.(f32)")(floats.fma)
computes(r"div\.(?:full|rn)\.(f32)")(np.divide)  # .full may be off by two units in the last place
computes(r"sqrt\.rn\.(f32)")(np.sqrt)
computes(r"rcp\.rn\.(f32)")(np.reciprocal)
computes(r"sqrt\.approx\.ftz\.(f32)")(lambda a: floats.flush(np.sqrt(floats.flush(a))))
computes(r"neg\.([su](?:16|32|64)|f32)")(np.negative)
computes(r"min\.([su](?:16|32|64))")(np.minimum)
computes(r"max\.([su](?:16|32|64))")(np.maximum)
computes(r"min\.(f32)")(np.fmin)  # of a number and NaN the number
computes(r"max\.(f32)")(np.fmax)
computes(r"max\.NaN\.(f32)")(np.maximum)
computes(r"and\.(b16|b32|b64|pred)")(np.bitwise_and)
computes(r"or\.(b16|b32|b64|pred)")(np.bitwise_or)
computes(r"xor\.(b16|b32|b64|pred)")(np.bitwise_xor)
computes(r"not\.(b16|b32|b64|pred)")(np.invert)
computes(r"cvta\.to\.global\.(u64)")(np.copy)  # one address space holds all buffers
computes(r"popc\.(b32)")(lambda a: np.bitwise_count(a).astype(np.uint32))
computes(r"cvt\.rn\.f16\.(f32)")(floats.to_f16)
computes(r"cvt\.rn\.bf16\.(f32)")(floats.to_bf16)
computes(r"cvt\.rna\.tf32\.(f32)")(floats.to_tf32)
computes(r"cvt\.f32\.(f16)")(lambda a: a.astype(np.float32))
computes(r"cvt\.rn\.f32\.([su](?:32|64))")(lambda a: a.astype(np.float32))
computes(r"rem\.([su](?:32|64))")(np.fmod)  # the sign of the dividend


@computes(r"div\.([su](?:32|64))")
def _divide(a, b):
    """Towards zero."""
    return (a - np.fmod(a, b)) // b


@computes(r"cvt\.rn\.f16x2\.(f32)")
def _pack_f16(high, low):
    return floats.to_f16(high).astype(np.uint32) << 16 | floats.to_f16(low)


@computes(r"cvt\.rn\.bf16x2\.(f32)")
def _pack_bf16(high, low):
    return floats.to_bf16(high).astype(np.uint32) << 16 | floats.to_bf16(low)


@computes(r"mul\.hi\.([su](?:16|32))")
def _high_product(a, b):
    wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return (a.astype(wide) * b.astype(wide) >> 8 * a.itemsize).astype(a.dtype)


@computes(r"bfe\.([su]32)")
def _extract(a, position, length):
    """Bits from `position` on; .s32 fills up with the highest of them."""
    position, length = position & 0xFF, length & 0xFF
    at = np.minimum(position.astype(np.int64), 63)
    count = np.minimum(length.astype(np.int64), 32)
    field = (a.astype(np.int64) >> at) & ((np.int64(1) << count) - 1)
    if a.dtype.kind == "i":
        top = np.int64(1) << np.maximum(count - 1, 0)
        field = np.where(count > 0, (field ^ top) - top, 0)
    return field.astype(a.dtype)


@computes(r"bfi\.(b32)")
def _insert(a, into, position, length):
    position, length = (position & 0xFF).astype(np.uint64), (length & 0xFF).astype(np.uint64)
    mask = ((np.uint64(1) << np.minimum(length, 32)) - np.uint64(1)) << np.minimum(position, 32)
    return ((a.astype(np.uint64) << np.minimum(position, 32)) & mask | into & ~mask).astype(np.uint32)


@computes(r"prmt\.(b32)")
def _permute(a, b, selector):
    """Byte i of the result is the byte of {b, a} that nibble i names; its bit 3 asks for the sign alone."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << 32
    result = np.zeros_like(a)
    for i in range(4):
        nibble = (selector >> 4 * i) & 0xF
        byte = (both >> (8 * (nibble & 7)).astype(np.uint64) & 0xFF).astype(np.uint32)
        byte = np.where(nibble & 8, np.where(byte & 0x80, 0xFF, 0), byte).astype(np.uint32)
        result |= byte << 8 * i
    return result


@instruction(r"(shl|shr)\.([bus])(16|32|64)")
def _shift(match: re.Match, what: Instruction) -> Step:
    """By more than the width: all bits leave."""
    kind, bits = dtype(match.group(2) + match.group(3)), int(match.group(3))
    left = match.group(1) == "shl"
    target, source, amount = what.operands

    def step(block: Any) -> None:
        value, by = block.read(source, kind), block.read(amount, np.dtype(np.uint32))
        most = np.minimum(by, bits - 1).astype(kind)
        moved = value << most if left else value >> most
        gone = by >= bits
        block.write(target, np.where(gone, 0, moved).astype(kind) if left or kind.kind == "u" else moved)

    return step


@instruction(r"(mul|mad)\.wide\.([us])(16|32)")
def _wide(match: re.Match, what: Instruction) -> Step:
    kind = dtype(match.group(2) + match.group(3))
    wide = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
    target, a, b, *added = what.operands

    def step(block: Any) -> None:
        value = block.read(a, kind).astype(wide) * block.read(b, kind).astype(wide)
        block.write(target, value + block.read(added[0], wide) if added else value)

    return step


@instruction(r"cvt\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))")
def _convert_integer(match: re.Match, what: Instruction) -> Step:
    to, source_kind = dtype(match.group(1)), dtype(match.group(2))
    target, source = what.operands
    return lambda block: block.write(target, block.read(source, source_kind).astype(to))


@instruction(r"cvt\.f32\.bf16")
def _from_bf16(match: re.Match, what: Instruction) -> Step:
    target, source = what.operands
    return lambda block: block.write(target, floats.from_bf16(block.read(source, np.dtype(np.uint16))))


@instruction(r"setp\.(eq|ne|lt|le|gt|ge)\.([bus](?:16|32|64)|f16|f32)")
def _compare(match: re.Match, what: Instruction) -> Step:
    """Of NaN all are false, but .ne ... which PTX calls false too: it is ordered."""
    compare, kind = COMPARE[match.group(1)], dtype(match.group(2))
    ordered = kind.kind == "f" and match.group(1) == "ne"
    target, a, b = what.operands

    def step(block: Any) -> None:
        left, right = block.read(a, kind), block.read(b, kind)
        value = compare(left, right)
        block.write(target, value & ~np.isnan(left) & ~np.isnan(right) if ordered else value)

    return step


@instruction(r"selp\.([bus](?:16|32|64)|f32)")
def _select(match: re.Match, what: Instruction) -> Step:
    kind = dtype(match.group(1))
    target, a, b, chooser = what.operands

    def step(block: Any) -> None:
        chosen = block.read(chooser, np.dtype(bool))
        block.write(target, np.where(chosen, block.read(a, kind), block.read(b, kind)))

    return step


@instruction(r"mov\.([bus](?:16|32|64)|f32|pred)")
def _move(match: re.Match, what: Instruction) -> Step:
    """Of a register, of a number, or of a wide register from or into its parts, the lowest first."""
    kind = dtype(match.group(1))
    target, source = what.operands
    if isinstance(target, tuple):
        return lambda block: _unpack(block, target, block.read(source, kind))
    if isinstance(source, tuple):
        return lambda block: block.write(target, _packed(block, source, kind))
    return lambda block: block.write(target, block.read(source, kind))


def _parts(count: int, kind: np.dtype) -> Iterator[tuple[int, np.dtype]]:
    size = kind.itemsize // count
    return ((8 * size * i, np.dtype(f"u{size}")) for i in range(count))


def _unpack(block: Any, targets: tuple[str, ...], value: np.ndarray) -> None:
    bits = value.view(f"u{value.itemsize}")
    for target, (shift, kind) in zip(targets, _parts(len(targets), value.dtype), strict=True):
        if target != "_":
            block.write(target, (bits >> np.array(shift, bits.dtype)).astype(kind))


def _packed(block: Any, sources: tuple[str, ...], kind: np.dtype) -> np.ndarray:
    bits = np.zeros(block.threads, f"u{kind.itemsize}")
    for source, (shift, part) in zip(sources, _parts(len(sources), kind), strict=True):
        bits |= block.read(source, part).astype(bits.dtype) << np.array(shift, bits.dtype)
    return bits
