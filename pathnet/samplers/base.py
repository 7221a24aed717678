"""What a sampler is: draws that every rank can repeat, and a rule for evaluation."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist

from pathnet.gates import Gate, Paths
from pathnet.route import present_gates


@dataclass(frozen=True)
class Sampler:
    """Draws `Paths` for a training step; `net.paths = sampler` puts it to work in `train()`.

    A subclass is a frozen dataclass of numbers and strings and defines `gates`, and where it must `multiplier` (in
    training) and `test_multiplier` (in evaluation). Draws depend on (seed, step, block, sample) alone, samples counted
    over all ranks, so every rank knows the draws of all.
    """

    per_sample: ClassVar[bool] = False
    kinds: ClassVar[dict[str, type[Sampler]]] = {}

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        Sampler.kinds[cls.__name__] = cls

    def draw(self, step: int, batch: int, blocks: int) -> Paths:
        """The paths of step `step`, for `batch` images on this rank."""
        rank, ranks = _rank() if self.per_sample else (0, 1)
        rows = ranks * batch if self.per_sample else 1
        gates = torch.from_numpy(self.gates(step, rows, blocks).astype(np.int8))
        present = present_gates(gates)
        factor = torch.as_tensor(self.multiplier(step, blocks), dtype=torch.float64)
        mine = slice(rank * batch, (rank + 1) * batch) if self.per_sample else 0
        return Paths(gates[mine]).scaled(factor.expand(blocks)).drawn_with(present)

    def gates(self, step: int, rows: int, blocks: int) -> np.ndarray:
        """Gate values [rows, blocks]."""
        raise TypeError(f"{type(self).__name__} must define gates(step, rows, blocks)")

    def multiplier(self, step: int, blocks: int) -> np.ndarray | float:
        """The multiplier s in training, a number or [blocks]."""
        return 1.0

    def test_multiplier(self, blocks: int) -> list[float] | None:
        """The multiplier s of each block in evaluation, or None for 1."""
        return None

    def check(self, blocks: int) -> None:
        """Raise ValueError where this sampler does not fit a net of `blocks` blocks."""


@lru_cache
def parse(text: str) -> Sampler:
    """The sampler whose repr is `text`: compiled graphs carry samplers as text."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"a sampler's text must be a call such as KeepExactly(m=23, seed=0), got {text!r}")
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    return Sampler.kinds[call.func.id](**values)


def uniforms(seed: int, step: int, rows: int, blocks: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [rows, blocks]; a row does not depend on how many rows are asked for.

    NumPy's Philox, a counter-based generator, keyed by (seed, step).
    """
    key = np.array([seed % 2**64, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((rows, blocks))


def choose_exactly(count: int, seed: int, step: int, blocks: int) -> np.ndarray:
    """A mask [1, blocks] with exactly `count` True, every subset equally likely."""
    ranks = uniforms(seed, step, 1, blocks).argsort(1).argsort(1)
    return ranks < count


def check_rate(name: str, rate: float) -> None:
    if not 0.0 <= rate <= 1.0:  # NaN fails too
        raise ValueError(f"{name} must be a probability in [0, 1], got {rate}")


def check_count(name: str, count: int, blocks: int | None = None) -> None:
    if isinstance(count, bool) or int(count) != count or count < 0:
        raise ValueError(f"{name} must be a number of blocks, got {count!r}")
    if blocks is not None and count > blocks:
        raise ValueError(f"{name} must be at most the net's {blocks} blocks, got {count}")


def where(mask: np.ndarray, inside: Gate, outside: Gate) -> np.ndarray:
    return np.where(mask, int(inside), int(outside))


def _rank() -> tuple[int, int]:
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
