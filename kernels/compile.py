"""Compile a launch for a chip with no GPU at hand, and count what came out of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pathnet.kernels.launch import Launch

ALIGNED = 16  # bytes that the allocator aligns to, and multiples that Triton compiles integers for
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int32: "i32",
    torch.int64: "i64",
}  # fmt: skip
TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)")  # in PTX
ASYNC_COPIES = re.compile(r"\bcp\.async(?:\.bulk)?(?:\.tensor\S*|\.c[ag])")
REGISTER_FILE, BLOCKS, WARPS = 65536, 32, 64  # of a multiprocessor; 86 and 89 hold fewer blocks and warps
SMALLER = {86: (16, 48, 100), 89: (24, 48, 100), 80: (32, 64, 164)}  # blocks, warps, KiB of shared memory
SHARED = 228  # KiB of a multiprocessor of the others


class Compiled(NamedTuple):
    """One kernel with one setting for one chip."""

    name: str
    language: str
    arch: int
    settings: dict[str, Any]
    registers: int
    spill_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    tensor_core_instructions: int
    async_copy_instructions: int
    code_bytes: int
    tensor_core_exempt: str | None  # why a product need not be on the tensor cores


def compile_launch(launch: Launch, arch: int) -> tuple[Compiled, str]:
    """The counts, and the PTX."""
    signature, constants, attributes = describe(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, stack, code = _resources(done.asm["cubin"])
    ptx, shared, warps = done.asm["ptx"], done.metadata.shared, done.metadata.num_warps
    settings = {name: _plain(value) for name, value in launch.constants.items()} | options
    return Compiled(
        launch.kernel.fn.__name__, "triton", arch, settings, registers, stack, shared,
        _blocks(arch, registers, shared, warps), len(TENSOR_CORES.findall(ptx)), len(ASYNC_COPIES.findall(ptx)), code,
        _exempt(launch),
    ), ptx  # fmt: skip


def describe(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Signature, constants and attributes, as Triton's own launcher derives them from the arguments."""
    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if name in launch.constants or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(index,)] = "constexpr", launch.constants.get(name, value)
            continue
        signature[name] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % ALIGNED == 0):
            attributes[(index,)] = [["tt.divisibility", ALIGNED]]
    return signature, constants, attributes


def launch_description(launch: Launch, compiled: Compiled, ptx: str) -> dict[str, Any]:
    """How to launch the PTX: its entry, grid, block, shared bytes, and its parameters in order with examples.

    Triton adds two pointers to scratch memory, which these kernels do not use: they are null.
    """
    signature, _, _ = describe(launch)
    parameters = [
        _parameter(name, kind, launch.arguments[name]) for name, kind in signature.items() if kind != "constexpr"
    ]
    entry = re.search(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    added = len(re.findall(r"\.param", entry.group(2))) - len(parameters)
    scratch = [{"name": f"scratch{i}", "kind": "null", "dtype": "u8", "shape": []} for i in range(added)]
    return {
        "entry": entry.group(1), "arch": compiled.arch, "grid": [*launch.grid, 1, 1][:3],
        "block": [32 * launch.warps, 1, 1], "shared_bytes": compiled.shared_bytes,
        "parameters": [*parameters, *scratch],
    }  # fmt: skip


def _parameter(name: str, kind: str, value: Tensor | int | float) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {
            "name": name, "kind": "pointer", "dtype": kind[1:], "shape": list(value.shape),
            "strides": list(value.stride()),
        }  # fmt: skip
    return {"name": name, "kind": "scalar", "dtype": kind, "value": value}


def _type(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else str(value)


def _exempt(launch: Launch) -> str | None:
    if not launch.multiplies:
        return "no product"
    return "float32 products in full precision" if launch.constants["PRECISION"] == "ieee" else None


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of local memory (where spills go) and bytes of code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        elf = subprocess.run([tool, "-elf", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = re.search(r"^\s*\w+\s+\w+\s+(\w+)\s+\w+\s+\w+\s+PROGBITS.*\.text\.", elf, re.MULTILINE)
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], int(code.group(1), 16) if code else 0


def _blocks(arch: int, registers: int, shared: int, warps: int) -> int:
    """Thread blocks that a multiprocessor holds at once."""
    blocks, most_warps, kibibytes = SMALLER.get(arch, (BLOCKS, WARPS, SHARED))
    by_registers = REGISTER_FILE // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = kibibytes * 1024 // (shared + 1024)  # the system takes 1 KiB of each block
    return min(blocks, most_warps // warps, by_registers, by_shared)
