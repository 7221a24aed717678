"""Instructions that move values between registers and memory, the asynchronous copies, atomics and branches."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from ptx.arithmetic import Step, dtype, instruction
from ptx.memory import PENDING
from ptx.parse import PARAMETER_SPACE, Address, Instruction, PtxError

SHARED_WINDOW = 1 << 60  # where shared memory stands among the addresses that name no space; buffers stand below
VECTOR = r"(?:\.v([24]))?\.([busf](?:8|16|32|64))"


def addresses(block: Any, address: Address, lanes: np.ndarray) -> np.ndarray:
    """[base + offset] of these threads."""
    base = block.registers[address.base].astype(np.int64)
    return base[lanes] + address.offset


def load(block: Any, space: str, at: np.ndarray, width: int, lanes: np.ndarray) -> np.ndarray:
    """Bytes [lanes, width] of "shared", "global" or "generic" memory."""
    if space == "shared":
        return block.shared.load(block, at, width, lanes)
    if space == "generic":
        return _load_generic(block, at, width, lanes)
    found = np.empty((len(lanes), width), np.uint8)
    for buffer, which, offsets in block.memory.split(at):
        found[which] = buffer.load(block, offsets, width, lanes[which])
    return found


def _load_generic(block: Any, at: np.ndarray, width: int, lanes: np.ndarray) -> np.ndarray:
    found, inside = np.empty((len(lanes), width), np.uint8), at >= SHARED_WINDOW
    for space, chosen, base in (("shared", inside, SHARED_WINDOW), ("global", ~inside, 0)):
        if chosen.any():
            found[chosen] = load(block, space, at[chosen] - base, width, lanes[chosen])
    return found


def store(block: Any, space: str, at: np.ndarray, values: np.ndarray, lanes: np.ndarray) -> None:
    """Write bytes [lanes, width]."""
    if space == "shared":
        block.shared.store(block, at, values, lanes)
        return
    for buffer, which, offsets in block.memory.split(at):
        buffer.store(block, offsets, values[which], lanes[which])


def spread(block: Any, values: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """Values of these threads as an array over all."""
    if len(lanes) == block.threads:
        return np.ascontiguousarray(values)
    full = np.zeros(block.threads, values.dtype)
    full[lanes] = values
    return full


@instruction(rf"ld(?:\.(global|shared(?:::cta)?))?(?:\.nc|\.cg|\.ca)?{VECTOR}")
def _load(match: re.Match, what: Instruction) -> Step:
    space, kind = (match.group(1) or "generic").split("::")[0], dtype(match.group(3))
    target, source = what.operands
    targets = target if isinstance(target, tuple) else (target,)
    width = kind.itemsize * int(match.group(2) or 1)

    def step(block: Any) -> None:
        lanes = block.lanes()
        found = load(block, space, addresses(block, source, lanes), width, lanes).view(kind)
        for column, name in enumerate(targets):
            if name != "_":
                block.write(name, spread(block, found[:, column], lanes))

    return step


@instruction(rf"st\.(global|shared(?:::cta)?){VECTOR}")
def _store(match: re.Match, what: Instruction) -> Step:
    space, kind = match.group(1).split("::")[0], dtype(match.group(3))
    target, source = what.operands
    sources = source if isinstance(source, tuple) else (source,)

    def step(block: Any) -> None:
        lanes = block.lanes()
        values = np.stack([block.read(name, kind)[lanes] for name in sources], 1)
        store(block, space, addresses(block, target, lanes), values.view(np.uint8), lanes)

    return step


@instruction(rf"ld\.param{VECTOR}")
def _load_parameter(match: re.Match, what: Instruction) -> Step:
    kind = dtype(match.group(2))
    target, source = what.operands
    targets = target if isinstance(target, tuple) else (target,)

    def step(block: Any) -> None:
        places = addresses(block, source, block.lanes())
        if (places != places[0]).any():
            raise PtxError("threads read different bytes of the parameters.")
        number, begin = divmod(int(places[0]), PARAMETER_SPACE)
        name, held = list(block.parameters.items())[number]
        end = begin + kind.itemsize * len(targets)
        if end > len(held):
            raise PtxError(f"it reads up to byte {end} of {name}, which has {len(held)}.")
        for target, value in zip(targets, held[begin:end].view(kind), strict=True):
            block.write(target, np.full(block.threads, value))

    return step


@instruction(r"cvta\.shared\.u64")
def _generic_of_shared(match: re.Match, what: Instruction) -> Step:
    target, source = what.operands
    return lambda block: block.write(target, block.read(source, np.dtype(np.uint64)) + np.uint64(SHARED_WINDOW))


@instruction(r"cp\.async\.(?:ca|cg)\.shared\.global")
def _copy(match: re.Match, what: Instruction) -> Step:
    """Of `size` bytes the first `taken` come from global memory, the others are zeros; they arrive when waited for."""
    target, source, size, *taken = what.operands

    def step(block: Any) -> None:
        lanes, width = block.lanes(), int(size, 0)
        count = block.read(taken[0], np.dtype(np.uint32))[lanes] if taken else np.full(len(lanes), width)
        if not np.isin(count, (0, width)).all():
            raise PtxError(f"it copies a part of {width} bytes.")
        values, at = np.zeros((len(lanes), width), np.uint8), addresses(block, source, lanes)
        if count.any():
            values[count > 0] = load(block, "global", at[count > 0], width, lanes[count > 0])
        places = addresses(block, target, lanes)
        block.shared.store(block, places, values, lanes, np.full(len(lanes), PENDING))
        block.copies.append((lanes, block.copy_groups[lanes], places, values))

    return step


@instruction(r"cp\.async\.commit_group")
def _commit(match: re.Match, what: Instruction) -> Step:
    def step(block: Any) -> None:
        block.copy_groups[block.lanes()] += 1

    return step


@instruction(r"cp\.async\.wait_group")
def _wait(match: re.Match, what: Instruction) -> Step:
    """All but the last so many groups of these threads arrive."""
    (left,) = what.operands

    def step(block: Any) -> None:
        arrived = block.copy_groups - int(left, 0)
        arrived[np.setdiff1d(block.everyone, block.lanes())] = 0
        under_way = []
        for lanes, group, places, values in block.copies:
            done = group < arrived[lanes]
            if done.any():
                block.shared.arrive(block, places[done], values[done], lanes[done])
            if not done.all():
                under_way.append((lanes[~done], group[~done], places[~done], values[~done]))
        block.copies = under_way

    return step


@instruction(r"atom\.(?:global\.gpu\.)?(acq_rel|relaxed)(?:\.gpu\.global)?\.add\.[us]32")
def _add(match: re.Match, what: Instruction) -> Step:
    """Thread by thread. acq_rel: the block's earlier writes are released, those of earlier releases acquired."""
    target, source, added = what.operands

    def step(block: Any) -> None:
        lanes = block.lanes()
        old, more = np.zeros(block.threads, np.uint32), block.read(added, np.dtype(np.uint32))
        for lane, at in zip(lanes, addresses(block, source, lanes), strict=True):
            ((buffer, _, offsets),) = block.memory.split(np.array([at]))
            (old[lane],) = buffer.add(offsets[0], more[lane])
            if match.group(1) == "acq_rel":
                block.synchronise(int(at), int(lane))
        block.write(target, old)

    return step


@instruction(r"bra(?:\.uni)?")
def _branch(match: re.Match, what: Instruction) -> Step:
    (label,) = what.operands
    return lambda block: block.go(block.kernel.program.labels[label])


@instruction(r"trap")
def _trap(match: re.Match, what: Instruction) -> Step:
    """Where the compiler has found that nobody may come, such as behind a null pointer."""

    def step(block: Any) -> None:
        raise PtxError("a thread comes to a trap.")

    return step


@instruction(r"ret|exit")
def _return(match: re.Match, what: Instruction) -> Step:
    return lambda block: block.go(block.kernel.done)
