"""Which backend runs an op: the first in speed order that gives no reason against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

BACKENDS = ("cuda", "triton", "cpu", "reference")  # in order of speed

Supports = Callable[..., "str | None"]  # a sentence against running there, or None
_NOTHING: Mapping[str, Supports] = {}

_forced: str | None = None  # process-wide as torch.backends is, and a plain global, so that graphs are guarded by it


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` on backend `name`; one that cannot run there raises RuntimeError with the reason.

    Raises ValueError for a name that is no backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def forced() -> str | None:
    """The backend of the innermost `use_backend`; None outside."""
    return _forced


def choose(op: str, supports: Mapping[str, Supports], *call, loses: Mapping[str, Supports] = _NOTHING) -> str:
    """The backend that runs this call of `op`: the forced one, else the fastest that `supports` the call.

    `loses` says where a backend that can run a call is slower than the next; a forced one runs all the same.
    """
    if _forced is None:
        return next(name for name in BACKENDS if refusal(op, name, supports, *call, loses=loses) is None)
    reason = refusal(op, _forced, supports, *call)
    if reason is not None:
        raise RuntimeError(f"backend {_forced!r} was asked for, but cannot run {op}: {reason}")
    return _forced


def refusal(
    op: str, name: str, supports: Mapping[str, Supports], *call, loses: Mapping[str, Supports] = _NOTHING
) -> str | None:
    """Why backend `name` cannot or should not run this call, in a sentence; None if it may."""
    if name not in supports:
        return f"{op} has no {name} kernel in this version"
    reason = supports[name](*call)
    return loses[name](*call) if reason is None and name in loses else reason
