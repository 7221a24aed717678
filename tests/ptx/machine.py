"""One thread block at a time: its registers are arrays over its threads, and all of them step together.

Where threads part, those at the lowest instruction run first, until they meet the others again.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from ptx import collectives, transfers  # noqa: F401  (they register their instructions)
from ptx.arithmetic import TABLE, Build, Step
from ptx.memory import WARP, GlobalMemory, Space
from ptx.parse import Instruction, Program, PtxError

BARRIER = np.int64(2**20)  # of time; a barrier of a warp takes one
Grid = tuple[int, int, int]


class Kernel:
    """A program whose instructions are ready to step; raises PtxError for one that is not known."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps = [_build(what) for what in program.instructions]
        self.done = len(self.steps)  # where threads stand that have returned


@cache
def _builder(opcode: str) -> tuple[Build, re.Match] | None:
    found = ((build, pattern.fullmatch(opcode)) for pattern, build in TABLE)
    return next(((build, match) for build, match in found if match), None)


def _build(what: Instruction) -> Step:
    """What executes this instruction."""
    known = _builder(what.opcode)
    if known is None:
        raise PtxError(f"line {what.line}: the instruction {what.opcode} is not known.")
    build, match = known
    return build(match, what)


class Block:
    """The state of a thread block, and its run.

    `at` says where each thread stands but for the running group, which stands at `next`.
    """

    def __init__(
        self, kernel: Kernel, index: int, registers: dict[str, np.ndarray], parameters: dict[str, np.ndarray],
        shared_bytes: int, memory: GlobalMemory, releases: dict,
    ) -> None:  # fmt: skip
        self.kernel, self.index, self.registers, self.parameters, self.memory = (
            kernel, index, dict(registers), parameters, memory
        )  # fmt: skip
        self.threads = len(registers["%tid.x"])
        self.first_thread = index * self.threads
        self.shared = Space("shared memory", np.zeros(shared_bytes, np.uint8), known=False, shared=True)
        self.everyone = np.arange(self.threads)
        self.at = np.zeros(self.threads, np.int64)
        self.waiting = np.zeros(self.threads, bool)
        self.group: np.ndarray | None = None  # the threads that run; None: all
        self.active: np.ndarray | None = None  # those that the guard of the instruction lets through
        self.next, self.stop, self.parted = 0, 0, False
        self.times = np.zeros(self.threads, np.int64)
        self.barrier = np.int64(0)  # the time of the last one
        self.copies: list = []  # asynchronous ones under way
        self.copy_groups = np.zeros(self.threads, np.int64)  # committed by each thread
        self.releases, self.seen = releases, dict[int, tuple[int, int]]()
        self.acquired = 0, -1  # when, and by which thread

    def run(self) -> None:
        """To the end of all threads; raises PtxError with the line of what went wrong."""
        while self._choose_group():
            while self.next < self.stop:
                here = self.next
                self.next = here + 1
                try:
                    self._step(here)
                except PtxError as error:
                    raise PtxError(f"{self._where(here)}: {error}") from None
                except KeyError as error:
                    raise PtxError(f"{self._where(here)}: {error} is read before anything is written to it.") from None
            if not self.parted:
                self.at[... if self.group is None else self.group] = self.next
        if self.copies:
            raise PtxError("the block ends while an asynchronous copy is under way.")

    def _where(self, at: int) -> str:
        what = self.kernel.program.instructions[at]
        return f"line {what.line}, {what.opcode}"

    def _step(self, here: int) -> None:
        what, step = self.kernel.program.instructions[here], self.kernel.steps[here]
        if what.guard is None:
            step(self)
            return
        chosen = self.registers[what.guard] ^ what.inverted
        chosen = chosen if self.group is None else chosen & self.group
        if not chosen.any():
            return
        self.active = self.group if (chosen if self.group is None else chosen[self.group]).all() else chosen
        step(self)
        self.active = self.group

    def go(self, target: int) -> None:
        """The active threads continue there, the rest of their group behind this instruction."""
        if self.active is self.group:
            self.next = target
        else:
            self._part()
            self.at[self.active] = target

    def wait(self) -> None:
        """The active threads stand at the block's barrier."""
        if self.active is None:
            self._pass_barrier()
        else:
            self._part()
            self.waiting |= self.active

    def _part(self) -> None:
        self.at[... if self.group is None else self.group] = self.next
        self.next, self.parted = self.stop, True

    def _choose_group(self) -> bool:
        """The threads at the lowest instruction, up to where others stand; False if all have returned."""
        done = self.kernel.done
        if self.waiting.any() and (self.waiting | (self.at >= done)).all():
            self._release()
        places = np.where(self.waiting, done, self.at)
        self.next, self.parted = int(places.min()), False
        group = places == self.next
        self.group = self.active = None if group.all() else group
        self.stop = done if self.group is None else int(places[~group].min())
        return self.next < done

    def _release(self) -> None:
        if not self.waiting.all():
            raise PtxError("a barrier waits for threads that have returned.")
        warps = self.at.reshape(-1, WARP)
        if (warps != warps[:, :1]).any():
            raise PtxError("threads of one warp wait at different barriers.")
        self.waiting[:] = False
        self._pass_barrier()

    def _pass_barrier(self) -> None:
        self.barrier = (self.barrier // BARRIER + 1) * BARRIER
        self.times[:] = self.barrier

    def lanes(self) -> np.ndarray:
        """The active threads."""
        return self.everyone if self.active is None else np.flatnonzero(self.active)

    def warps(self) -> np.ndarray:
        """The active threads [warps, 32]: all of a warp or none."""
        lanes = self.lanes()
        if len(lanes) % WARP or (lanes.reshape(-1, WARP) // WARP != lanes[::WARP, None] // WARP).any():
            raise PtxError("it needs all threads of a warp.")
        return lanes.reshape(-1, WARP)

    def read(self, name: Any, kind: np.dtype) -> np.ndarray:
        """A register, or a number, as this type.

        One that nobody wrote has all bits set, a NaN: compilers move such values, and select others in their place.
        """
        if name not in self.registers and kind.kind != "b":
            return np.full(self.threads * kind.itemsize, 0xFF, np.uint8).view(kind)
        bits = self.registers[name]
        return bits.view(kind) if bits.itemsize == kind.itemsize else bits.astype(f"u{kind.itemsize}").view(kind)

    def write(self, name: str, value: np.ndarray) -> None:
        """Into a register, extended to its width, for the active threads."""
        width = self.kernel.program.widths[name.rstrip("0123456789")]
        if width > value.itemsize:
            value = value.astype(f"{value.dtype.kind}{width}")
        bits = value if width == 0 else value.view(f"u{width}")
        if self.active is not None:
            old = self.registers.get(name)
            bits = np.where(self.active, bits, np.zeros_like(bits) if old is None else old)
        self.registers[name] = bits

    def synchronise(self, address: int, thread: int) -> None:
        """An acquire-release of this thread at this address, which orders blocks."""
        released = self.releases.setdefault(address, {})
        self.seen.update(released)
        self.acquired = int(self.barrier), thread
        released[self.index] = int(self.barrier), thread

    def unseen(self, writer: np.ndarray, written: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Whether the writes of other blocks are not yet visible to these threads."""
        unseen = np.ones(writer.shape, bool)
        time, thread = self.acquired
        after = (threads == thread) | (time < self.barrier)
        for block, (released, releaser) in self.seen.items():
            mine = (writer // self.threads == block) & ((written < released) | (writer % self.threads == releaser))
            unseen &= ~(mine & after[:, None])
        return unseen
