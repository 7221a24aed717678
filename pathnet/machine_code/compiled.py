"""A compiled kernel as `pathnet kernels` lists it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pathnet.machine_code import sass
from pathnet.machine_code.chips import resident_blocks
from pathnet.machine_code.loops import scalar_share

LEAST_WARPS = 8  # that a multiprocessor must hold
MOST_SCALAR = (
    0.25  # prologues stay below it (docs/gpu-kernels.md); one of three products beside the tensor cores does not
)


class Compiled(NamedTuple):
    """One kernel with one setting for one chip."""

    name: str
    language: str  # triton or cuda
    arch: int
    settings: dict[str, Any]
    registers: int
    spill_bytes: int
    local_bytes: int  # of a thread's own memory: spills, and arrays that are kept there by design
    shared_bytes: int
    blocks_per_sm: int
    tensor_core_instructions: int
    async_copy_instructions: int
    code_bytes: int
    tensor_core_exempt: str | None  # why a product need not be on the tensor cores
    warps_per_sm: int
    scalar_share: float  # of the multiply-adds in the loops of products, those that are not on tensor cores


def counted(
    name: str, language: str, arch: int, settings: dict[str, Any], cubin: Path, shared_bytes: int, warps: int,
    tensor_core_exempt: str | None, spill_bytes: int | None = None,
) -> Compiled:  # fmt: skip
    """Count what is in `cubin`, the machine code of the kernel `name`.

    spill_bytes: as the assembler says; None where it is not asked, and all local memory counts as spilled.
    """
    code = sass.read(cubin, name)
    blocks = resident_blocks(arch, code.registers, shared_bytes, warps)
    return Compiled(
        name, language, arch, settings, code.registers, code.local_bytes if spill_bytes is None else spill_bytes,
        code.local_bytes, shared_bytes, blocks,
        code.count(sass.TENSOR_CORES), code.count(sass.ASYNC_COPIES), sass.INSTRUCTION_BYTES * len(code.instructions),
        tensor_core_exempt, blocks * warps, round(scalar_share(code), 3),
    )  # fmt: skip


def unfit(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a compiled kernel, in a sentence."""
    if row["spill_bytes"]:
        return f"{row['spill_bytes']} bytes of registers spill into memory"
    if row["warps_per_sm"] < LEAST_WARPS:
        return f"a multiprocessor holds {row['warps_per_sm']} warps, and fewer than {LEAST_WARPS} hide no latency"
    if row["tensor_core_exempt"]:
        return None
    if not row["tensor_core_instructions"]:
        return "the product is not on the tensor cores"
    if row["scalar_share"] > MOST_SCALAR:
        return f"{row['scalar_share']:.0%} of the multiply-adds in the loop of a product are not on the tensor cores"
    return None
