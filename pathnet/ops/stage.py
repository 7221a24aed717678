"""A stage of gated residual blocks: the one entry that every net calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.backend import choose
from pathnet.ops.parameters import holds_modules, idle_parameters, parameters
from pathnet.ops.stage_eval import stage_eval
from pathnet.ops.stage_traced import stage_traced
from pathnet.ops.untouched import attach_untouched
from pathnet.reference import Block, Step, host_steps
from pathnet.reference import stage as reference_stage
from pathnet.route import Route

SUPPORTS = {"reference": lambda *call: None}


def stage(x: Tensor, blocks: Sequence[Block], route: Route | None = None, zero_unused: bool = False) -> Tensor:
    """Run gated blocks one after the other: x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})), gated by `route`.

    Shapes: x [N, C, H, W]. `route=None` is every block FULL with multiplier 1. What a step does not train keeps
    `grad is None` (`zero_unused`: gets zeros). Raises RuntimeError if a forced backend cannot run the call.
    """
    if not needs_grad(x, blocks):
        return stage_eval(x, blocks, route)
    return stage_train(x, blocks, route, zero_unused)


def stage_train(x: Tensor, blocks: Sequence[Block], route: Route | None, zero_unused: bool) -> Tensor:
    """`stage` with a gradient."""
    choose("stage_train", SUPPORTS, x, blocks)
    if route is None:
        return reference_stage(x, blocks, [Step()] * len(blocks))
    if torch.compiler.is_compiling() and not holds_modules(blocks):
        return stage_traced(x, blocks, route, zero_unused)
    untouched, elsewhere = idle_parameters(blocks, route)
    x = attach_untouched(x, untouched, elsewhere, zero_unused)
    return reference_stage(x, blocks, host_steps(route.gates, route.multiplier, route.update, route.mask_rows))


def needs_grad(x: Tensor, blocks: Sequence[Block]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p.requires_grad for block in blocks for p in parameters(block))
