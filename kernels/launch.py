"""A launch as data: it runs the kernel, and it is what `pathnet.profile` and `pathnet kernels` read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from pathnet.kernels.conv_forward import conv_forward
from pathnet.kernels.copies import of_each

WORKSPACE = ("slots", "counter", "partial")  # arguments that hold partial sums: counted in a column of their own
INTERPRETED = isinstance(conv_forward, InterpretedFunction)  # TRITON_INTERPRET=1 stood when Triton was imported


class Launch(NamedTuple):
    """One launch of a kernel; `reads` and `writes` give the bytes that its programs request of each tensor."""

    name: str
    kernel: Any  # a triton.jit function; None where PyTorch computes, the vendor's convolutions above all
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, numbers and None, in the order of the parameters
    constants: dict[str, Any]
    warps: int
    stages: int
    reads: dict[str, int]
    writes: dict[str, int]
    multiplies: bool = False  # a product, which belongs on the tensor cores
    reached: Mapping[str, Tensor] = {}  # tensors beside the arguments that a table in these leads to
    touched: Mapping[str, int] = {}  # bytes of tensors of which a part alone is read or written

    gate: Tensor | None = None  # int32, one number on the device: where it is 0 the kernel does nothing
    apart: Mapping[str, int] = {}  # elements from one copy of an argument to the next, which the last grid side counts

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that the launch reads or writes."""
        return {name: t for name, t in {**self.arguments, **self.reached}.items() if isinstance(t, Tensor)}

    def unique(self, names: dict[str, int], workspace: bool = False) -> int:
        """The bytes of these arguments, each once: all but the workspace, or the workspace alone."""
        return sum(
            self.touched.get(name, self.tensors[name].numel() * self.tensors[name].element_size())
            for name in names
            if (name in WORKSPACE) == workspace
        )


_observers: list[list[Launch]] = []


@contextmanager
def observed() -> Iterator[list[Launch]]:
    """The launches that are made inside the `with`; on meta tensors they are made, and nothing runs."""
    _observers.append([])
    try:
        yield _observers[-1]
    finally:
        _observers.pop()


def run(launch: Launch) -> None:
    """Launch the kernel on the current stream."""
    for launches in _observers:
        launches.append(launch)
    if next(iter(launch.tensors.values())).is_meta:
        return
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    if launch.gate is not None:
        gated[launch.grid](launch.gate, launch.kernel, *_in_order(launch), **options)
    elif launch.apart:
        arguments, constants = _in_order(launch)
        of_each[launch.grid](launch.kernel, tuple(zip(arguments, _steps(launch), strict=True)), constants, **options)
    else:
        launch.kernel[launch.grid](**launch.arguments, **launch.constants, **options)


def note(name: str, reads: dict[str, Tensor], writes: dict[str, Tensor]) -> None:
    """Tell the observers what PyTorch has computed: a launch, of whose bytes only the unique ones are known."""
    sides = ({key: t.numel() * t.element_size() for key, t in side.items()} for side in (reads, writes))
    for launches in _observers:
        launches.append(Launch(name, None, (), reads | writes, {}, 0, 0, *sides))


@triton.jit
def gated(gate, KERNEL: tl.constexpr, arguments, CONSTANTS: tl.constexpr):
    """KERNEL, where the gate is not 0."""
    if tl.load(gate) != 0:
        KERNEL(*arguments, *CONSTANTS)


def _in_order(launch: Launch) -> tuple[tuple, tuple]:
    """Arguments and constants as the parameters of the kernel stand, which end with the constants."""
    names = launch.kernel.arg_names
    arguments = tuple(launch.arguments[name] for name in names if name not in launch.constants)
    return arguments, tuple(launch.constants[name] for name in names if name in launch.constants)


def _steps(launch: Launch) -> tuple[int | None, ...]:
    """From one copy to the next, for each argument in order."""
    return tuple(launch.apart.get(name) for name in launch.kernel.arg_names if name not in launch.constants)


def product_dtype(stored: tl.dtype) -> tl.dtype:
    """The dtype of a product's operands: the interpreter has no bfloat16 product, and float32 holds its factors."""
    return tl.float32 if INTERPRETED and stored == tl.bfloat16 else stored
