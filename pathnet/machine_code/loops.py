"""The loops of products in machine code, and whether their multiply-adds are on the tensor cores."""

from __future__ import annotations

import re

from pathnet.machine_code.products import scalar_products, tensor_products
from pathnet.machine_code.sass import TENSOR_CORES, Code, Instruction

TARGET = re.compile(r"`\((\.L\w+)\)")


def scalar_share(code: Code) -> float:
    """The part that is not on tensor cores of the multiply-adds in a loop of a product: the largest of all loops.

    A prologue has a few for each value that the loop reads; a product outside the tensor cores has as many as those.
    """
    return max((_share(code, loop) for loop in product_loops(code)), default=0.0)


def product_loops(code: Code) -> list[list[int]]:
    """What stands in the innermost loops with instructions of tensor cores; the whole kernel if they are in none."""
    tensor = {index for index, instruction in enumerate(code.instructions) if TENSOR_CORES.match(instruction.name)}
    if not tensor:
        return []
    loops = [loop for loop in natural_loops(code) if loop & tensor]
    inner = [loop for loop in loops if not any(other < loop for other in loops)]
    return [sorted(loop) for loop in inner] or [list(range(len(code.instructions)))]


def natural_loops(code: Code) -> list[set[int]]:
    """For each jump back to an instruction that all ways to the jump pass: what lies on the ways between."""
    before: list[list[int]] = [[] for _ in code.instructions]
    back = []
    for index, instruction in enumerate(code.instructions):
        if (target := _target(code, instruction)) is not None:
            before[target].append(index)
            back += [(target, index)] if target <= index else []
        if index + 1 < len(before) and not _leaves(instruction):
            before[index + 1].append(index)
    loops = (_between(start, end, before) for start, end in back)
    return [loop for loop in loops if 0 not in loop]  # a way from the entry means that it is no loop


def _between(start: int, end: int, before: list[list[int]]) -> set[int]:
    found, waiting = {start}, [end]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += before[index]
    return found


def _target(code: Code, instruction: Instruction) -> int | None:
    target = TARGET.search(instruction.operands) if instruction.name.startswith("BRA") else None
    return code.labels[target[1]] if target else None


def _leaves(instruction: Instruction) -> bool:
    """Whether what stands behind it is not what runs next."""
    always = not instruction.predicate
    jumps = instruction.name.startswith("BRA") and instruction.operands.startswith("`")
    return always and (jumps or instruction.name.split(".")[0] in ("EXIT", "RET"))


def _share(code: Code, loop: list[int]) -> float:
    scalar = sum(scalar_products(code.instructions[index]) for index in loop)
    return scalar / (scalar + sum(tensor_products(code, index) for index in loop))
