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
from itertools import groupby

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from pathnet.analysis.links import Chain, Link
from pathnet.analysis.prefixes import shared
from pathnet.analysis.scaled import Scaled
from pathnet.analysis.tape import Tape, TapedBlock
from pathnet.models import PathResNet

MEMORY = 1 << 27  # bytes of gradients that are followed side by side
Steps = tuple[bool, ...]  # for each block, from the last to the first, whether to go through its residual branch


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


def drawn_paths(blocks: int, length: int, samples: int, seed: int) -> list[set[int]]:
    """`samples` draws of a path through `length` of the blocks; each depends on the seed, the length and itself."""
    if not 0 <= length <= blocks:
        raise ValueError(f"lengths must lie in 0..{blocks}, the blocks of the net, but one is {length}")
    draw = np.random.default_rng([seed, length])
    return [set(draw.choice(blocks, length, replace=False).tolist()) for _ in range(samples)]


def as_steps(path: Collection[int], blocks: int) -> Steps:
    return tuple(index in path for index in reversed(range(blocks)))


def products(parts: Iterable[Sequence[Steps]]) -> int:
    """Products with the Jacobian of a residual branch that sorted parts cost; what neighbours share is one."""
    pairs = ((path, before) for part in parts for path, before in zip(part, [None, *part], strict=False))
    return sum(sum(path[0 if before is None else shared(before, path) :]) for path, before in pairs)


class PathGradients:
    """One forward of `net`, kept block by block, through which single paths are followed backwards.

    Paths that agree from the last block on share what they share, and several run side by side. Blocks where a path
    takes the identity shortcut cost nothing in a pre-activation net, one mask in a post-activation net. `at` and `bn`
    as in `gradient_by_length`.
    """

    def __init__(self, net: PathResNet, data: tuple[Tensor, Tensor], at: str = "image", bn: str = "running") -> None:
        self._tape = Tape(net, data, at, bn)
        self._pieces = _pieces(self._tape.blocks)
        self._blocks, self._images, self._at, self._bn = net.num_blocks, len(data[1]), at, bn
        bytes_each = self._tape.blocks[0].output.nbytes
        self._together = max(1, MEMORY // bytes_each)

    def along(self, chosen: Collection[int]) -> tuple[Tensor, int]:
        """Gradient `[N, C, H, W]` along the path through the blocks `chosen`, as (g, e) for g 2^e."""
        (gradient,) = self._follow([as_steps(chosen, self._blocks)])
        return gradient

    def of_lengths(self, lengths: Iterable[int], samples: int, seed: int) -> list[GradientByLength]:
        """Norms of the gradients along `samples` random paths of each length."""
        chosen = list(lengths)
        paths = [path for length in chosen for path in drawn_paths(self._blocks, length, samples, seed)]
        norms = iter(self.log10_norms(paths))
        drawn = [(length, tuple(next(norms) for _ in range(samples))) for length in chosen]
        return [GradientByLength(*entry, self._images, self._at, self._bn) for entry in drawn]

    def log10_norms(self, paths: Sequence[Collection[int]]) -> list[float]:
        """Log10 of the norm of the gradient along each path, minus infinity where it is zero."""
        steps = [as_steps(path, self._blocks) for path in paths]
        norm_of: dict[Steps, float] = {}
        for part in self.parts(steps):
            norm_of |= zip(part, map(_log10_norm, self._follow(part)), strict=True)
        return [norm_of[path] for path in steps]

    def parts(self, steps: Iterable[Steps]) -> list[list[Steps]]:
        """Different paths, as many in a part as are followed side by side; neighbours agree longest."""
        different = sorted(set(steps))
        return [different[at : at + self._together] for at in range(0, len(different), self._together)]

    def _follow(self, paths: Sequence[Steps]) -> list[Scaled]:
        """The gradients along different paths, piece by piece; paths that agreed so far are still one."""
        states: dict[Steps, Scaled] = {(): self._tape.from_head}
        done = 0
        for piece in self._pieces:
            end = done + len(piece)
            ways: dict[Steps, list[Steps]] = {}  # through the piece, by what came before
            for path in dict.fromkeys(path[:end] for path in paths):
                ways.setdefault(path[:done], []).append(path[done:])
            states = _through(piece, states, ways)
            done = end
        return self._tape.at_source([states[path] for path in paths])


def _pieces(blocks: Sequence[Link | TapedBlock]) -> list[Chain | list[TapedBlock]]:
    """From the last block to the first: links in a row are one piece, as long as their shape is."""
    pieces: list[Chain | list[TapedBlock]] = []
    for shape, some in groupby(reversed(blocks), key=lambda block: isinstance(block, Link) and block.output.shape):
        if shape:
            pieces.append(Chain([link for link in some if isinstance(link, Link)]))
        else:
            pieces += [[block] for block in some if isinstance(block, TapedBlock)]
    return pieces


def _through(
    piece: Chain | list[TapedBlock], states: dict[Steps, Scaled], ways: dict[Steps, list[Steps]]
) -> dict[Steps, Scaled]:
    """The gradients before the piece, by the steps that led there."""
    if isinstance(piece, Chain):
        return {
            before + way: gradient
            for before, some in ways.items()
            for way, gradient in zip(some, piece.follow(states[before], some), strict=True)
        }
    (block,) = piece
    inside, around = [[before for before in ways if (way,) in ways[before]] for way in (True, False)]
    pulled = block.residual([states[before] for before in inside])
    passed = block.shortcut([states[before] for before in around])
    reached = [*((*before, True) for before in inside), *((*before, False) for before in around)]
    return dict(zip(reached, [*pulled, *passed], strict=True))


def _log10_norm(gradient: Scaled) -> float:
    norm = gradient.values.double().norm().item()
    return math.log10(norm) + gradient.exponent * math.log10(2) if norm else -math.inf
