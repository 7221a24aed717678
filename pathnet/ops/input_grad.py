"""Blocks in evaluation whose input alone gets a gradient: as fast as evaluation, and one bit a value is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.eval_blocks import IDENTITY, WIDE, arguments, facts_of
from pathnet.ops.once import differentiable_once
from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.parameters import layer_parameters
from pathnet.ops.schemas import library
from pathnet.reference import Block, Step

FORMS = (0, 1)  # basic, pre-activation
WORD = 16  # channels of a word of bits


def input_grad(x: Tensor, run: Sequence[tuple[Block, Step]]) -> Tensor:
    """x [N, C, H, W] through blocks for which `gives_input_grad` holds."""
    tensors, numbers, eps = arguments(facts_of([spec for spec, _ in run]))
    scales = torch.tensor([step.multiplier for _, step in run], dtype=torch.float32)
    return _InputGrad.apply(x, scales, numbers, eps, *tensors)


def gives_input_grad(x: Tensor, run: Sequence[tuple[Block, Step]]) -> bool:
    """Whether x alone asks for a gradient, and the blocks are of one form that keeps the shape, in evaluation."""
    if not run or not x.requires_grad or not torch.is_grad_enabled():
        return False
    kinds: set[tuple[int, torch.Size]] = set()
    for (spec, step), facts in zip(run, facts_of([spec for spec, _ in run]), strict=True):
        if step.gate not in (Gate.FULL, Gate.FROZEN) or isinstance(step.multiplier, Tensor):
            return False
        if facts.unfit or facts.batch_stats or facts.stride != 1 or facts.widest > WIDE:
            return False
        form, _, shortcut, _ = facts.numbers
        kinds.update((form, weight.shape) for weight in facts.tensors if weight.dim() == 4)
        if form not in FORMS or shortcut != IDENTITY or any(p.requires_grad for p in layer_parameters(spec.residual)):
            return False
    return len(kinds) == 1 and all(shape[0] == shape[1] for _, shape in kinds)  # a block may be wider inside


class _InputGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scales, numbers, eps, *tensors):
        y, masks = torch.ops.pathnet.input_grad_fwd(x, scales, tensors, numbers, eps)
        ctx.numbers, ctx.eps = numbers, eps
        ctx.save_for_backward(masks, scales, *tensors)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        masks, scales, *tensors = ctx.saved_tensors
        with torch.no_grad():
            (grad_x,) = torch.ops.pathnet.input_grad_bwd(grad_y, masks, scales, tensors, ctx.numbers, ctx.eps)
        (grad_x,) = differentiable_once([grad_x])
        return grad_x, None, None, None, *[None] * len(tensors)


def _together(grads_y: Tensor, *rest) -> list[Tensor]:
    (grads,) = torch.ops.pathnet.input_grad_bwd(grads_y.flatten(0, 1), *rest)
    return [grads.unflatten(0, grads_y.shape[:2])]


def _fwd_fake(x, scales, tensors, blocks, eps):
    n, channels, h, w = x.shape
    masks = x.new_empty((2 * len(scales), n, -(-channels // WORD), h, w), dtype=torch.int16)
    return torch.empty_like(x), masks


torch.library.register_fake("pathnet::input_grad_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::input_grad_bwd", lambda grad_y, *rest: [torch.empty_like(grad_y)], lib=library)
batch_one_by_one("input_grad_bwd", _together)
