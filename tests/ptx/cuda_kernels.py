"""The CUDA kernels, executed as the PTX that nvcc makes of them for sm_80; their launches are those of the host."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial

import numpy as np
from cuda_host.host import Library
from cuda_host.ops import OnHost, on_host
from ptx.launch import execute
from ptx.machine import Kernel
from ptx.memory import GlobalMemory
from ptx.parse import PtxError, parse

from pathnet.ops.cuda_compile import ptx_of
from pathnet.ops.cuda_kernels import KERNELS

Edit = Callable[[str], str]
INTEGERS = [ctypes.c_int64] * 3  # thread blocks, threads, bytes of shared memory
ELSEWHERE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *INTEGERS, ctypes.c_void_p, ctypes.c_int64)


class OnPtx(OnHost):
    """How kernels run: as PTX, which `edit` may change first."""

    def __init__(self, edit: Edit = str, backwards: bool = False) -> None:
        super().__init__()
        self.edit, self.backwards = edit, backwards

    def library(self, binding: str, *choice) -> Library:
        return PtxLibrary(super().library(binding, *choice), self.edit, self.backwards)


def executed(edit: Edit = str, backwards: bool = False) -> AbstractContextManager[OnHost]:
    """Inside, the CUDA ops take CPU tensors, and their kernels run as PTX."""
    return on_host(edit, backwards, kind=OnPtx)


class PtxLibrary(Library):
    """A binding of the host that plans the launches, each of which then runs as PTX."""

    def __init__(self, host: Library, edit: Edit, backwards: bool) -> None:
        super().__init__(host.file)
        self.edit, self.backwards = edit, backwards

    def _configure(self, inputs, outputs, schedule: str, seed: int, written: Sequence[str], resident: int) -> None:
        self.memory = GlobalMemory()
        for name, array in (inputs | outputs).items():
            if array is not None:
                known = name in inputs or name in written
                self.memory.add(array.ctypes.data, name, array.view(np.uint8), known, name not in inputs)

    def _run(self, function: str, *arguments) -> None:
        failures: list[Exception] = []
        launch = ELSEWHERE(partial(self._launch, failures))
        self._functions.simt_elsewhere(launch)
        try:
            getattr(self._functions, function)(*arguments)
        finally:
            self._functions.simt_elsewhere(ELSEWHERE())
        if failures:
            raise failures[0]

    def _launch(
        self, failures: list[Exception], entry: bytes, blocks: int, threads: int, shared: int, plan: int, size: int
    ) -> int:
        """Called from C++, through which no exception may go."""
        try:
            self.memory.begin_launch()
            kernel = _kernel(self.edit(ptx_named(entry.decode())), entry.decode())
            parameters = [ctypes.string_at(plan, size)]
            execute(kernel, (blocks, 1, 1), (threads, 1, 1), shared, parameters, self.memory, self.backwards)
        except Exception as failure:
            failures.append(failure)
            return 1
        return 0


@cache
def ptx_named(entry: str) -> str:
    """The PTX of the kernel with this mangled name; PtxError if `pathnet kernels` does not list it."""
    words = subprocess.run(["c++filt", entry], capture_output=True, text=True, check=True).stdout
    function = re.fullmatch(r"(?:void )?(.*)\(.*\)\n", words)[1]
    begins = function.split(", (")[0]  # an enumerator is a number there, behind its type
    texts = (_ptx(number) for number, kernel in enumerate(KERNELS) if kernel.function.startswith(begins))
    found = next((ptx for ptx in texts if f".entry {entry}(" in ptx), None)
    if found is None:
        raise PtxError(f"{function} is launched, and `pathnet kernels` does not list it.")
    return found


@cache
def _ptx(number: int) -> str:
    return ptx_of(KERNELS[number], 80)


@cache
def _kernel(ptx: str, entry: str) -> Kernel:
    return Kernel(parse(ptx, entry))
