"""What nvcc makes of every CUDA kernel: registers, spills, shared memory, instructions. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from pathnet import toolkit
from pathnet.ops.net_eval_limits import SHARED_KIB, shared_bytes

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHS = (80, 86, 89, 90, 100)
REGISTERS, RESERVED = (
    65536,
    1024,
)  # of a multiprocessor; bytes of shared memory that each thread block costs beside its own
MOST_THREADS = {86: 1536, 89: 1536}  # of a multiprocessor; 2048 elsewhere


class Kernel(NamedTuple):
    """One kernel with one choice of its template's arguments."""

    name: str
    header: str
    arguments: str  # of the template, empty for a plain function
    parameters: str  # of the function
    settings: dict[str, str | bool]
    threads: int
    shared: int  # dynamic, for 32x32 images
    tensor_core_exempt: str | None  # why it has no tensor-core instructions


class Row(NamedTuple):
    """What the compiler made of a kernel for one chip."""

    name: str
    language: str
    arch: int
    settings: dict[str, str | bool]
    registers: int
    spill_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    tensor_core_instructions: int
    async_copy_instructions: int
    code_bytes: int
    tensor_core_exempt: str | None


def _net_eval() -> list[Kernel]:
    operands = {"Bf16": torch.bfloat16, "Fp16": torch.float16, "Tf32": torch.float32}
    return [
        Kernel(
            "net_eval_kernel",
            "net_eval.cuh",
            f"pathnet::{operand}, {str(preact).lower()}",
            "const __grid_constant__ pathnet::NetEvalPlan",
            {"operand": operand.lower(), "preact": preact},
            512,
            shared_bytes(dtype, 32, 32),
            None,
        )
        for operand, dtype in operands.items()
        for preact in (False, True)
    ]


def _forward_run() -> list[Kernel]:
    reason = "it multiplies no matrices"
    pointers = "const typename pathnet::{0}::Element*, const uint8_t*, typename pathnet::{0}::Element*, int64_t"
    kernels = []
    for operand in ("Bf16", "Fp16", "Tf32"):
        settings: dict[str, str | bool] = {"operand": operand.lower()}
        for name, parameters in (
            ("forward_run_merge_kernel", "const __grid_constant__ pathnet::ForwardRunPlan"),
            ("forward_run_backward_kernel", pointers.format(operand)),
        ):
            kernels.append(Kernel(name, "forward_run.cuh", f"pathnet::{operand}", parameters, settings, 256, 0, reason))
    tables = "const int8_t*, int*, int*, int, int"
    return [*kernels, Kernel("row_tables_kernel", "forward_run.cuh", "", tables, {}, 256, 32, reason)]


KERNELS = (*_net_eval(), *_forward_run())


def rows(archs: Sequence[int] = ARCHS, kernels: Sequence[Kernel] = KERNELS) -> Iterator[Row]:
    """A row a kernel and chip; compiling takes seconds a row.

    Raises LookupError where the sources, nvcc or nvdisasm are missing, RuntimeError with nvcc's words if it fails.
    """
    nvcc, disassembler = _nvcc(), _disassembler()
    with tempfile.TemporaryDirectory() as folder:
        for arch in archs:
            for kernel in kernels:
                cubin, log = _compile(nvcc, arch, kernel, Path(folder))
                yield _row(arch, kernel, log, _instructions(disassembler, cubin))


def write_ptx(folder: Path, archs: Sequence[int] = ARCHS, kernels: Sequence[Kernel] = KERNELS) -> list[Path]:
    """Write the PTX of every kernel and chip into `folder`; the files."""
    nvcc, files = _nvcc(), []
    for arch in archs:
        for kernel in kernels:
            file = folder / f"{kernel.name}-{'-'.join(map(str, kernel.settings.values()))}-sm_{arch}.ptx"
            _run(nvcc, arch, kernel, folder, ["-ptx", "-o", str(file)])
            files.append(file)
    return files


def _nvcc() -> str:
    if not SOURCES.is_dir():
        raise LookupError(f"the CUDA sources are not in {SOURCES}: run this in a checkout of pathnet.")
    homes = toolkit.installed()
    if not homes:
        raise LookupError("there is no CUDA toolkit with nvcc; install one, or set CUDA_HOME to its folder.")
    return f"{next(iter(homes))}/bin/nvcc"


def _disassembler() -> str:
    triton = find_spec("triton")
    places = [Path(home) / "bin" for home in toolkit.installed()]
    if triton is not None and triton.origin is not None:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = [place / "nvdisasm" for place in places if (place / "nvdisasm").is_file()]
    if not found:
        raise LookupError("there is no nvdisasm in the CUDA toolkit; install that part of it, or the package triton.")
    return str(found[0])


def _compile(nvcc: str, arch: int, kernel: Kernel, folder: Path) -> tuple[Path, str]:
    cubin = folder / "kernel.cubin"
    return cubin, _run(nvcc, arch, kernel, folder, ["-cubin", "-Xptxas", "-v", "-o", str(cubin)])


def _run(nvcc: str, arch: int, kernel: Kernel, folder: Path, flags: Sequence[str]) -> str:
    source = folder / "kernel.cu"
    instance = f"template __global__ void pathnet::{kernel.name}<{kernel.arguments}>({kernel.parameters});"
    source.write_text(f'#include "{kernel.header}"\n{instance if kernel.arguments else ""}\n')
    command = [nvcc, f"-arch=sm_{arch}", "-std=c++17", "-O3", f"-I{SOURCES}", *flags, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    source.unlink()
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {kernel.name} for sm_{arch}: {done.stderr}")
    return done.stderr


def _instructions(disassembler: str, cubin: Path) -> list[str]:
    text = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text)


def _row(arch: int, kernel: Kernel, log: str, instructions: Sequence[str]) -> Row:
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    stored, loaded = map(int, re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)[0])
    counts = {kind: sum(name.startswith(kind) for name in instructions) for kind in ("HMMA", "LDGSTS")}
    return Row(
        kernel.name,
        "cuda",
        arch,
        kernel.settings,
        registers,
        stored + loaded,
        kernel.shared,
        _resident(arch, registers, kernel),
        counts["HMMA"],
        counts["LDGSTS"],
        16 * len(instructions),
        kernel.tensor_core_exempt,
    )


def _resident(arch: int, registers: int, kernel: Kernel) -> int:
    """Thread blocks that a multiprocessor holds at once."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * kernel.threads)
    memory = (SHARED_KIB[divmod(arch, 10)] + 1) << 10  # one KiB is reserved for the largest block
    return min(by_registers, memory // (kernel.shared + RESERVED), MOST_THREADS.get(arch, 2048) // kernel.threads)
