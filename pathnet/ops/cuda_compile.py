"""What nvcc makes of a CUDA kernel for a chip: its machine code counted, and its PTX. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathnet import toolkit
from pathnet.machine_code import Compiled, counted
from pathnet.machine_code.sass import tool
from pathnet.ops.cuda_kernels import Kernel

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"


def why_not() -> str | None:
    """What is missing to compile and count the kernels here, in a sentence."""
    try:
        nvcc()
        tool("nvdisasm"), tool("cuobjdump")
    except LookupError as reason:
        return str(reason)
    return None


def nvcc() -> str:
    """The compiler; LookupError if it or the sources are missing."""
    if not SOURCES.is_dir():
        raise LookupError(f"the CUDA sources are not in {SOURCES}; run this in a checkout of pathnet.")
    homes = toolkit.installed()
    if not homes:
        raise LookupError("there is no CUDA toolkit with nvcc; install one, or set CUDA_HOME to its folder.")
    return f"{next(iter(homes))}/bin/nvcc"


def compile_kernel(kernel: Kernel, arch: int) -> Compiled:
    """The counts; seconds, on sm_100 a minute.

    Raises LookupError where the sources or tools are missing, RuntimeError with nvcc's words if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        words = _run(kernel, arch, "-cubin", cubin)
        return counted(
            kernel.name, "cuda", arch, kernel.settings, cubin, kernel.shared, kernel.threads // 32,
            kernel.tensor_core_exempt, sum(map(int, re.findall(r"(\d+) bytes spill stores", words))),
        )  # fmt: skip


def ptx_of(kernel: Kernel, arch: int) -> str:
    """The PTX; nvcc has then checked the layout of the structs that the example describes. Errors as above."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        _run(kernel, arch, "-ptx", file)
        return file.read_text()


def launch_description(kernel: Kernel, arch: int, ptx: str) -> dict[str, Any]:
    """How to launch the PTX, in the form that the Triton kernels' has; a struct is one parameter, its fields inside."""
    entry = re.search(rf"\.entry (\w*{kernel.name}\w*)\(", ptx)
    assert entry is not None
    return {
        "entry": entry[1], "name": kernel.name, "language": "cuda", "arch": arch, "settings": kernel.settings,
        "grid": list(kernel.grid), "block": [kernel.threads, 1, 1], "shared_bytes": kernel.shared,
        "parameters": kernel.example(),
    }  # fmt: skip


def _run(kernel: Kernel, arch: int, kind: str, result: Path) -> str:
    """What nvcc and the assembler say."""
    source = result.with_suffix(".cu")
    source.write_text("\n".join(_source(kernel)) + "\n")
    settings = [f"-arch=sm_{arch}", "-std=c++17", "-O3", "-Xptxas", "-v", f"-I{SOURCES}"]
    command = [nvcc(), *settings, kind, "-o", str(result), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {kernel.name} for sm_{arch}: {done.stderr}")
    return done.stdout + done.stderr


def _source(kernel: Kernel) -> Iterator[str]:
    """The kernel's header, what instantiates it, and assertions on the structs of its example."""
    yield f'#include <cstddef>\n#include "{kernel.header}"'
    if kernel.arguments:
        yield f"template __global__ void {kernel.function}({kernel.parameters});"
    for parameter in kernel.example():
        if parameter["kind"] == "struct":
            of = f"{kernel.namespace}::{parameter['type']}"
            yield f'static_assert(sizeof({of}) == {parameter["bytes"]}, "its size");'
            for field in parameter["fields"]:
                name = field["name"]
                yield f'static_assert(offsetof({of}, {name}) == {field["offset"]}, "the offset of {name}");'
