"""Which gradients the backward that runs wants of a function: `needs_input_grad` tells only which could be wanted."""

from __future__ import annotations

from typing import Any

import torch


def asked_for(ctx: Any) -> list[bool]:
    """For each tensor that the function was applied to, whether its gradient goes anywhere.

    torch.autograd.grad(y, x) leaves out all but x, and then the gradients of parameters are work for nobody.
    """
    return [node is not None and _runs(node) for node, _ in ctx.next_functions]


def _runs(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)  # type: ignore[attr-defined]
    except RuntimeError:  # a leaf that torch.autograd.grad was asked for: PyTorch gives no other answer
        return True
