"""Memory that knows who wrote each byte and when, so that it can refuse what the memory model does not order."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx.parse import PtxError

WARP = 32
PENDING = np.int64(2**62)  # the time of bytes that an asynchronous copy will write
NOBODY, MANY = -1, -2


class Space:
    """Bytes of one buffer or of a block's shared memory.

    A byte keeps its last writer (a thread of the grid) and the writer's time; of shared memory also its reader's.
    """

    def __init__(self, name: str, data: np.ndarray, known: bool, writable: bool = True, shared: bool = False) -> None:
        self.name, self.data, self.writable, self.shared = name, data, writable, shared
        self.known = np.full(len(data) if writable else 0, known)
        self.writer = np.full(len(self.known), NOBODY, np.int64)
        self.written = np.full(len(self.known), -1, np.int64)
        self.reader = np.full(len(data) if shared else 0, NOBODY, np.int64)
        self.read = np.full(len(self.reader), -1, np.int64)

    def forget_writers(self) -> None:
        """What was written so far, another launch has written."""
        self.writer[:], self.written[:] = NOBODY, -1

    def load(self, block: Any, offsets: np.ndarray, width: int, threads: np.ndarray) -> np.ndarray:
        """Bytes [threads, width]."""
        rows = self._rows(offsets, width, "reads")
        if self.writable:
            if not _cut(self.known, width)[rows].all():
                at = offsets[~_cut(self.known, width)[rows].all(1)][0]
                raise PtxError(f"{self._place(at, 'reads')}, which nobody has written.")
            self._refuse_unordered(block, rows, width, threads, "reads")
        if self.shared:
            self._note_readers(block, rows, width, threads)
        return _cut(self.data, width)[rows]

    def store(
        self, block: Any, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray, times: np.ndarray | None = None
    ) -> None:
        """Write values [threads, width]; at the times of these threads, or at `times` to come."""
        width = values.shape[1]
        if not self.writable:
            raise PtxError(f"{self._place(offsets[0], 'writes')}, which the launch description lists as read only.")
        rows = self._rows(offsets, width, "writes")
        changed = (_cut(self.data, width)[rows] != values) | ~_cut(self.known, width)[rows]
        self._refuse_unordered(block, rows, width, threads, "writes", changed)
        if self.shared:
            self._refuse_read(block, rows, width, threads)
        _cut(self.writer, width)[rows] = (block.first_thread + threads)[:, None]
        _cut(self.written, width)[rows] = (block.times[threads] if times is None else times)[:, None]
        if times is None:
            self._put(offsets, values)

    def arrive(self, block: Any, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """End an asynchronous copy that these threads have waited for."""
        rows, width = offsets // values.shape[1], values.shape[1]
        _cut(self.written, width)[rows] = block.times[threads][:, None]
        self._put(offsets, values)

    def add(self, offset: int, value: np.uint32) -> np.ndarray:
        """Atomically to 4 bytes; returns what stood there."""
        if offset % 4 or not 0 <= offset <= len(self.data) - 4 or not self.writable:
            raise PtxError(f"{self._place(offset, 'adds to')}, which is outside, not aligned or read only.")
        place = self.data[offset : offset + 4].view(np.uint32)
        old = place.copy()
        place += value
        return old

    def _put(self, offsets: np.ndarray, values: np.ndarray) -> None:
        rows, width = offsets // values.shape[1], values.shape[1]
        _cut(self.data, width)[rows] = values
        _cut(self.known, width)[rows] = True
        if (_cut(self.data, width)[rows] != values).any():
            raise PtxError(f"{self._place(offsets[0], 'writes')} and another thread a different value at once.")

    def _rows(self, offsets: np.ndarray, width: int, verb: str) -> np.ndarray:
        outside = (offsets < 0) | (offsets > len(self.data) - width)
        if outside.any():
            at = offsets[outside][0]
            raise PtxError(f"{self._place(at, verb)}, {width} bytes outside its {len(self.data)}.")
        if (offsets % width).any():
            raise PtxError(f"{self._place(offsets[offsets % width != 0][0], verb)}, not aligned to {width} bytes.")
        return offsets // width

    def _refuse_unordered(
        self, block: Any, rows: np.ndarray, width: int, threads: np.ndarray, verb: str, mind: Any = True
    ) -> None:
        """No other thread may have written these bytes without a barrier since, nor a copy still be under way."""
        written = _cut(self.written, width)[rows]
        writer = _cut(self.writer, width)[rows]
        own = writer // block.threads == block.index
        if (own | (writer == NOBODY)).all() and written.max() < block.barrier:
            return
        if (written == PENDING).any():
            raise PtxError(f"{self._place(rows[0] * width, verb)}, which an asynchronous copy not waited for writes.")
        unordered = np.where(
            own, _late(block, written, writer - block.first_thread, threads), block.unseen(writer, written, threads)
        )
        unordered &= (writer != (block.first_thread + threads)[:, None]) & (writer != NOBODY) & mind
        if unordered.any():
            line, column = np.argwhere(unordered)[0]
            other = f"thread {writer[line, column] % block.threads} of block {writer[line, column] // block.threads}"
            raise PtxError(f"{self._place(rows[line] * width, verb)} in a race with {other}, which wrote it.")

    def _note_readers(self, block: Any, rows: np.ndarray, width: int, threads: np.ndarray) -> None:
        reader, read = _cut(self.reader, width), _cut(self.read, width)
        me = threads[:, None]
        others = (read[rows] >= block.barrier) & (reader[rows] != me)
        reader[rows] = np.where(others, MANY, me)
        shared = (reader[rows] != me).any(1)
        reader[rows[shared]] = MANY
        read[rows] = block.times[threads][:, None]

    def _refuse_read(self, block: Any, rows: np.ndarray, width: int, threads: np.ndarray) -> None:
        read, reader = _cut(self.read, width)[rows], _cut(self.reader, width)[rows]
        if read.max() < block.barrier:
            return
        late = _late(block, read, reader, threads) & (reader != threads[:, None])
        if late.any():
            line = np.argwhere(late)[0][0]
            raise PtxError(f"{self._place(rows[line] * width, 'writes')} in a race with threads that read it.")

    def _place(self, offset: int, verb: str) -> str:
        return f"a thread {verb} byte {offset} of {self.name}"


def _cut(values: np.ndarray, width: int) -> np.ndarray:
    """As rows of this many bytes."""
    return values[: len(values) // width * width].reshape(-1, width)


def _late(block: Any, times: np.ndarray, others: np.ndarray, threads: np.ndarray) -> np.ndarray:
    """Whether what others of the block did at these times may come after what the threads do now."""
    same_warp = others // WARP == (threads // WARP)[:, None]
    return times >= np.where(same_warp, block.times[threads][:, None], block.barrier)


class GlobalMemory:
    """The buffers of a launch at their addresses, which are those of this process."""

    def __init__(self) -> None:
        self.buffers: dict[int, Space] = {}

    def add(self, address: int, name: str, data: np.ndarray, known: bool, writable: bool) -> None:
        """Where two names have one address, one of them may be written, and one may hold values."""
        other = self.buffers.get(address)
        if other is not None:
            data = max(data, other.data, key=len)
            known, writable = known or not other.writable or bool(other.known.all()), writable or other.writable
        self.buffers[address] = Space(name, data, known, writable)

    def begin_launch(self) -> None:
        """All that was done so far is ordered before what follows."""
        for buffer in self.buffers.values():
            buffer.forget_writers()

    def split(self, addresses: np.ndarray) -> list[tuple[Space, np.ndarray, np.ndarray]]:
        """(buffer, which of these addresses, their offsets) for each buffer that they lie in."""
        if (same := self._buffer_of_all(addresses)) is not None:
            return [same]
        found, left = [], np.arange(len(addresses))
        for begin, buffer in self.buffers.items():
            offsets = addresses[left] - begin
            inside = (offsets >= 0) & (offsets < len(buffer.data))
            if inside.any():
                found.append((buffer, left[inside], offsets[inside]))
                left = left[~inside]
            if not len(left):
                return found
        raise self._outside(int(addresses[left[0]]))

    def _buffer_of_all(self, addresses: np.ndarray) -> tuple[Space, np.ndarray, np.ndarray] | None:
        first = int(addresses[0])
        begin = max((begin for begin in self.buffers if begin <= first), default=None)
        if begin is None:
            return None
        buffer, offsets = self.buffers[begin], addresses - begin
        inside = (offsets >= 0).all() and (offsets < len(buffer.data)).all()
        return (buffer, np.arange(len(addresses)), offsets) if inside else None

    def _outside(self, address: int) -> PtxError:
        nearest = min(self.buffers, key=lambda begin: abs(begin - address))
        offset = address - nearest
        return PtxError(f"a thread asks for byte {offset} of {self.buffers[nearest].name}, which is outside of it.")
