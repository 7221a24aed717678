"""The gradient that one path carries to the image, by the length of the path.

Block i turns the gradient g into J_i^T g, where J_i = D_i (S_i + R_i): S_i is the Jacobian of the shortcut,
R_i that of the residual branch, D_i the mask of the ReLU after the addition (1 in pre-activation nets).
A path takes D_i R_i in its chosen blocks and D_i S_i in the others; all 2^n paths add up to the gradient.
Source: Veit et al. 2016, section 5 and figure 6b.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.analysis.evaluate import evaluation_mode
from pathnet.blocks import ResidualBlock
from pathnet.models import PathResNet
from pathnet.samplers import Sampler

TINY = 1e-12  # far above the smallest float32, far below a gradient worth rescaling


@dataclass(frozen=True)
class GradientByLength:
    """Log10 of the norm at the image for each drawn path of one length; minus infinity where it is zero."""

    length: int
    log10_norms: tuple[float, ...]


def gradient_by_length(
    net: PathResNet,
    data: tuple[Tensor, Tensor],
    samples: int = 20,
    seed: int = 0,
    lengths: Iterable[int] | None = None,
) -> list[GradientByLength]:
    """Draw `samples` paths of each length (0..n, or `lengths`) and measure the gradient each brings to the image.

    One forward over the batch `data` (images `[N, C, H, W]`, classes `[N]`) serves every path. Batch norms use
    their running statistics, the loss is the mean cross-entropy, the norm that of the whole batch's gradient.
    A draw depends on `seed`, the length and the sample alone.
    """
    gradients = PathGradients(net, data)
    chosen = range(net.num_blocks + 1) if lengths is None else lengths
    return [gradients.of_length(length, samples, seed) for length in chosen]


class PathGradients:
    """One forward of `net`, kept block by block, through which single paths are followed backwards.

    Blocks where a path takes the identity shortcut cost nothing in a pre-activation net, one mask in a
    post-activation net.
    """

    def __init__(self, net: PathResNet, data: tuple[Tensor, Tensor]) -> None:
        x, y = data
        if len(y) == 0:
            raise ValueError("data must hold at least one image, but it is empty")
        with evaluation_mode(net), torch.enable_grad():
            self._image = x.detach().clone(memory_format=torch.channels_last).requires_grad_()
            self._stem = net.stem(self._image)
            self._blocks: list[_StoredBlock] = []
            stream = self._stem.detach()
            for block, s in zip(net.blocks, _test_multipliers(net), strict=True):
                self._blocks.append(_StoredBlock(block, stream, s))
                stream = self._blocks[-1].output
            last = stream.requires_grad_()
            loss = F.cross_entropy(net.head(last), y)
        (self._from_head,) = torch.autograd.grad(loss, last)

    def along(self, chosen: Collection[int]) -> tuple[Tensor, int]:
        """Gradient `[N, C, H, W]` at the image along the path through `chosen`, as (g, e) for g 2^e."""
        gradient, exponent = self._from_head, 0
        for index in reversed(range(len(self._blocks))):
            gradient = self._blocks[index].backward(gradient, index in chosen)
            if index in chosen:
                gradient, exponent = _rescaled(gradient, exponent)
        gradient = _pull(self._stem, self._image, gradient)
        return gradient, exponent

    def of_length(self, length: int, samples: int, seed: int) -> GradientByLength:
        """Norms of the gradients along `samples` random paths of `length` blocks."""
        blocks = len(self._blocks)
        if not 0 <= length <= blocks:
            raise ValueError(f"lengths must lie in 0..{blocks}, the blocks of the net, but one is {length}")
        draw = np.random.default_rng([seed, length])
        norms = []
        for _ in range(samples):
            gradient, exponent = self.along(set(draw.choice(blocks, length, replace=False).tolist()))
            norm = gradient.double().norm().item()
            norms.append(math.log10(norm) + exponent * math.log10(2) if norm else -math.inf)
        return GradientByLength(length, tuple(norms))


class _StoredBlock:
    """One block's forward as small graphs: residual branch, shortcut, and the mask after the addition."""

    def __init__(self, block: ResidualBlock, x: Tensor, multiplier: float) -> None:
        self._multiplier = multiplier
        self._input = x.detach().requires_grad_()
        self._residual = block.residual(self._input)
        self._shortcut = None if block.has_identity_shortcut else block.shortcut(self._input)
        skipped = self._input if self._shortcut is None else self._shortcut
        self._added = (skipped + multiplier * self._residual).detach().requires_grad_(block.post_activation)
        # A ReLU may work in place, so it gets a copy.
        self._activated = block.activation(self._added.clone()) if block.post_activation else None
        self.output = (self._added if self._activated is None else self._activated).detach()

    def backward(self, gradient: Tensor, through_residual: bool) -> Tensor:
        """Pull `gradient` from the output to the input, through the residual branch or the shortcut alone."""
        if self._activated is not None:
            gradient = _pull(self._activated, self._added, gradient)
        if through_residual:
            return _pull(self._residual, self._input, gradient * self._multiplier)
        return gradient if self._shortcut is None else _pull(self._shortcut, self._input, gradient)


def _pull(output: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    return torch.autograd.grad(output, source, gradient, retain_graph=True)[0]


def _test_multipliers(net: PathResNet) -> list[float]:
    """What the rule of the net's sampler multiplies each residual branch by in evaluation."""
    rule = net.paths.test_multiplier(net.num_blocks) if isinstance(net.paths, Sampler) else None
    return [1.0] * net.num_blocks if rule is None else rule


def _rescaled(gradient: Tensor, exponent: int) -> tuple[Tensor, int]:
    """Keep a vanishing gradient inside float32 by a power of two, which costs no precision."""
    largest = gradient.abs().amax().item()
    if not 0 < largest < TINY:
        return gradient, exponent
    shift = math.frexp(largest)[1]
    return gradient * 2.0**-shift, exponent + shift
