"""The processes that share one run: those that torchrun started, or this one alone.

Work is cut into parts beforehand, and a part gives the same bits whoever runs it. So the ranks may take parts as they
come, and results equal those of a single process. Only what is finished travels between them, never an activation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=365)  # a rank waits while others train; a dead one is noticed by its closed connection


class LostWorker(RuntimeError):
    """Another process of the run is gone; everything that was finished is on disk."""


class Ranks:
    """This process as one of `size`; alone, each method is the plain loop or call that it shares."""

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._rounds = self._finished = 0

    def in_turn(self, step: Callable[[], T]) -> T:
        """Call `step` on rank 0, then on the others; where rank 0 raises, the others leave without a word."""
        if self.size == 1:
            return step()
        if self.rank > 0:
            self._wait_for_first()
            return step()
        try:
            result = step()
        except BaseException:
            self._say(False)
            raise
        self._say(True)
        return result

    def taken(self, parts: Sequence[T]) -> Iterator[T]:
        """Those of `parts`, the same list on all ranks, that this rank is the first to ask for."""
        self._rounds, self._finished = self._rounds + 1, 0
        if self._store is None:
            yield from parts
            return
        while (index := self._count("taken", 1) - 1) < len(parts):
            yield parts[index]

    def finished(self, cost: int) -> int:
        """Add `cost` to what all ranks have done since they last began to take parts; the sum."""
        self._finished += cost
        return self._finished if self._store is None else self._count("finished", cost)

    def gathered(self, mine: T) -> list[T]:
        """What each rank has, by rank; waits for all of them."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        with _others_alive():
            dist.all_gather_object(everyone, mine)
        return everyone

    def _count(self, what: str, amount: int) -> int:
        assert self._store is not None
        with _others_alive():
            return self._store.add(f"{what}/{self._rounds}", amount)

    def _say(self, fine: bool) -> None:
        with _others_alive():
            dist.broadcast_object_list([fine], src=0)

    def _wait_for_first(self) -> None:
        told = [False]
        with _others_alive():
            dist.broadcast_object_list(told, src=0)
        if not told[0]:
            raise SystemExit(2)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started, as its variables in the environment say; else be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    store, rank, size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store when it starts ranks again
    group, parts = (dist.PrefixStore(f"{attempt}/{name}", store) for name in ("group", "parts"))
    dist.init_process_group("gloo", store=group, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(rank, size, parts)
    finally:
        dist.destroy_process_group()


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostWorker(
            "another process of this run is gone; what was finished is on disk, and the same command resumes"
        ) from error
