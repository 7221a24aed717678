"""Gradients that stay inside float32 however small they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TINY, HUGE = 1e-12, 1e12  # far inside float32, and far from a gradient worth rescaling


class Scaled(NamedTuple):
    """The gradient `values` times 2^exponent, so that products of many small Jacobians stay inside float32."""

    values: Tensor  # [N, C, H, W]
    exponent: int


def rescaled(gradient: Scaled, norm: float) -> Scaled:
    """A power of two costs no precision. `norm` may have under- or overflown, the largest value has not."""
    if TINY < norm < HUGE:
        return gradient
    largest = gradient.values.abs().amax().item()
    if not 0 < largest < math.inf:
        return gradient
    shift = math.frexp(largest)[1]
    return Scaled(gradient.values * 2.0**-shift, gradient.exponent + shift)


def norms_of(joint: Tensor, copies: int) -> list[float]:
    """Of each of the `copies` gradients that lie one behind the other in `joint` [copies N, C, H, W]."""
    by_copy = joint.permute(0, 2, 3, 1).reshape(copies, -1)  # a view where channels stand last
    return torch.linalg.vector_norm(by_copy, dim=1).tolist()


def parted(joint: Tensor, gradients: Sequence[Scaled]) -> list[Scaled]:
    """What became of each of `gradients`, which lay one behind the other in `joint`, perhaps with others behind."""
    images = len(gradients[0].values)
    parts = zip(joint.split(images), norms_of(joint, len(joint) // images), gradients, strict=False)
    return [rescaled(Scaled(part, gradient.exponent), norm) for part, norm, gradient in parts]
