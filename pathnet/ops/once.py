"""Gradients of the kernels of training, which cannot be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def differentiable_once(grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """`grads` as they are; where a graph of them is recorded, it raises RuntimeError when it is differentiated."""
    return _Once.apply(torch.zeros((), requires_grad=True), *grads) if torch.is_grad_enabled() else grads


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, *grads):
        ctx.set_materialize_grads(False)
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "the kernels of training have no second derivative; run the forward inside pathnet.use_backend('reference')"
        )
