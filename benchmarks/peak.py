"""The peak of memory in one step, seen by the system: memory that pathnet recycles, and what libraries take outside of
PyTorch's allocator, count too. Linux only."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread

import torch

from benchmarks.cases import Case
from benchmarks.providers import PATHNET, Shared, rivals

ROOT = Path(__file__).parents[1]
STATISTICS = Path("/proc/self/statm")  # in pages
INTERVAL = 0.001  # seconds between two looks


def peak_bytes(case: Case, who: str) -> int:
    """Return by how much a fresh process grows in its first step of `case` by `who`, weights' gradients included.

    Raises CalledProcessError if that process fails.
    """
    command = [sys.executable, "-m", "benchmarks.peak", json.dumps(asdict(case)), who, str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def growth(step: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory of this process grows at most during one step and right after it."""
    ctypes.CDLL(None).malloc_trim(0)  # or the step would use again what was freed before
    seen, over = [_resident()], Event()

    def watch() -> None:
        while not over.wait(INTERVAL):
            seen.append(_resident())

    watcher = Thread(target=watch)
    watcher.start()
    try:
        result = step()
        seen.append(_resident())
        del result
    finally:
        over.set()
        watcher.join()
    return max(seen) - seen[0]


def _resident() -> int:
    return int(STATISTICS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    case, who, threads = Case(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    shared = Shared.of(case)
    provider = shared.pathnet() if who == PATHNET else rivals(shared, compiled=False)[who]
    print(growth(provider.step))


if __name__ == "__main__":
    main()
