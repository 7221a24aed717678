"""A stage of gated residual blocks: the one entry that every net calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.ops.eval_blocks import facts_of
from pathnet.ops.parameters import parameters
from pathnet.ops.stage_eval import stage_eval
from pathnet.ops.stage_masked import stage_masked
from pathnet.ops.stage_train import stage_train
from pathnet.reference import Block
from pathnet.route import Route


def stage(
    x: Tensor,
    blocks: Sequence[Block],
    route: Route | None = None,
    zero_unused: bool = False,
    precision: str | None = None,
) -> Tensor:
    """Run gated blocks one after the other: x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})), gated by `route`.

    Shapes: x [N, C, H, W]. `route=None` is every block FULL with multiplier 1. What a step does not train keeps
    `grad is None` (`zero_unused`: gets zeros, as it does where gates are on the device). `precision` is that of
    `stage_eval`; a step that trains has none.
    Raises RuntimeError if a forced backend cannot run the call.
    """
    if route is not None and route.live:
        return stage_masked(x, blocks, route)
    if trains(x, blocks):
        return stage_train(x, blocks, route, zero_unused)
    return stage_eval(x, blocks, route, precision)


def trains(x: Tensor, blocks: Sequence[Block]) -> bool:
    """Whether `stage_train` runs the blocks: a gradient is needed, or statistics are those of the batch."""
    return needs_grad(x, blocks) or any(facts.batch_stats for facts in facts_of(blocks))


def needs_grad(x: Tensor, blocks: Sequence[Block]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p.requires_grad for block in blocks for p in parameters(block))
