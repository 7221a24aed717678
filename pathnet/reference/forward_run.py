"""A run of FORWARD blocks: computed without a graph, remembered as one bit an element or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.reference.block import Block, Step, block

_BITS = tuple(1 << i for i in range(8))


def forward_run(x: Tensor, blocks: Sequence[Block], steps: Sequence[Step]) -> Tensor:
    """Run identity-shortcut blocks whose gate is FORWARD; the gradient to x passes every shortcut and act.

    grad_x = grad_y * [y_1 > 0] * ... * [y_k > 0] after ReLUs (the masks AND together), grad_y without them.
    """
    y, _bits = _ForwardRun.apply(x, blocks, steps)
    return y


class _ForwardRun(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, blocks: Sequence[Block], steps: Sequence[Step]) -> tuple[Tensor, Tensor | None]:
        y, alive = x.detach(), None
        for spec, step in zip(blocks, steps, strict=True):
            y = block(y, spec, step)
            if spec.act is not None:
                alive = y > 0 if alive is None else alive & (y > 0)
        return y, None if alive is None else _pack(alive, _is_channels_last(y))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, bits = output
        ctx.channels_last = _is_channels_last(output[0])
        if bits is not None:
            ctx.mark_non_differentiable(bits)
            ctx.save_for_backward(bits)

    @staticmethod
    def backward(ctx, grad_y: Tensor, _bits):
        if not ctx.saved_tensors:
            return grad_y, None, None
        return grad_y * _unpack(ctx.saved_tensors[0], grad_y, ctx.channels_last), None, None


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _pack(mask: Tensor, channels_last: bool) -> Tensor:
    """[N, C, H, W] bool -> one bit an element, in the order of the memory."""
    mask = mask.permute(0, 2, 3, 1) if channels_last else mask
    flat = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat * torch.tensor(_BITS, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    mask = (bits[:, None] & torch.tensor(_BITS, dtype=torch.uint8, device=bits.device)) != 0
    mask = mask.flatten()[: like.numel()]
    n, c, h, w = like.shape
    return mask.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else mask.view(n, c, h, w)
