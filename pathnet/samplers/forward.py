"""Samplers that switch blocks off: effective paths, stochastic depth, drop path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pathnet.gates import Gate
from pathnet.samplers.base import Sampler, check_count, check_rate, choose_exactly, uniforms, where


@dataclass(frozen=True)
class KeepExactly(Sampler):
    """Exactly m of the n blocks FULL in each batch, the rest OFF; s = m/n in evaluation.

    Source: Veit et al. 2016, section 5 (23 of 54: paths of effective length); the rule is stochastic depth's.
    """

    m: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("m", self.m)

    def check(self, blocks: int) -> None:
        check_count("m", self.m, blocks)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        return where(choose_exactly(self.m, self.seed, step, blocks), Gate.FULL, Gate.OFF)

    def test_multiplier(self, blocks: int) -> list[float]:
        return [self.m / blocks] * blocks


@dataclass(frozen=True)
class StochasticDepth(Sampler):
    """Block l = 1..L survives a batch with probability p_l, else it is OFF.

    p_l = 1 - l/L (1 - final_survival) for decay="linear", final_survival for "uniform". rule="original": s = 1 in
    training and p_l in evaluation; rule="inverted": s = 1/p_l in training and 1 in evaluation.
    Source: Huang et al. 2016, equations 2 to 5.
    """

    final_survival: float = 0.5
    decay: str = "linear"
    rule: str = "original"
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("final_survival", self.final_survival)
        if self.decay not in ("linear", "uniform"):
            raise ValueError(f"decay must be 'linear' or 'uniform', got {self.decay!r}")
        if self.rule not in ("original", "inverted"):
            raise ValueError(f"rule must be 'original' or 'inverted', got {self.rule!r}")

    def survival(self, blocks: int) -> np.ndarray:
        """p_l for l = 1..blocks."""
        if self.decay == "uniform":
            return np.full(blocks, self.final_survival)
        return 1.0 - np.arange(1, blocks + 1) / blocks * (1.0 - self.final_survival)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        return where(uniforms(self.seed, step, rows, blocks) < self.survival(blocks), Gate.FULL, Gate.OFF)

    def multiplier(self, step: int, blocks: int) -> np.ndarray | float:
        return _inverse(self.survival(blocks)) if self.rule == "inverted" else 1.0

    def test_multiplier(self, blocks: int) -> list[float] | None:
        return self.survival(blocks).tolist() if self.rule == "original" else None


@dataclass(frozen=True)
class DropPath(Sampler):
    """Each image drops each block with probability `rate` (OFF), kept ones have s = 1/(1 - rate); nothing at test.

    Source: stochastic depth per sample, as image-model libraries train it.
    """

    per_sample: ClassVar[bool] = True

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        return where(uniforms(self.seed, step, rows, blocks) >= self.rate, Gate.FULL, Gate.OFF)

    def multiplier(self, step: int, blocks: int) -> np.ndarray | float:
        return _inverse(np.full(blocks, 1.0 - self.rate))


@dataclass(frozen=True)
class ResidualDropPath(Sampler):
    """Steps in pairs on one draw: train the kept blocks without the dropped ones, then the dropped on top of the kept.

    Step 2t: dropped blocks OFF, kept ones FULL with s = 1/(1 - rate). Step 2t+1, same draw: dropped blocks FULL, kept
    ones FROZEN, s = 1. Nothing at test. The idea is Park's (arXiv 2411.09475); as only its abstract is published, one
    draw a block and batch, strict alternation, the full forward and the free stem and head are ours.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        kept = uniforms(self.seed, step // 2, rows, blocks) >= self.rate
        return where(kept, Gate.FROZEN, Gate.FULL) if step % 2 else where(kept, Gate.FULL, Gate.OFF)

    def multiplier(self, step: int, blocks: int) -> np.ndarray | float:
        return 1.0 if step % 2 else _inverse(np.full(blocks, 1.0 - self.rate))


def _inverse(survival: np.ndarray) -> np.ndarray:
    """1 / p, and 1 where nothing survives to be multiplied."""
    return np.divide(1.0, survival, out=np.ones_like(survival), where=survival > 0)
