"""Calls take turns in one run; ratios are taken round by round, so that drift of the machine cancels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of a sample."""

    median: float
    first_quartile: float
    third_quartile: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value; quartiles are interpolated inside the sample."""
        if not values:
            raise ValueError("Spread.of: values must hold at least one number, got none; time at least one round.")
        ordered = sorted(values)
        if len(ordered) == 1:
            return cls(*ordered * 5)
        first, median, third = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(median, first, third, ordered[0], ordered[-1])


class Race:
    """Times several calls in rounds: each round runs every call once.

    The last call is the subject, the others its rivals. `run_rivals` and `run_subject` are the two halves
    of a round, so that pytest-benchmark can time the subject itself with the rivals as the set-up of its
    rounds.
    """

    def __init__(self, calls: dict[str, Call], clock: Callable[[], float] = time.perf_counter) -> None:
        self.calls = calls
        self.clock = clock
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}

    def warm_up(self, rounds: int) -> None:
        """Run every call `rounds` times without keeping the times."""
        for _ in range(rounds):
            for call in self.calls.values():
                call()

    def run_rivals(self) -> None:
        """Time every call but the last, once each; the order rotates from round to round."""
        rivals = list(self.calls)[:-1]
        start = len(self.seconds[rivals[0]]) % len(rivals) if rivals else 0
        for name in rivals[start:] + rivals[:start]:
            self._time(name)

    def run_subject(self) -> None:
        """Time the last call once."""
        self._time(list(self.calls)[-1])

    def _time(self, name: str) -> None:
        start = self.clock()
        self.calls[name]()
        self.seconds[name].append(self.clock() - start)

    def ratios(self, baseline: str) -> dict[str, Spread]:
        """Return for each call the spread of baseline seconds / its seconds: above 1 it is the faster one."""
        base = self.seconds[baseline]
        return {
            name: Spread.of([b / s for b, s in zip(base, own, strict=True)])
            for name, own in self.seconds.items()
            if name != baseline
        }

    def summary(self, baselines: Sequence[str]) -> dict[str, object]:
        """Return seconds of each call and its ratios against each baseline, as plain JSON values."""
        return {
            "seconds": {name: asdict(Spread.of(own)) for name, own in self.seconds.items()},
            "ratios": {
                base: {name: asdict(spread) for name, spread in self.ratios(base).items()} for base in baselines
            },
        }
