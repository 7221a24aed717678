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

from pathnet.kernels.grids import GRIDS
from pathnet.kernels.launch import Launch
from pathnet.machine_code import Compiled, counted, parameters

ALIGNED = 16  # bytes that the allocator aligns to, and multiples that Triton compiles integers for


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """The counts."""
    done = _compiled(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        return counted(
            launch.kernel.fn.__name__, "triton", arch, _settings(launch), Path(file.name), done.metadata.shared,
            done.metadata.num_warps, _exempt(launch),
        )  # fmt: skip


def ptx_of(launch: Launch, arch: int) -> tuple[str, dict[str, Any]]:
    """The PTX and its launch description."""
    done = _compiled(launch, arch)
    return done.asm["ptx"], _launch_description(launch, arch, done.asm["ptx"], done.metadata.shared)


_latest: list[tuple[Launch, int, Any]] = []  # what this process compiled last: one launch, for some chips


def _compiled(launch: Launch, arch: int) -> Any:
    """What Triton makes of it, and keeps; chips compiled one after the other share what does not depend on the chip.

    Triton's first stage (TTIR) is that of any chip, and its second (TTGIR) that of a generation.
    """
    if _latest and _latest[0][0] is not launch:
        _latest.clear()
    target, options = GPUTarget("cuda", arch, 32), _options(launch)
    relative = next((each for each in _latest if each[1] // 10 == arch // 10), None)
    if relative is not None:
        text = relative[2].asm["ttgir"].replace(f'"cuda:{relative[1]}"', f'"cuda:{arch}"')
        done = _continued(text, "ttgir", target, options)
    elif _latest:
        done = _continued(_latest[0][2].asm["ttir"], "ttir", target, options)
    else:
        done = triton.compile(ASTSource(launch.kernel, *describe(launch)), target=target, options=options)
    _latest.append((launch, arch, done))
    return done


def _continued(text: str, stage: str, target: GPUTarget, options: dict[str, int]) -> Any:
    """Compile what a stage gave for another chip."""
    with tempfile.NamedTemporaryFile("w", suffix=f".{stage}") as file:
        file.write(text)
        file.flush()
        return triton.compile(file.name, target=target, options=options)


def _options(launch: Launch) -> dict[str, int]:
    return {"num_warps": launch.warps, "num_stages": launch.stages}


def _settings(launch: Launch) -> dict[str, Any]:
    return {name: _plain(value) for name, value in launch.constants.items()} | _options(launch)


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


def _launch_description(launch: Launch, arch: int, ptx: str, shared: int) -> dict[str, Any]:
    """How to launch the PTX: its entry, grid, block, shared bytes, and its parameters in order with examples.

    `grid_rule` says how the grid follows from the parameters and the settings, `compiled_in` which arguments hold these
    values in the PTX (null: not used), `reached` which tensors no pointer is passed for, but a table leads to. Triton
    adds two pointers to scratch memory, which these kernels do not use: they are null.
    """
    signature, constants, _ = describe(launch)
    name = launch.kernel.fn.__name__
    described = [
        _parameter(name, kind, launch, launch.arguments[name])
        for name, kind in signature.items()
        if kind != "constexpr"
    ]
    compiled_in = {launch.kernel.arg_names[index]: value for (index,), value in constants.items()}
    entry = re.search(r"\.entry (\w+)\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    added = len(re.findall(r"\.param", entry.group(2))) - len(described)
    return {
        "entry": entry.group(1), "name": name, "language": "triton", "arch": arch, "settings": _settings(launch),
        "compiled_in": {name: value for name, value in compiled_in.items() if name not in launch.constants},
        "grid": [*launch.grid, 1, 1][:3], "grid_rule": [*GRIDS[name], "1", "1"][:3],
        "block": [32 * launch.warps, 1, 1],
        "shared_bytes": shared,
        "reached": [_parameter(name, "", launch, tensor) for name, tensor in launch.reached.items()],
        "parameters": [*described, *(parameters.null(f"scratch{i}") for i in range(added))],
    }  # fmt: skip


def _parameter(name: str, kind: str, launch: Launch, value: Tensor | int | float) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return parameters.scalar(name, kind, value, ALIGNED if kind[0] == "i" and value % ALIGNED == 0 else 1)
    if name == "counter":
        return parameters.pointer(name, value, "zeros", True)
    fresh = name not in launch.reads or name == "slots"  # slots are read behind the counter alone
    return parameters.pointer(name, value, "undefined" if fresh else "input", name in launch.writes)


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
