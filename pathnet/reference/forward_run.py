"""A run of FORWARD blocks: computed without a graph, remembered as one bit an element or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.reference.block import Block, Step, block

_GATHER = 0x0102_0408_1020_4080
_REPEAT = 0x0101_0101_0101_0101
_SELECT = 0x8040_2010_0804_0201 - (1 << 64)  # as a signed word


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
    """[N, C, H, W] bool -> one bit an element, uint8, in the order of the memory.

    Eight bools are the bytes of one word; the product with _GATHER moves bit 8k to bit 56 + k, without a carry.
    """
    mask = mask.permute(0, 2, 3, 1) if channels_last else mask
    words = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(torch.int64)
    return ((words * _GATHER >> 56) & 0xFF).to(torch.uint8)


def _unpack(bits: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """The mask again: each word holds its byte eight times, and byte k keeps bit k."""
    words = bits.to(torch.int64) * _REPEAT & _SELECT
    mask = (words.view(torch.uint8) != 0)[: like.numel()]
    n, c, h, w = like.shape
    return mask.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else mask.view(n, c, h, w)
