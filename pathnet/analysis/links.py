"""Blocks that are links of a chain: a gradient runs through several of them in one call of an op.

Between two additions a basic or pre-activation block is linear backwards: two convolutions with the batch norms folded
in, and masks of one bit a value where ReLUs were. So all that a path does within a stage is one chain of convolutions
and masks (`path_bwd`), and of the forward only masks are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathnet.analysis.prefixes import shared_runs, slots
from pathnet.analysis.scaled import Scaled, norms_of, parted
from pathnet.blocks import ResidualBlock
from pathnet.blocks.stage import fusable_spec
from pathnet.ops.eval_blocks import unfit_geometry
from pathnet.ops.path_bwd import path_bwd
from pathnet.reference import Block, Conv, Norm, Relu
from pathnet.reference.layers import Flow, Rows, run_layers
from pathnet.reference.path_bwd import bits_of

BASIC, PREACT = (Conv, Norm, Relu, Conv, Norm), (Norm, Relu, Conv, Norm, Relu, Conv)
FAR = 1e24  # beyond this norm, and below its inverse, a chain is pulled in two halves


@dataclass(frozen=True, eq=False)
class Link:
    """One block y = act(x + s f(x)), backwards: `arrival`, then through f `second`, `inner`, `first` and `leaving`.

    Masks are bits, None where nothing is cut: `arrival` is that of act, on both ways. The convolutions `second` and
    `first` [C, C, 3, 3] are those of the backward, with s and the batch norms in them. As many as `together` gradients
    are pulled side by side.
    """

    output: Tensor
    arrival: Tensor | None
    second: Tensor
    inner: Tensor
    first: Tensor
    leaving: Tensor | None
    together: int

    @classmethod
    def of(cls, block: ResidualBlock, x: Tensor, multiplier: float, together: int) -> Link | None:
        """The block as a link, for its input x [N, C, H, W]; None for another kind of block."""
        spec = fusable_spec(block)
        if spec is None or x.device.type != "cpu" or not _is_link(spec):
            return None
        f, masks = _branch(spec, x)
        first, second = (layer for layer in spec.residual if isinstance(layer, Conv))
        scales = [_scale(layer) for layer in spec.residual if isinstance(layer, Norm)]
        z = x + multiplier * f
        if spec.act is None:
            before, between = scales
            weights = _turned(second, multiplier, 1.0), _turned(first, between, before)
            return cls(z, None, weights[0], masks[1], weights[1], masks[0], together)
        between, behind = scales
        weights = _turned(second, multiplier * behind, 1.0), _turned(first, between, 1.0)
        return cls(z.relu(), bits_of(z > 0), weights[0], masks[0], weights[1], None, together)

    def residual(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        """Through f."""
        return self._pull(gradients, True)

    def shortcut(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        """Around f; without an activation behind the addition that costs nothing."""
        return list(gradients) if self.arrival is None else self._pull(gradients, False)

    def _pull(self, gradients: Sequence[Scaled], through: bool) -> list[Scaled]:
        pulled: list[Scaled] = []
        for start in range(0, len(gradients), self.together):
            some = gradients[start : start + self.together]
            joint = some[0].values if len(some) == 1 else torch.cat([gradient.values for gradient in some])
            pulled += parted(_along([(self, through)], joint), some)
        return pulled


class Chain:
    """Links of one shape in a row, from the last to the first."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links

    def __len__(self) -> int:
        return len(self._links)

    def follow(self, gradient: Scaled, ways: Sequence[tuple[bool, ...]]) -> list[Scaled]:
        """The gradient along each of `ways`, which say for each link whether to go through f; what they begin with
        is pulled once."""
        runs = shared_runs([tuple(enumerate(way)) for way in ways])
        held, found = [gradient] * slots(runs), [gradient] * len(ways)
        for run in runs:
            steps = [(self._links[index], through) for index, through in run.operations]
            held[run.target] = _pulled(steps, held[run.source])
            for index in run.ending:
                found[index] = held[run.target]
        return found


def _pulled(steps: Sequence[tuple[Link, bool]], gradient: Scaled) -> Scaled:
    if not steps:
        return gradient
    joint = _along(steps, gradient.values)
    if len(steps) > 1 and not 1 / FAR < norms_of(joint, 1)[0] < FAR:
        half = len(steps) // 2
        return _pulled(steps[half:], _pulled(steps[:half], gradient))
    return parted(joint, [gradient])[0]


def _along(steps: Sequence[tuple[Link, bool]], gradient: Tensor) -> Tensor:
    """Masks that meet are one."""
    weights: list[Tensor] = []
    masks: list[Tensor | None] = [None]
    for link, through in steps:
        masks[-1] = _both(masks[-1], link.arrival)
        if through:
            weights += link.second, link.first
            masks += link.inner, link.leaving
    if not weights and masks[0] is None:
        return gradient
    return path_bwd(gradient, weights, [_ones(steps[0][0]) if mask is None else mask for mask in masks])


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _ones(link: Link) -> Tensor:
    return torch.full_like(link.inner, -1)


# ---- a block, taken apart --------------------------------------------------------------------------------------------


def _is_link(spec: Block) -> bool:
    kinds = tuple(type(layer) for layer in spec.residual)
    if spec.shortcut or (kinds, type(spec.act)) not in ((BASIC, Relu), (PREACT, type(None))):
        return False
    convs = [layer for layer in spec.residual if isinstance(layer, Conv)]
    norms = [layer for layer in spec.residual if isinstance(layer, Norm)]
    shapes = {(len(conv.weight), conv.weight.shape[1], conv.weight.shape[-1], conv.stride) for conv in convs}
    plain = shapes == {(channels := len(convs[0].weight), channels, 3, (1, 1))}
    return plain and not any(map(unfit_geometry, convs)) and not any(n.batch_stats or n.weight is None for n in norms)


def _branch(spec: Block, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """f(x), and the bits of its ReLUs."""
    masks = []
    for layer in spec.residual:
        (x,) = run_layers([layer], [Rows(x, Flow.NONE)], update=False)
        if isinstance(layer, Relu):
            masks.append(bits_of(x > 0))
    return x, masks


def _scale(norm: Norm) -> Tensor:
    assert norm.weight is not None and norm.running_var is not None  # `_is_link` has refused any other
    return norm.weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)


def _turned(conv: Conv, out: Tensor | float, into: Tensor | float) -> Tensor:
    """The convolution that pulls a gradient back through `conv`, with factors of its output and input channels."""
    out, into = (torch.as_tensor(factor, dtype=torch.float64).expand(len(conv.weight)) for factor in (out, into))
    weight = conv.weight.detach().double() * out.view(-1, 1, 1, 1) * into.view(1, -1, 1, 1)
    return weight.flip(2, 3).transpose(0, 1).to(conv.weight.dtype).contiguous()
