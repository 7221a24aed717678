"""What a run measures, cut into parts that finish in seconds, shared by its ranks and kept one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from pathnet.study.ranks import Ranks
from pathnet.study.results import Results


@dataclass(frozen=True)
class Part:
    """A piece of an experiment: its keys in the results, its rough cost, and how to measure a value for each key."""

    keys: Sequence[int | str]
    cost: int
    measure: Callable[[], Sequence[Any]]


def run_parts(parts: Iterable[tuple[str, str, Part]], results: Results, ranks: Ranks) -> None:
    """Measure what the results lack of `parts`, each with the title of its net and the name of its experiment.

    Every part is on disk before this rank takes the next; in the end all ranks have all results, in the order of
    `parts`.
    """
    wanted = [*parts]
    missing = [entry for entry in wanted if not _stands(results, *entry)]
    total, left = (sum(part.cost for _, _, part in entries) for entries in (wanted, missing))
    done = total - left
    with tqdm(total=total, initial=done, unit="step", disable=ranks.rank > 0) as bar:
        for title, name, part in ranks.taken(missing):
            bar.set_description(f"{title} net: {name.replace('_', ' ')}")
            started = time.perf_counter()
            values = dict(zip(map(str, part.keys), part.measure(), strict=True))
            results.add(title, name, values, time.perf_counter() - started)
            bar.update(done + ranks.finished(part.cost) - bar.n)
        results.share()
        bar.update(total - bar.n)
    results.arrange((title, name) for title, name, _ in wanted)


def trial_key(count: int, trial: int) -> str:
    """The key of one draw among those of `count` blocks or swaps."""
    return f"{count}/{trial}"


def _stands(results: Results, title: str, name: str, part: Part) -> bool:
    return all(results.holds(title, name, str(key)) for key in part.keys)
