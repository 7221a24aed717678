"""Compiles a CUDA kernel's own source for the host and runs it there: any schedule, or every access checked."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
BUILD = Path(tempfile.gettempdir()) / "pathnet-cuda-host"  # outside the checkout; a change of a source changes the name
COMPILE = ["g++", "-std=c++17", "-fPIC", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE}"]
FLAGS = {
    "values": ["-O2"],
    "check": ["-O1", "-g1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
}  # how the kernel is compiled; the runtime is the same for both
RUNTIME = ("scheduler.cpp", "order.cpp", "check.cpp", "atomics.cpp", "warp.cpp")
SCHEDULES = {"in order": 0, "random": 1, "skewed by warp": 2, "skewed by thread": 3, "skewed by block": 4}


class Edit(NamedTuple):
    """A bug to plant: `text` stands once in `file`."""

    file: str
    text: str
    replacement: str


class KernelError(AssertionError):
    """What the runtime found: a race, a read of memory nobody wrote, a deadlock."""


@cache
def library(binding: str, mode: str, macros: tuple[str, ...], edits: tuple[Edit, ...] = ()) -> Library:
    """`binding` (a file of this folder) with the kernel that it includes; `edits` plant bugs in csrc/cuda."""
    sources = sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp"), *KERNELS.glob("*.cuh"), *KERNELS.glob("*.h")])
    content = b"".join(file.read_bytes() for file in sources)
    key = hashlib.sha256(content + repr((binding, FLAGS[mode], macros, edits)).encode()).hexdigest()[:16]
    file = BUILD / f"{Path(binding).stem}-{mode}-{key}.so"
    if not file.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            flags = [*FLAGS[mode], *(f"-D{macro}" for macro in macros)]
            kernel = _object(HERE / binding, [f"-I{_kernels(Path(folder), edits)}", *flags], Path(folder))
            finished = Path(folder) / "finished.so"
            subprocess.run(["g++", "-shared", "-o", finished, kernel, *_runtime()], check=True)
            finished.rename(file)
    return Library(file)


def _kernels(folder: Path, edits: Sequence[Edit]) -> Path:
    """The folder of the kernels, or a copy of it with `edits`."""
    if not edits:
        return KERNELS
    for file in (*KERNELS.glob("*.cuh"), *KERNELS.glob("*.h")):
        (folder / file.name).write_text(file.read_text())
    for edit in edits:
        source = (folder / edit.file).read_text()
        found = source.count(edit.text)
        assert found == 1, f"{edit.text!r} stands {found} times in {edit.file}"
        (folder / edit.file).write_text(source.replace(edit.text, edit.replacement))
    return folder


@cache
def _runtime() -> list[Path]:
    """The runtime's objects, the same for all kernels."""
    content = b"".join(file.read_bytes() for file in sorted(HERE.glob("*.h")) + [HERE / name for name in RUNTIME])
    folder = BUILD / f"runtime-{hashlib.sha256(content).hexdigest()[:16]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=BUILD) as unfinished:
            for name in RUNTIME:
                _object(HERE / name, ["-O2"], Path(unfinished))
            shutil.copytree(unfinished, folder)
    return sorted(folder.glob("*.o"))


def _object(source: Path, flags: Sequence[str], folder: Path) -> Path:
    result = folder / f"{source.stem}.o"
    subprocess.run([*COMPILE, *flags, "-c", source, "-o", result], check=True)
    return result


def _integers(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Library:
    """A compiled binding; its functions take arrays and numbers."""

    def __init__(self, file: Path):
        self.file = file
        self._functions = ctypes.CDLL(str(file))
        self._functions.simt_failure.restype = ctypes.c_char_p
        self._functions.simt_requested.restype = ctypes.c_int64

    def __call__(
        self,
        function: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, np.ndarray],
        numbers: Sequence[int],
        schedule: str = "in order",
        seed: int = 1,
        written: Sequence[str] = (),
        resident: int = 4,
    ) -> None:
        """Run it; the function gets pointers to `inputs`, then to `outputs`, then a pointer to `numbers` (int64).

        `resident` thread blocks run at a time, interleaved as the schedule says. In check mode each array is a buffer
        with exact bounds, and what is in an output may be read only if it is named in `written`, too.
        Raises KernelError where the launch fails.
        """
        self._configure(inputs, outputs, schedule, seed, written, resident)
        self._run(function, *map(_address, (*inputs.values(), *outputs.values())), _address(_integers(numbers)))

    def launches(
        self,
        function: str,
        inputs: dict[str, np.ndarray | None],
        outputs: dict[str, np.ndarray | None],
        numbers: Sequence[int],
        schedule: str = "in order",
        seed: int = 1,
        written: Sequence[str] = (),
        resident: int = 4,
    ) -> None:
        """The same for a function that launches several kernels: it gets one list of all the pointers, null for None.

        What one launch has written the next may read.
        """
        self._configure(inputs, outputs, schedule, seed, written, resident)
        arrays = (*inputs.values(), *outputs.values())
        pointers = (ctypes.c_void_p * len(arrays))(*(0 if a is None else a.ctypes.data for a in arrays))
        self._run(function, pointers, _address(_integers(numbers)))

    def requested(self, array: np.ndarray) -> int:
        """Bytes of a buffer that threads of the last call have asked to read or write; counted in check mode."""
        return self._functions.simt_requested(_address(array))

    def plain(self, function: str):
        """A function that launches nothing, as ctypes calls it."""
        return getattr(self._functions, function)

    def _configure(self, inputs, outputs, schedule: str, seed: int, written: Sequence[str], resident: int) -> None:
        self._functions.simt_configure(SCHEDULES[schedule], ctypes.c_uint64(seed), resident)
        self._functions.simt_buffers(int("-check-" in self.file.name))
        for name, array in (inputs | outputs).items():
            if array is not None:
                assert array.flags.c_contiguous, name
                size, known = ctypes.c_size_t(array.nbytes), name in inputs or name in written
                self._functions.simt_buffer(name.encode(), _address(array), size, name in inputs, known)

    def _run(self, function: str, *arguments) -> None:
        if getattr(self._functions, function)(*arguments):
            raise KernelError(self._with_lines(self._functions.simt_failure().decode()))

    def _with_lines(self, text: str) -> str:
        """Addresses of the code as lines of the source."""
        base = next(
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(self.file) in line
        )

        def line(match: re.Match) -> str:
            offset = int(match[1], 16) - base - 1
            found = subprocess.run(["addr2line", "-e", self.file, hex(offset)], capture_output=True, text=True)
            return found.stdout.strip()

        return re.sub(r"code address (0x[0-9a-f]+)", line, text)
