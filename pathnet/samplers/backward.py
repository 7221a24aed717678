"""Samplers that restrict the backward: the forward is the whole net's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pathnet.gates import Gate
from pathnet.samplers.base import Sampler, check_count, choose_exactly, where


@dataclass(frozen=True)
class SampledBackward(Sampler):
    """k random blocks under the gate `chosen`, the rest FORWARD."""

    chosen: ClassVar[Gate]

    k: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def check(self, blocks: int) -> None:
        check_count("k", self.k, blocks)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        return where(choose_exactly(self.k, self.seed, step, blocks), self.chosen, Gate.FORWARD)


@dataclass(frozen=True)
class BackwardOnly(SampledBackward):
    """k random blocks FULL, the rest FORWARD: the gradient takes the 2^k paths through k sampled blocks.

    Source: Veit et al. 2016, section 5, turned from a measurement into a way to train.
    """

    chosen = Gate.FULL


@dataclass(frozen=True)
class SinglePath(SampledBackward):
    """k random blocks RESIDUAL, the rest FORWARD: the gradient takes one single path of length k.

    Source: Veit et al. 2016, section 5.
    """

    chosen = Gate.RESIDUAL
