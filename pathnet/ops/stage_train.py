"""A stage of gated blocks with a gradient: the path-restricted backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.backend import choose
from pathnet.ops.parameters import holds_modules, idle_parameters
from pathnet.ops.stage_traced import stage_traced
from pathnet.ops.stage_train_cpu import loses_cpu, stage_train_cpu, supports_cpu
from pathnet.ops.stage_train_cuda import loses_cuda, stage_train_cuda, supports_cuda
from pathnet.ops.stage_train_triton import stage_train_triton, supports_triton
from pathnet.ops.triton_calls import loses_triton
from pathnet.ops.untouched import attach_untouched
from pathnet.reference import Block, Step, host_steps
from pathnet.reference import stage as reference_stage
from pathnet.route import Route

LOSES = {"cuda": loses_cuda, "triton": loses_triton, "cpu": loses_cpu}
SUPPORTS = {
    "cuda": supports_cuda,
    "triton": supports_triton,
    "cpu": supports_cpu,
    "reference": lambda *call: None,
}


def stage_train(x: Tensor, blocks: Sequence[Block], route: Route | None, zero_unused: bool) -> Tensor:
    """`stage` with a gradient: through f and h, through one of them, or around a block, as each gate says.

    Shapes: x [N, C, H, W]. Gates are read on the host, where a compiled graph keeps them as data (`stage_traced`).
    Raises RuntimeError if a forced backend cannot run the call.
    """
    backend = choose("stage_train", SUPPORTS, x, blocks, route, loses=LOSES)
    if route is not None:
        if torch.compiler.is_compiling() and not holds_modules(blocks):
            return stage_traced(x, blocks, route, zero_unused)
        untouched, elsewhere = idle_parameters(blocks, route)
        x = attach_untouched(x, untouched, elsewhere, zero_unused)
    if backend == "cuda":
        return stage_train_cuda(x, blocks, route)
    if backend == "triton":
        return stage_train_triton(x, blocks, route)
    if backend == "cpu":
        return stage_train_cpu(x, blocks, route)
    if route is None:
        return reference_stage(x, blocks, [Step()] * len(blocks))
    return reference_stage(x, blocks, host_steps(route.gates, route.multiplier, route.update, route.mask_rows))
