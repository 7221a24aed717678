"""The compilers of `pathnet kernels`: what each can compile here, and one kernel of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from pathnet.machine_code import Compiled, most_shared


class Choice(NamedTuple):
    """Which kernels; None for all."""

    channels: tuple[int, ...] | None
    dtypes: tuple[str, ...] | None


class Compiler(NamedTuple):
    """Of one language."""

    why_not: Callable[[], str | None]  # what is missing here, in a sentence
    kernels: Callable[[Choice, int], Sequence[Any]]  # that can run on a chip
    compile: Callable[[Any, int], Compiled]  # a kernel for a chip
    ptx: Callable[[Any, int], tuple[str, dict[str, Any]]]  # and how to launch it


def _triton_missing() -> str | None:
    if find_spec("triton") is None:
        return "Triton, which compiles them, is not installed; pip install triton."
    from pathnet.kernels.launch import INTERPRETED

    return "TRITON_INTERPRET=1 is set, and an interpreter compiles nothing; unset it." if INTERPRETED else None


def _triton_kernels(choice: Choice, arch: int) -> Sequence[Any]:
    return _triton_catalogue(choice)


@cache
def _triton_catalogue(choice: Choice) -> Sequence[Any]:
    from pathnet.kernels.catalogue import CHANNELS, DTYPES, catalogue

    return catalogue(choice.channels or CHANNELS, choice.dtypes or tuple(DTYPES))


def _triton_compiled(launch: Any, arch: int) -> Compiled:
    from pathnet.kernels.compile import compile_launch

    return compile_launch(launch, arch)


def _triton_ptx(launch: Any, arch: int) -> tuple[str, dict[str, Any]]:
    from pathnet.kernels.compile import ptx_of

    return ptx_of(launch, arch)


def _cuda_missing() -> str | None:
    from pathnet.ops.cuda_compile import why_not

    return why_not()


def _cuda_kernels(choice: Choice, arch: int) -> Sequence[Any]:
    from pathnet.ops.cuda_kernels import selected

    return [kernel for kernel in selected(*choice) if kernel.shared <= most_shared(arch)]


def _cuda_compiled(kernel: Any, arch: int) -> Compiled:
    from pathnet.ops.cuda_compile import compile_kernel

    return compile_kernel(kernel, arch)


def _cuda_ptx(kernel: Any, arch: int) -> tuple[str, dict[str, Any]]:
    from pathnet.ops.cuda_compile import launch_description, ptx_of

    ptx = ptx_of(kernel, arch)
    return ptx, launch_description(kernel, arch, ptx)


COMPILERS = {
    "Triton": Compiler(_triton_missing, _triton_kernels, _triton_compiled, _triton_ptx),
    "CUDA C++": Compiler(_cuda_missing, _cuda_kernels, _cuda_compiled, _cuda_ptx),
}
