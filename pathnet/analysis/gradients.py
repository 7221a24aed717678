"""The gradient that one path carries to the image, by the length of the path.

Block i turns the gradient g into J_i^T g, where J_i = D_i (S_i + R_i): S_i is the Jacobian of the shortcut,
R_i that of the residual branch, D_i the mask of the ReLU after the addition (1 in pre-activation nets).
A path takes D_i R_i in its chosen blocks and D_i S_i in the others; all 2^n paths add up to the gradient.
Source: Veit et al. 2016, section 5 and figure 6b.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from pathnet.analysis.tape import Scaled, Tape
from pathnet.models import PathResNet

MEMORY = 1 << 27  # bytes of gradients that are followed side by side


@dataclass(frozen=True)
class GradientByLength:
    """Log10 of the norm for each drawn path of one length; minus infinity where it is zero.

    The norms are those of a batch of `images`, taken `at` the image or the stem's output, with batch norms in the mode
    `bn`: norms of other batches or modes are other figures.
    """

    length: int
    log10_norms: tuple[float, ...]
    images: int | None = None
    at: str = "image"
    bn: str = "running"

    @property
    def log10_mean(self) -> float:
        """Log10 of the mean norm, zeros counted."""
        return float((logsumexp(np.array(self.log10_norms) * np.log(10)) - np.log(len(self.log10_norms))) / np.log(10))

    def log10_quantiles(self, shares: Sequence[float] = (0.1, 0.5, 0.9)) -> tuple[float, ...]:
        """Log10 of the norms below which these shares of the paths lie: of actual draws, none interpolated."""
        return tuple(np.quantile(self.log10_norms, shares, method="inverted_cdf").tolist())


def gradient_by_length(
    net: PathResNet,
    data: tuple[Tensor, Tensor],
    samples: int = 20,
    seed: int = 0,
    lengths: Iterable[int] | None = None,
    at: str = "image",
    bn: str = "running",
) -> list[GradientByLength]:
    """Draw `samples` paths of each length (0..n, or `lengths`) and measure the gradient that each brings to the image.

    One forward over the batch `data` (images `[N, C, H, W]`, classes `[N]`) serves every path. The loss is the mean
    cross-entropy, the norm that of the whole batch's gradient, at the "image" or at the output of the "stem"; `bn`
    says whether batch norms use their "running" statistics or those of the "batch".
    A draw depends on `seed`, the length and the sample alone.
    """
    chosen = range(net.num_blocks + 1) if lengths is None else lengths
    return PathGradients(net, data, at, bn).of_lengths(chosen, samples, seed)


class PathGradients:
    """One forward of `net`, kept block by block, through which single paths are followed backwards.

    Paths that agree from the last block on share what they share, and several run side by side. Blocks where a path
    takes the identity shortcut cost nothing in a pre-activation net, one mask in a post-activation net. `at` and `bn`
    as in `gradient_by_length`.
    """

    def __init__(self, net: PathResNet, data: tuple[Tensor, Tensor], at: str = "image", bn: str = "running") -> None:
        self._tape = Tape(net, data, at, bn)
        self._blocks, self._images, self._at, self._bn = net.num_blocks, len(data[1]), at, bn
        bytes_each = len(data[1]) * self._tape.blocks[0].output[0].nbytes
        self._together = max(1, MEMORY // bytes_each)

    def along(self, chosen: Collection[int]) -> tuple[Tensor, int]:
        """Gradient `[N, C, H, W]` along the path through the blocks `chosen`, as (g, e) for g 2^e."""
        (gradient,) = self._follow([self._as_steps(chosen)])
        return gradient

    def of_lengths(self, lengths: Iterable[int], samples: int, seed: int) -> list[GradientByLength]:
        """Norms of the gradients along `samples` random paths of each length."""
        chosen = list(lengths)
        norms = iter(self.log10_norms([path for length in chosen for path in self._draw(length, samples, seed)]))
        drawn = [(length, tuple(next(norms) for _ in range(samples))) for length in chosen]
        return [GradientByLength(*entry, self._images, self._at, self._bn) for entry in drawn]

    def log10_norms(self, paths: Sequence[Collection[int]]) -> list[float]:
        """Log10 of the norm of the gradient along each path, minus infinity where it is zero."""
        steps = [self._as_steps(path) for path in paths]
        different = sorted(set(steps))  # neighbours agree longest
        norm_of: dict[tuple[bool, ...], float] = {}
        for start in range(0, len(different), self._together):
            part = different[start : start + self._together]
            norm_of |= zip(part, map(_log10_norm, self._follow(part)), strict=True)
        return [norm_of[path] for path in steps]

    def _draw(self, length: int, samples: int, seed: int) -> list[set[int]]:
        if not 0 <= length <= self._blocks:
            raise ValueError(f"lengths must lie in 0..{self._blocks}, the blocks of the net, but one is {length}")
        draw = np.random.default_rng([seed, length])
        return [set(draw.choice(self._blocks, length, replace=False).tolist()) for _ in range(samples)]

    def _as_steps(self, chosen: Collection[int]) -> tuple[bool, ...]:
        """For each block, from the last to the first, whether the path runs through its residual branch."""
        return tuple(index in chosen for index in reversed(range(self._blocks)))

    def _follow(self, paths: Sequence[tuple[bool, ...]]) -> list[Scaled]:
        """The gradients along different paths; after k steps, paths that agreed so far are still one."""
        states: dict[tuple[bool, ...], Scaled] = {(): self._tape.from_head}
        for done, block in enumerate(reversed(self._tape.blocks)):
            reached = dict.fromkeys(path[: done + 1] for path in paths)
            inside, around = [[path for path in reached if path[-1] is through] for through in (True, False)]
            pulled = block.residual([states[path[:-1]] for path in inside])
            passed = block.shortcut([states[path[:-1]] for path in around])
            states = dict(zip([*inside, *around], [*pulled, *passed], strict=True))
        return self._tape.at_source([states[path] for path in paths])


def _log10_norm(gradient: Scaled) -> float:
    norm = gradient.values.double().norm().item()
    return math.log10(norm) + gradient.exponent * math.log10(2) if norm else -math.inf
