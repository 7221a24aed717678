"""The order in which lesions run so that blocks which several of them begin with run once.

Each lesion is a sequence of operations. Sorted, their common beginnings form a tree; it is walked depth first,
and at each fork the branch with the most lesions comes last and takes the fork's own place in memory. So no more
than log2(lesions) + 1 activations are kept at a time, however deep the net.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple


class Operation(NamedTuple):
    """A block as it stands in a lesion: its index, whether its residual branch runs, and the multiplier of that."""

    block: int
    on: bool
    multiplier: float


Sequenced = tuple[Any, ...]  # of operations, or of whatever else can be sorted


class Run(NamedTuple):
    """Operations to run without a fork: from the activation in slot `source` to slot `target`.

    `guide` is the index of one sequence that takes this run, `ending` are those that end with it.
    """

    source: int
    target: int
    operations: Sequenced
    guide: int
    ending: tuple[int, ...]


def shared_runs(sequences: Sequence[Sequenced]) -> list[Run]:
    """Runs that walk all `sequences` and repeat no common beginning; slot 0 holds where they all start."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    runs: list[Run] = []
    waiting = [(order, 0, 0, 0)] if order else []  # sequences, operations done, source, target
    while waiting:
        group, done, source, target = waiting.pop()
        first, last = sequences[group[0]], sequences[group[-1]]
        end = shared(first, last)
        ending = tuple(index for index in group if len(sequences[index]) == end)
        runs.append(Run(source, target, first[done:end], group[0], ending))
        rest = group[len(ending) :]  # the sorting has put what ends here first
        forks = [list(fork) for _, fork in groupby(rest, key=lambda index: sequences[index][end])]
        forks.sort(key=len, reverse=True)
        waiting += [(fork, end, target, target + (rank > 0)) for rank, fork in enumerate(forks)]
    return runs


def shared(first: Sequenced, last: Sequenced) -> int:
    """Operations with which both begin; as first and last of a sorted group, all of it does."""
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(last)))


def slots(runs: Sequence[Run]) -> int:
    """Activations that `runs` keep at a time."""
    return 1 + max((run.target for run in runs), default=0)
