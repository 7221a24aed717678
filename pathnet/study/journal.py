"""The journal of a run: one line for each finished piece of work, on disk before the next begins.

The first line is the header, which says what all others depend on. Every line carries the CRC-32 of what it holds, so
that damage is seen. A process that dies while it writes leaves half a line at the end: opening the journal cuts it off,
and that piece of work is done again.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
FORMAT = 1
BEGINNING = b'{"record": {"journal": '  # of every journal, and of no other file
PLACES = (("settings", "data"), ("settings", "root"), ("settings", "weights"))  # what is there stands in `identity`


EXTENDABLE = {"lesion": ("lists", "deletions", "swaps", "trials", "drop")}  # how much is measured, not what it means


class Journal:
    """An append-only file of JSON lines that one process at a time may write.

    Raises ValueError, in a sentence and with the file left as it is, where another process has it open, where it is
    damaged before its end, or where its header has another `command`, `identity` or `settings` than `header`.
    """

    def __init__(self, path: Path, header: Record) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            found, self._end = _parse(path.read_bytes(), path)
            self._header = _as_read({"journal": FORMAT, **header})
            if found:
                _check_same_run(path, found[0], self._header)
            os.ftruncate(self._file, self._end)
            self.records = found[1:]
            if not found:
                self._write(self._header)
        except BaseException:
            self.close()
            raise

    def append(self, record: Record) -> None:
        """Put `record` on disk for good; where the disk refuses, what stood there before stays whole."""
        self._write(record)
        self.records.append(_as_read(record))

    def absorb(self, path: Path) -> None:
        """Append what the journal at `path`, of the same run, holds beyond this one, and remove it."""
        found, _ = _parse(path.read_bytes(), path)
        if found:
            _check_same_run(path, found[0], self._header)
        known = set(map(as_text, self.records))
        for record in found[1:]:
            if as_text(record) not in known:
                self.append(record)
        path.unlink()

    def close(self) -> None:
        """Let others have the file."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"journal {self.path} is being written by another process; wait for it, or choose another folder"
            ) from None

    def _write(self, record: Record) -> None:
        line = _line(record)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(f"{written} of {len(line)} bytes fitted")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise ValueError(
                f"journal {self.path} cannot be written ({error.strerror or error}); what is finished stands in it, "
                "so make room and give the same command again"
            ) from error
        self._end += len(line)


def read_journal(path: Path) -> tuple[Record, list[Record]]:
    """Header and records of a journal, which may be in use; ValueError where it is damaged or none."""
    try:
        found, _ = _parse(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"journal {path} cannot be read ({error.strerror})") from error
    if not found:
        raise ValueError(f"journal {path} holds no results yet; run the command that writes it first")
    return found[0], found[1:]


def _check_same_run(path: Path, found: Record, header: Record) -> None:
    """ValueError, naming what differs, where `found`, the header in the file `path`, is that of another run."""
    differences = [f"{name} {there} there, {here} here" for name, there, here in _differences(found, header)]
    if differences:
        raise ValueError(
            f"out holds the results of another run ({'; '.join(differences)} in {path}); "
            "choose another folder, or delete that one"
        )


def _differences(found: Record, header: Record) -> Iterator[tuple[str, Any, Any]]:
    for name in ("journal", "command"):
        if found.get(name) != header[name]:
            yield name, found.get(name), header[name]
    for section in ("identity", "settings"):
        there, here = found.get(section, {}), header[section]
        for name in dict.fromkeys([*here, *there]):
            free = (section, name) in PLACES or name in EXTENDABLE.get(header["command"], ())
            if there.get(name) != here.get(name) and not free:
                yield name, there.get(name), here.get(name)


def _parse(data: bytes, path: Path) -> tuple[list[Record], int]:
    """The records of a journal and the number of bytes that are whole; half a line at the end is left out."""
    if not data.startswith(BEGINNING[: len(data)]):
        raise ValueError(f"{path} is no journal of pathnet; choose another folder, or delete the file")
    records: list[Record] = []
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        record = _record(line)
        if record is None:
            if end + len(line) < len(data):
                raise ValueError(
                    f"journal {path} is damaged in line {number}; delete the line to have its work done again, "
                    "or the file to start anew"
                )
            break
        records.append(record)
        end += len(line)
    return records, end


def _record(line: bytes) -> Record | None:
    """What a line holds; None where it is damaged or torn."""
    try:
        content = json.loads(line)
        whole = line.endswith(b"\n") and line == _line(content["record"])
    except (ValueError, TypeError, KeyError):
        return None
    return content["record"] if whole else None


def _line(record: Record) -> bytes:
    text = as_text(record).encode()
    return b'{"record": %s, "crc32": %d}\n' % (text, zlib.crc32(text))


def as_text(record: Record) -> str:
    """The one way in which journals write a record: equal records have equal texts."""
    return json.dumps(record, allow_nan=False)


def _as_read(record: Record) -> Record:
    return json.loads(json.dumps(record))
