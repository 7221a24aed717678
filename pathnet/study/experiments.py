"""The experiments of a study, cut into parts that finish in seconds and stand in the results one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pathnet.analysis import (
    GradientByLength,
    Lesion,
    PathGradients,
    Reordering,
    contribution,
    delete_each,
    delete_random,
    evaluate,
    gradient_spectrum,
    reorder,
)
from pathnet.data import ImageData
from pathnet.models import PathResNet
from pathnet.study.results import Results
from pathnet.study.settings import Settings

NEIGHBOURS = 9  # blocks whose deletions are one part: few, so that an interruption costs little
PATHS = 200  # whose gradients are one part, for the same reason


@dataclass(frozen=True)
class Part:
    """A piece of an experiment: its keys in the results, its rough cost, and how to measure a value for each key."""

    keys: Sequence[int]
    cost: int
    measure: Callable[[], Sequence[Any]]


class Experiments:
    """Every measurement that a study makes on one trained net; each experiment yields its parts."""

    def __init__(self, net: PathResNet, data: ImageData, settings: Settings) -> None:
        self.net, self.data, self.settings = net, data, settings
        x, y = data.test
        chosen = _drawn(len(y), settings.images, settings.seed)
        self.tested = x[chosen], y[chosen]

    def whole(self) -> Iterator[Part]:
        """The net as it is."""
        yield Part([0], 1, self._whole)

    def delete_each(self) -> Iterator[Part]:
        """One lesion for each block; a part runs what stands before its blocks once."""
        for first in range(0, self.net.num_blocks, NEIGHBOURS):
            blocks = range(first, min(first + NEIGHBOURS, self.net.num_blocks))
            yield Part(blocks, len(blocks), partial(self._delete_each, blocks))

    def delete_random(self) -> Iterator[Part]:
        """Trials for each number of deleted blocks that the net has."""
        for count in self.settings.deletions:
            if count <= self.net.num_blocks:
                yield Part([count], self.settings.trials, partial(self._trials, delete_random, count))

    def reorder(self) -> Iterator[Part]:
        """Trials for each number of swapped pairs."""
        for swaps in self.settings.swaps:
            yield Part([swaps], self.settings.trials, partial(self._trials, reorder, swaps))

    def gradients(self) -> Iterator[Part]:
        """Sampled paths of each length, all through one forward; a part holds several lengths, which share more."""
        lengths, step = range(self.net.num_blocks + 1), max(1, PATHS // self.settings.samples)
        for first in lengths[::step]:
            part = lengths[first : first + step]
            yield Part(part, sum(part) + 1, partial(self._norms, part))

    def spectrum(self) -> Iterator[Part]:
        """The exact sum over all paths of each length."""
        yield Part([0], 1, self._spectrum)

    def _whole(self) -> list[dict[str, float | None]]:
        (result,) = evaluate(self.net, self.tested, [None])
        return [{"error": result.error, "loss": _finite(result.loss)}]

    def _delete_each(self, blocks: Sequence[int]) -> list[dict[str, Any]]:
        return [_record(lesion) for lesion in delete_each(self.net, self.tested, blocks)]

    def _trials(self, measure: Callable[..., list[Any]], count: int) -> list[list[dict[str, Any]]]:
        results = measure(self.net, self.tested, [count], self.settings.trials, self.settings.seed)
        return [[_record(result) for result in results]]

    def _norms(self, lengths: Sequence[int]) -> list[list[float | None]]:
        measured = self._path_gradients.of_lengths(lengths, self.settings.samples, self.settings.seed)
        return [[_finite(norm) for norm in entry.log10_norms] for entry in measured]

    def _spectrum(self) -> list[dict[str, Any]]:
        result = gradient_spectrum(self.net, self._gradient_batch)
        return [
            {
                "log10_norms": [_finite(norm) for norm in result.norms.log10().tolist()],
                "log10_gradient": result.gradient.double().norm().log10().item(),
                "shares": result.shares.tolist(),
                "mismatch": result.mismatch,
            }
        ]

    @property
    def _gradient_batch(self) -> tuple[Tensor, Tensor]:
        x, y = self.data.train
        chosen = _drawn(len(y), self.settings.gradient_images, self.settings.seed)
        return x[chosen], y[chosen]

    @cached_property
    def _path_gradients(self) -> PathGradients:
        return PathGradients(self.net, self._gradient_batch)


def run_parts(name: str, title: str, results: Results, experiments: Experiments) -> None:
    """Measure what is missing of experiment `name` on the net called `title`, saving after every part."""
    parts, done = list(getattr(experiments, name)()), results.part(title, name)
    missing = [part for part in parts if not all(str(key) in done for key in part.keys)]
    total = sum(part.cost for part in parts)
    label = f"{title} net: {name.replace('_', ' ')}"
    with tqdm(total=total, initial=total - sum(part.cost for part in missing), desc=label, unit="step") as bar:
        for part in missing:
            done |= zip(map(str, part.keys), part.measure(), strict=True)
            results.save()
            bar.update(part.cost)


def summarise_gradients(results: Results, title: str) -> None:
    """Put frequency times magnitude and its window beside the measured norms."""
    norms = results.part(title, "gradients")
    measured = [
        GradientByLength(length, tuple(-math.inf if norm is None else norm for norm in norms[str(length)]))
        for length in range(len(norms))
    ]
    summary = asdict(contribution(measured))
    summary["log10_mean_norms"] = [_finite(norm) for norm in summary["log10_mean_norms"]]
    results.document["nets"][title]["contribution"] = summary
    results.save()


def _record(result: Lesion | Reordering) -> dict[str, Any]:
    """A result as JSON has it; disordered blocks may drive activations, and so the loss, beyond all numbers."""
    return asdict(result) | {"loss": _finite(result.loss)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _drawn(images: int, wanted: int, seed: int) -> torch.Tensor:
    """Indices of `wanted` images drawn from `seed`, in order; all of them where there are no more."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
