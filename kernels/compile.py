"""Compile a launch for a chip with no GPU at hand, and count what came out of it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pathnet.kernels.launch import Launch
from pathnet.machine_code import Compiled, counted, parameters

ALIGNED = 16  # bytes that the allocator aligns to, and multiples that Triton compiles integers for


def compile_launch(launch: Launch, arch: int) -> tuple[Compiled, str]:
    """The counts, and the PTX."""
    signature, constants, attributes = describe(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    settings = {name: _plain(value) for name, value in launch.constants.items()} | options
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        row = counted(
            launch.kernel.fn.__name__, "triton", arch, settings, Path(file.name), done.metadata.shared,
            done.metadata.num_warps, _exempt(launch),
        )  # fmt: skip
    return row, done.asm["ptx"]


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


def launch_description(launch: Launch, row: Compiled, ptx: str) -> dict[str, Any]:
    """How to launch the PTX: its entry, grid, block, shared bytes, and its parameters in order with examples.

    Triton adds two pointers to scratch memory, which these kernels do not use: they are null.
    """
    signature, _, _ = describe(launch)
    described = [
        _parameter(name, kind, launch.arguments[name]) for name, kind in signature.items() if kind != "constexpr"
    ]
    entry = re.search(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    added = len(re.findall(r"\.param", entry.group(2))) - len(described)
    return {
        "entry": entry.group(1), "name": row.name, "language": row.language, "arch": row.arch,
        "settings": row.settings, "grid": [*launch.grid, 1, 1][:3], "block": [32 * launch.warps, 1, 1],
        "shared_bytes": row.shared_bytes,
        "parameters": [*described, *(parameters.null(f"scratch{i}") for i in range(added))],
    }  # fmt: skip


def _parameter(name: str, kind: str, value: Tensor | int | float) -> dict[str, Any]:
    return parameters.pointer(name, value) if isinstance(value, Tensor) else parameters.scalar(name, kind, value)


def _type(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return f"*{parameters.DTYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if value < 2**31 else "i64"


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else str(value)


def _exempt(launch: Launch) -> str | None:
    if not launch.multiplies:
        return "no product"
    return "float32 products in full precision" if launch.constants["PRECISION"] == "ieee" else None
