"""How many multiply-adds an instruction makes, on tensor cores and beside them."""

from __future__ import annotations

import re
from math import prod

from pathnet.machine_code.sass import Code, Instruction

SCALAR = {"FFMA": 1, "FFMA2": 2, "HFMA2": 2, "DFMA": 1}  # multiply-adds of a thread
NO_PRODUCT = re.compile(r"\w+, -?RZ, ")  # zero times something moves a constant
SHAPE = re.compile(r"HMMA\.(16)(8)(\d+)|HGMMA\.(\d+)x(\d+)x(\d+)")
DESCRIPTOR = re.compile(r"idesc\[(UR\d+)\]")
LEAST_SHAPE = 64, 16, 8  # of UTCHMMA, where the descriptor of its shape is not a constant
ROWS = 64, 128, 256  # of a tcgen05 product
TF32, FLOAT32 = 2, 1  # how its descriptor names the dtypes of the factors and of the sums
WARP, WARPGROUP = 32, 128


def scalar_products(instruction: Instruction) -> int:
    """Of a thread, outside of tensor cores."""
    return 0 if NO_PRODUCT.match(instruction.operands) else SCALAR.get(instruction.name.split(".")[0], 0)


def tensor_products(code: Code, index: int) -> float:
    """Of a thread, on tensor cores, by the instruction that stands at `index`; at least so many."""
    name = code.instructions[index].name
    if name.startswith("UTCHMMA"):
        return prod(_described(code, index) or LEAST_SHAPE) / WARPGROUP
    shape = SHAPE.match(name)
    if shape is None:
        return 0
    return prod(int(side) for side in shape.groups() if side) / (WARP if name.startswith("HMMA") else WARPGROUP)


def _described(code: Code, index: int) -> tuple[int, int, int] | None:
    """Rows, columns and depth of a tcgen05 product (PTX ISA, instruction descriptor of .kind::f16 and .kind::tf32).

    The descriptor stands in a register, into which the last constant before the instruction was moved.
    """
    register = DESCRIPTOR.search(code.instructions[index].operands)
    if register is None:
        return None
    moved = re.compile(rf"{register[1]}, (0x[0-9a-f]+)")
    before = (each for each in reversed(code.instructions[:index]) if each.name == "UMOV")
    found = next((constant for each in before if (constant := moved.match(each.operands))), None)
    if found is None:
        return None
    bits = int(found[1], 16)
    shape = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8, 8 if bits >> 7 & 7 == TF32 else 16
    return shape if shape[0] in ROWS and bits >> 4 & 3 == FLOAT32 else None  # else it is some other constant
