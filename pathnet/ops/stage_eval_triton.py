"""stage_eval by the Triton kernels: the op, what it runs, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.ops.rows_eval_triton import rows_eval_triton
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import PREACTS, form_of
from pathnet.ops.stage_train_run import Run, run_of
from pathnet.ops.stage_train_runs import Gated, differs, stage_in_runs, unfit_rows
from pathnet.ops.stage_train_triton import supports_blocks, unfit_form
from pathnet.ops.stage_train_triton_run import stage_train_triton_run
from pathnet.ops.triton_calls import channels_last, dense, is_channels_last, product_precision
from pathnet.reference import Block
from pathnet.route import Route


def stage_eval_triton(x: Tensor, blocks: Sequence[Block], route: Route | None) -> Tensor:
    """`stage_eval` for calls that `supports_triton` has accepted, x [N, C, H, W]."""
    return stage_in_runs(x, blocks, route, _run)


def supports_triton(
    x: Tensor, blocks: Sequence[Block], precision: str | None = None, route: Route | None = None
) -> str | None:
    """Why the Triton kernels cannot run these blocks, in a sentence; None if they can."""
    if precision == "bf16":
        return 'precision="bf16" rounds the Winograd products of the CPU kernel alone; use bfloat16 activations'
    return unfit_rows(route) or supports_blocks(x, blocks) or _unfit_gates(blocks, route)


def _unfit_gates(blocks: Sequence[Block], route: Route | None) -> str | None:
    return unfit_form(blocks) if route is not None and differs(route.gates) else None


def _run(x: Tensor, skip: Tensor | None, blocks: list[Gated]) -> Tensor:
    """A run of blocks that are not OFF, as one call of the op."""
    if any(isinstance(step.gate, Tensor) for _, step in blocks):
        return rows_eval_triton(x, blocks)
    run = run_of(blocks)
    if form_of(blocks[0][0]) in PREACTS or _calls_vendor(x, run):
        return stage_train_triton_run(x, skip, blocks)  # without a gradient its forward keeps nothing
    pairs = zip(zip(*[iter(run.norms)] * 2, strict=True), zip(*[iter(run.running)] * 2, strict=True), strict=True)
    norms = [tensor for affine, running in pairs for tensor in (*affine, *running)]
    through = None if skip is None else channels_last(skip)
    arguments = norms, run.layout.blocks[1::3], run.layout.scales, run.layout.constants[::2], product_precision()
    y = torch.ops.pathnet.stage_eval_triton(channels_last(x), through, [dense(w) for w in run.weights], *arguments)
    return y if is_channels_last(x) else y.contiguous()


def _calls_vendor(x: Tensor, run: Run) -> bool:
    """Whether a convolution takes the separate-pass form, which training has."""
    from pathnet.kernels.block_run import BlockRun
    from pathnet.kernels.conv_forms import chip_of

    gates, scales, strides = run.layout.blocks[2::3], run.layout.scales, run.layout.blocks[1::3]
    blocks = BlockRun(run.weights, [], strides, gates, scales, product_precision(), chip_of(x.device))
    return bool(blocks.vendors(blocks.shapes(len(x), *x.shape[2:]), x.dtype))


def _eval(x, skip, weights, norms, strides, scales, eps, precision):
    from pathnet.kernels.stage_eval import eval_norms, stage_eval

    with torch.cuda.device_of(x):
        return stage_eval(x, skip, weights, eval_norms(norms, scales, eps), strides, precision)


def _fake(x, skip, weights, norms, strides, *rest):
    n, _, h, w = x.shape
    for stride in strides:
        h, w = -(-h // stride), -(-w // stride)
    shape = n, len(weights[-1]), h, w
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


library.impl("stage_eval_triton", _eval, "CPU")
library.impl("stage_eval_triton", _eval, "CUDA")
torch.library.register_fake("pathnet::stage_eval_triton", _fake, lib=library)
