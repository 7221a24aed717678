"""The gradient of one net by path length, cut into parts: drawn paths, and the exact sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from pathnet.analysis import PathGradients, gradient_spectrum
from pathnet.models import PathResNet
from pathnet.study.lesions import finite
from pathnet.study.parts import Part

PATHS = 200  # whose gradients are one part: few, so that an interruption costs little


class Gradients:
    """The gradient of `net` on one `batch` of images and classes; `at` and `bn` as in `gradient_by_length`."""

    def __init__(
        self,
        net: PathResNet,
        batch: tuple[Tensor, Tensor],
        samples: int,
        seed: int,
        at: str = "image",
        bn: str = "running",
    ) -> None:
        self.net, self.batch, self.samples, self.seed, self.at, self.bn = net, batch, samples, seed, at, bn

    def gradients(self) -> Iterator[Part]:
        """Sampled paths of each length, all through one forward; a part holds several lengths, which share more."""
        lengths, step = range(self.net.num_blocks + 1), max(1, PATHS // self.samples)
        for first in lengths[::step]:
            part = lengths[first : first + step]
            yield Part(part, sum(part) + 1, partial(self._norms, part))

    def spectrum(self) -> Iterator[Part]:
        """The exact sum over all paths of each length."""
        yield Part([0], self.net.num_blocks, self._spectrum)

    def _norms(self, lengths: Sequence[int]) -> list[list[float | None]]:
        measured = self._paths.of_lengths(lengths, self.samples, self.seed)
        if any(math.isnan(norm) for entry in measured for norm in entry.log10_norms):
            raise ValueError(
                "the gradient must be a number, but on these images it is NaN; look for NaN or infinity in the weights"
            )
        return [[finite(norm) for norm in entry.log10_norms] for entry in measured]

    def _spectrum(self) -> list[dict[str, Any]]:
        result = gradient_spectrum(self.net, self.batch, self.at, self.bn)
        return [
            {
                "log10_norms": [finite(norm) for norm in result.norms.log10().tolist()],
                "log10_gradient": result.gradient.double().norm().log10().item(),
                "shares": result.shares.tolist(),
                "mismatch": result.mismatch,
            }
        ]

    @cached_property
    def _paths(self) -> PathGradients:
        return PathGradients(self.net, self.batch, self.at, self.bn)
