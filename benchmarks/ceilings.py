"""What this machine can do at best: `ceilings.cpp`, compiled on demand for the instruction set in use."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from pathnet import extension

SOURCE = Path(__file__).with_name("ceilings.cpp")
BUILD = SOURCE.parents[1] / "build"
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
AVX512 = ("-mavx512f", "-mfma")
FLAGS = {"amx": AVX512, "avx512_bf16": AVX512, "avx512": AVX512, "avx2": ("-mavx2", "-mfma")}  # else: none
USUAL = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}  # where the system does not tell
LEAST_DRAM, MOST_DRAM = 256 << 20, 1 << 30


@dataclass(frozen=True)
class Ceilings:
    """Multiply-adds a second in registers; bytes a second, named as in "L1 read" or "DRAM stream"."""

    multiply_adds: float
    bytes_per_second: dict[str, float]

    def best_of(self, other: Ceilings) -> Ceilings:
        """Return the higher of each figure: other work on the machine only ever lowers them."""
        figures = {level: max(value, other.bytes_per_second[level]) for level, value in self.bytes_per_second.items()}
        return Ceilings(max(self.multiply_adds, other.multiply_adds), figures)

    @property
    def read(self) -> float:
        """Bytes a second out of memory."""
        return self.bytes_per_second["DRAM read"]

    @property
    def write(self) -> float:
        """Bytes a second into memory: by non-temporal stores, which do not read first, or by others if faster."""
        return max(self.bytes_per_second["DRAM write"], self.bytes_per_second["DRAM stream"])


def instructions() -> str:
    """Return the instruction set that pathnet's CPU kernels use, "none" without the extension."""
    return str(extension.build_info().get("cpu", {}).get("instructions", "none"))


@functools.cache
def measure(threads: int | None = None) -> Ceilings | str:
    """Return the ceilings with `threads` threads (PyTorch's), measured once, or in a sentence why there are none."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    program = BUILD / f"ceilings-{instructions()}"
    BUILD.mkdir(exist_ok=True)
    flags = ["-std=c++17", "-O3", "-pthread", *FLAGS.get(instructions(), ())]
    try:
        _run([*compiler, *flags, str(SOURCE), "-o", str(program)])
        levels = [f"{level}={size}" for level, size in working_sets(cache_sizes()).items()]
        return parse(_run([str(program), str(threads or torch.get_num_threads()), *levels]))
    except FileNotFoundError:
        return f"The ceilings were not measured: there is no C++ compiler {compiler[0]!r} on the PATH; set CXX to one."
    except subprocess.CalledProcessError as error:
        return f"The ceilings were not measured: {shlex.join(error.cmd)} failed: {error.stderr.strip()}"


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(printed: str) -> Ceilings:
    """Return the ceilings from the lines `LEVEL WHAT VALUE` of the program."""
    figures = {f"{level} {what}": float(value) for level, what, value in map(str.split, printed.splitlines())}
    return Ceilings(figures.pop("FMA multiply-add"), figures)


def cache_sizes(folder: Path = CACHES) -> dict[str, int]:
    """Return the bytes of each data cache as Linux tells them, the usual ones where it does not."""
    sizes = dict(USUAL)
    for cache in folder.glob("index*"):
        if (cache / "type").read_text().strip() != "Instruction":
            level = f"L{(cache / 'level').read_text().strip()}"
            sizes[level] = int((cache / "size").read_text().strip().removesuffix("K")) << 10
    return sizes


def working_sets(caches: dict[str, int]) -> dict[str, int]:
    """Return bytes a thread that lie in each level: half of L1 and L2, eight times L2 in L3, twice L3 in DRAM."""
    return {
        "L1": caches["L1"] // 2,
        "L2": caches["L2"] // 2,
        "L3": min(8 * caches["L2"], caches["L3"] // 2),
        "DRAM": min(max(2 * caches["L3"], LEAST_DRAM), MOST_DRAM),
    }
