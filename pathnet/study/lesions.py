"""Lists of lesions and reorderings of one net, cut into parts: neighbours, which share most of what they run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathnet.analysis import Evaluation, evaluate, kendall_tau
from pathnet.analysis.evaluate import MEMORY, evaluation_mode, images_within
from pathnet.analysis.lesions import drawn_subsets, stage_starts
from pathnet.analysis.plan import Plan
from pathnet.analysis.reorder import drawn_orders
from pathnet.gates import Paths
from pathnet.models import PathNet
from pathnet.study.parts import Part, trial_key

NEIGHBOURS = 9  # lesions that are one part: few, so that an interruption costs little


class Entry(NamedTuple):
    """A lesion or a reordering: its paths, and what the results say of it beside its scores."""

    paths: Paths
    said: dict[str, Any]


class Lesions:
    """Lists of lesions of `net`, measured on the images and classes `tested`; each list yields its parts.

    `deletions` and `swaps` are numbers of blocks and of pairs, each drawn `trials` times; `entries` is a list of the
    user's own. `memory` is that of `evaluate`. With `predictions` results hold the class predicted for each image.
    """

    def __init__(
        self,
        net: PathNet,
        tested: tuple[Tensor, Tensor],
        *,
        deletions: Sequence[int] = (),
        swaps: Sequence[int] = (),
        trials: int = 1,
        seed: int = 0,
        entries: Sequence[Entry] = (),
        memory: int = MEMORY,
        predictions: bool = False,
    ) -> None:
        self.net, self.tested = net, tested
        self.deletions, self.swaps, self.trials, self.seed, self.entries = deletions, swaps, trials, seed, entries
        self.memory, self.predictions = memory, predictions

    def whole(self) -> Iterator[Part]:
        """The net as it is."""
        yield Part(["0"], 1, lambda: [self._scores(self._whole)])

    def delete_each(self) -> Iterator[Part]:
        """One lesion for each block."""
        return self._single([(block,) for block in range(self.net.num_blocks)])

    def delete_pairs(self) -> Iterator[Part]:
        """One lesion for each pair of blocks."""
        return self._single(list(combinations(range(self.net.num_blocks), 2)))

    def delete_stage_starts(self) -> Iterator[Part]:
        """The blocks that change the shape, one by one and all of them together."""
        return self._single(stage_starts(self.net))

    def delete_random(self) -> Iterator[Part]:
        """Trials for each number of deleted blocks."""
        for count in self.deletions:
            drawn = drawn_subsets(self.net.num_blocks, count, self.trials, self.seed)
            yield from self._parts({trial_key(count, i): self._deleted(subset) for i, subset in enumerate(drawn)})

    def reorder(self) -> Iterator[Part]:
        """Trials for each number of swapped pairs."""
        for count in self.swaps:
            drawn = drawn_orders(self.net, count, self.trials, self.seed)
            yield from self._parts({trial_key(count, i): self._swapped(count, order) for i, order in enumerate(drawn)})

    def without_one_more(self, deleted: tuple[int, ...]) -> Iterator[Part]:
        """The net without the blocks `deleted`, which it loses in this order, and each of the others beside them."""
        others = [block for block in range(self.net.num_blocks) if block not in deleted]
        return self._single([(*deleted, block) for block in others])

    def listed(self) -> Iterator[Part]:
        """The entries of the user's own list, by their place in it."""
        return self._parts({str(place): entry for place, entry in enumerate(self.entries)})

    def _single(self, subsets: Sequence[tuple[int, ...]]) -> Iterator[Part]:
        return self._parts({",".join(map(str, subset)): self._deleted(subset) for subset in subsets})

    def _parts(self, entries: dict[str, Entry]) -> Iterator[Part]:
        """Parts of nearly equal size."""
        keys = list(entries)
        parts = math.ceil(len(keys) / NEIGHBOURS)
        for i in range(parts):
            part = keys[len(keys) * i // parts : len(keys) * (i + 1) // parts]
            self._check_memory([entries[key].paths for key in part])
            yield Part(part, len(part), partial(self._measure, [entries[key] for key in part]))

    def _check_memory(self, paths: Sequence[Paths]) -> None:
        """Now, and not when others have been measured."""
        with evaluation_mode(self.net), torch.inference_mode():
            images_within(self.memory, self.net, self.tested[0][:1], Plan(self.net, paths))

    def _deleted(self, subset: tuple[int, ...]) -> Entry:
        return Entry(Paths.delete(self.net.num_blocks, subset), {"deleted": list(subset)})

    def _swapped(self, swaps: int, order: tuple[int, ...]) -> Entry:
        paths = Paths.delete(self.net.num_blocks, []).reordered(order)
        return Entry(paths, {"swaps": swaps, "order": list(order), "tau": kendall_tau(order)})

    @cached_property
    def _whole(self) -> Evaluation:
        (result,) = evaluate(self.net, self.tested, [None], memory=self.memory)
        if not math.isfinite(result.loss):
            raise ValueError(
                f"the whole net must have a loss that is a number, but on these images it is {result.loss}; "
                "look for NaN or infinity in the weights"
            )
        return result

    def _measure(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        results = evaluate(self.net, self.tested, [entry.paths for entry in entries], memory=self.memory)
        return [entry.said | self._scores(result) for entry, result in zip(entries, results, strict=True)]

    def _scores(self, result: Evaluation) -> dict[str, Any]:
        """As JSON has them: disordered blocks may drive the loss beyond all numbers, a class may have no image."""
        scores: dict[str, Any] = {
            "error": result.error,
            "loss": finite(result.loss),
            "agreement": result.agreement(self._whole),
            "class_errors": list(map(finite, result.class_errors.tolist())),
        }
        return scores | {"predictions": result.predictions.tolist()} if self.predictions else scores


def best_to_drop(measured: dict[str, Any], count: int) -> tuple[int, ...]:
    """The `count` blocks without which the net errs least of all that were tried, by loss among equals."""
    lesions = [lesion for lesion in measured.values() if len(lesion["deleted"]) == count]
    best = min(lesions, key=lambda lesion: (lesion["error"], math.inf if lesion["loss"] is None else lesion["loss"]))
    return tuple(best["deleted"])


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
