"""One launch for several gradients of one forward: what each has of its own lies apart, and they share the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from pathnet.kernels.launch import Launch

GRADIENTS = "g", "skip", "g_in"  # arguments that are a gradient for each copy
TABLES = "slopes", "slopes_in", "gradients_in"  # numbers of a norm for each copy


@triton.jit
def _moved(argument, which):
    """An argument (value, step) of copy `which`; one without a step is shared."""
    return argument[0] if argument[1] is None else argument[0] + which * argument[1]


@triton.jit
def of_each(KERNEL: tl.constexpr, arguments, CONSTANTS: tl.constexpr):
    """KERNEL, for the copy that the last side of the grid counts."""
    which = tl.program_id(2).to(tl.int64)
    KERNEL(*[_moved(argument, which) for argument in arguments], *CONSTANTS)


def for_each(launch: Launch, copies: int, table: int) -> Launch:
    """The launch for so many gradients, whose arguments are those of the first.

    Behind a gradient stands the next, behind the norms' numbers those of the next after `table` entries; slots and
    counters are shared out.
    """
    if copies == 1:
        return launch
    tensors = launch.tensors
    apart = {name: tensors[name].numel() for name in GRADIENTS if name in tensors}
    apart |= {name: table for name in TABLES if name in tensors}
    apart |= {"slots": tensors["slots"].numel() // copies, "counter": launch.grid[1]}
    own = (name for name in (*GRADIENTS, *TABLES) if name in tensors)
    touched = {name: copies * tensors[name].numel() * tensors[name].element_size() for name in own}
    reads, writes = ({name: copies * size for name, size in side.items()} for side in (launch.reads, launch.writes))
    return launch._replace(grid=(*launch.grid, copies), reads=reads, writes=writes, apart=apart, touched=touched)
