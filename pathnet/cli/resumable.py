"""Commands that may be interrupted, and shared by the processes that torchrun starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Let Ctrl-C, and the signal by which torchrun and batch systems end a process, say how to go on."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; what is finished stands in {out}, the same command resumes") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def is_first() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
