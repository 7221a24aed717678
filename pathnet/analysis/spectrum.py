"""The exact gradient of all paths of each length, without drawing any.

With G_i^(k) the sum over the paths of length k from block i on, S_i and R_i the Jacobians of shortcut and residual
branch (each with the mask of the activation after the addition),

    G_i^(k) = S_i^T G_{i+1}^(k) + R_i^T G_{i+1}^(k-1),

so n (n + 1) / 2 products with the Jacobian of a residual branch give the vector sums of all 2^n paths. Single paths
of one length largely cancel: their number times their mean norm can exceed the gradient a thousandfold, which sampling
cannot see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.analysis.links import Link
from pathnet.analysis.scaled import Scaled
from pathnet.analysis.tape import Tape, TapedBlock, frozen, normalised_by, whole_route
from pathnet.models import PathResNet


@dataclass(frozen=True)
class Spectrum:
    """The gradient g `[N, C, H, W]` by path length k = 0..n: g is the sum of g_k over k.

    `norms` `[n + 1]` are those of g_k, float64. `shares` `[n + 1]` are <g_k, g> / <g, g>, signed, float64: what the
    paths of each length add to the gradient; they add up to 1. `mismatch` is the norm of (sum of g_k) - g over that of
    g, where g comes from an ordinary backward: the rounding of both.
    """

    norms: Tensor
    shares: Tensor
    gradient: Tensor
    mismatch: float


def gradient_spectrum(net: PathResNet, data: tuple[Tensor, Tensor], at: str = "image", bn: str = "running") -> Spectrum:
    """The gradient of the mean cross-entropy, taken apart by path length, exactly and at once for all 2^n paths.

    `data` is images `[N, C, H, W]` and classes `[N]`; `at` and `bn` as in `gradient_by_length`. It keeps one forward
    and some n gradients. Raises ValueError for no images and where the gradient is zero or no number.
    """
    tape = Tape(net, data, at, bn)
    sums = [tape.from_head]  # of the paths of 0, 1, ... blocks
    for block in reversed(tape.blocks):
        sums = _before(block, sums, tape.copies)
    parts = [part.values.double() * 2.0**part.exponent for part in tape.at_source(sums)]
    gradient = _gradient(net, data, at, bn)
    g = gradient.double()
    square = g.square().sum()
    if not 0 < square < torch.inf:
        raise ValueError(
            f"data must give a gradient, but its norm is {square.sqrt().item()} on these images and classes"
        )
    norms = torch.stack([part.norm() for part in parts])
    shares = torch.stack([(part * g).sum() for part in parts]) / square
    mismatch = ((sum(parts) - g).norm() / square.sqrt()).item()
    return Spectrum(norms, shares, gradient, mismatch)


def _before(block: Link | TapedBlock, behind: list[Scaled], together: int) -> list[Scaled]:
    """The sums before `block` from those `behind` it, `together` at a time, longest first; the latter are used up.

    So hardly more than one gradient of each length lives at a time.
    """
    before: list[Scaled] = []
    passed: Scaled | None = None  # around the block, of the length that comes next
    while behind:
        part = [behind.pop() for _ in range(min(together, len(behind)))]
        for through, around in zip(block.residual(part), block.shortcut(part), strict=True):
            before.append(through if passed is None else _added(passed, through))
            passed = around
    assert passed is not None  # there is a path of no block
    return [passed, *reversed(before)]


def _added(one: Scaled, other: Scaled) -> Scaled:
    """The sum, in the memory of `other` where it fits."""
    if one.exponent == other.exponent:
        return Scaled(other.values.add_(one.values), other.exponent)
    large, small = (one, other) if one.exponent > other.exponent else (other, one)
    if not large.values.any():
        return small
    return Scaled(large.values + small.values * 2.0 ** (small.exponent - large.exponent), large.exponent)


def _gradient(net: PathResNet, data: tuple[Tensor, Tensor], at: str, bn: str) -> Tensor:
    """By an ordinary backward through the whole net."""
    x, y = data
    with normalised_by(net, bn), frozen(net), torch.enable_grad():
        image = x.detach().clone().requires_grad_()
        stem = net.stem(image, update=False)
        source = image
        if at == "stem":
            source = stem = stem.detach().requires_grad_()
        last = net.through(stem, range(net.num_blocks), whole_route(net))
        loss = F.cross_entropy(net.head(last, update=False), y)
        return torch.autograd.grad(loss, source)[0]
