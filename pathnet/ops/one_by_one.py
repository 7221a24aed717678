"""Several incoming gradients at once, as torch.vmap and is_grads_batched of torch.autograd.grad hand them to an op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathnet.ops.schemas import library


def batch_one_by_one(op: str, together: Callable[..., list[Tensor] | None] = lambda *call: None) -> None:
    """Let a backward op, whose first argument is the gradient and which returns a list, run them one by one.

    `together` runs them at once where it can, and gives None where it cannot.
    """

    def run(grads_y: Tensor, *rest) -> list[Tensor]:
        if (found := together(grads_y, *rest)) is not None:
            return found
        each = [getattr(torch.ops.pathnet, op)(grad_y, *rest) for grad_y in grads_y.unbind(0)]
        return [torch.stack(grads) for grads in zip(*each, strict=True)]

    def mapped(info, in_dims, grad_y, *rest):
        grads = run(grad_y.movedim(in_dims[0], 0), *rest)
        return grads, [0] * len(grads)

    def batched(grad_y, *rest):
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        grads = run(torch._remove_batch_dim(grad_y, level, 0, 0), *rest)
        return [torch._add_batch_dim(grad, 0, level) for grad in grads]

    torch.library.register_vmap(f"pathnet::{op}", mapped, lib=library)
    library.impl(op, batched, "Batched")
