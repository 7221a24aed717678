"""A run of blocks in training whose gates differ from image to image, by the Triton kernels: one autograd function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.once import differentiable_once
from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import BASIC
from pathnet.ops.stage_train_run import Run, recorded, run_of
from pathnet.ops.stage_train_runs import Gated, gates_of_rows
from pathnet.ops.stage_train_triton_rules import block_run
from pathnet.ops.stage_train_triton_run import unpacked, with_counters
from pathnet.ops.triton_calls import channels_last, dense, is_channels_last, product_precision
from pathnet.reference import Step


def rows_train_triton_run(x: Tensor, blocks: Sequence[Gated]) -> Tensor:
    """x [N, C, H, W] through basic blocks whose shortcut is the identity, of a gate an image."""
    run, gates = run_of([(spec, _of_all_images(step)) for spec, step in blocks]), gates_of_rows(blocks, len(x))
    if not recorded(x, *run.weights, *run.norms):
        gates = gates.where(gates == Gate.OFF, int(Gate.FORWARD))  # the same values, and the least is saved
    precision = product_precision()
    with torch.autocast(x.device.type, enabled=False):  # the kernels cast weights themselves
        y = _RowsTrainTritonRun.apply(channels_last(x), gates, run, precision, *map(dense, run.weights), *run.norms)
    return y if is_channels_last(x) else y.contiguous()


def _of_all_images(step: Step) -> Step:
    """A step that trains what the images train, and moves what they move."""
    if not isinstance(step.gate, Tensor):
        return step
    present = {Gate(gate) for gate in step.gate.unique().tolist()}
    order = Gate.FULL, Gate.RESIDUAL, Gate.FORWARD, Gate.FROZEN  # a FROZEN block alone leaves the running statistics
    return step._replace(gate=next(gate for gate in order if gate in present))


class _RowsTrainTritonRun(torch.autograd.Function):
    """Keeps x only where the first block of an image trains, and weights only of blocks that pass a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, gates: Tensor, run: Run, precision: str, *params: Tensor):
        weights, norms = params[: len(run.weights)], params[len(run.weights) :]
        flat = gates.flatten().tolist()
        y, saved = torch.ops.pathnet.rows_train_triton_fwd(
            x, weights, norms, list(with_counters(run)), flat, *run.layout[1:], precision
        )
        passes = ((gates != Gate.OFF) & (gates != Gate.FORWARD)).any(0).tolist()
        ctx.run, ctx.precision, ctx.gates = run, precision, flat
        ctx.weights = [None if passes[i // 2] else weight for i, weight in enumerate(weights)]
        ctx.save_for_backward(x, *(w for i, w in enumerate(weights) if passes[i // 2]), *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        x, *kept = ctx.saved_tensors
        rest = iter(kept)
        weights = [next(rest) if weight is None else weight for weight in ctx.weights]
        needs = [ctx.needs_input_grad[0], False, *ctx.needs_input_grad[4:]]
        with torch.no_grad():
            found = torch.ops.pathnet.rows_train_triton_bwd(
                grad_y, x, list(rest), weights, ctx.run.norms, ctx.gates, *ctx.run.layout[1:], ctx.precision,
                [needs[0], *needs[2:]],
            )  # fmt: skip
        grads = unpacked(iter(found), needs, weights, ctx.run.norms)
        grad_x, _, *others = differentiable_once(list(grads))
        return grad_x, None, None, None, *others


# ---- the ops ---------------------------------------------------------------------------------------------------------


def _fwd(x, weights, norms, running, gates, *rest):
    from pathnet.kernels.rows_train_fwd import rows_train_fwd

    table, run = _described(x, weights, norms, running, gates, *rest)
    with torch.cuda.device_of(x):
        y, kept = rows_train_fwd(x, table, run)
    return y, kept.flat()


def _fwd_fake(x, weights, norms, running, gates, *rest):
    from pathnet.kernels.rows_train_fwd import geometries, kept_tensors
    from pathnet.kernels.rows_train_plan import plan_rows

    table, run = _described(x, weights, norms, running, gates, *rest)
    plan = plan_rows(table)
    kept = kept_tensors(plan, x, geometries(x, run, [len(block.images) for block in plan.blocks]))
    return torch.empty_like(x), kept.flat()


def _bwd(grad_y, x, saved, weights, norms, gates, *rest):
    from pathnet.kernels.rows_train_bwd import rows_train_bwd

    *layout, needs = rest
    table, run = _described(x, weights, norms, [None] * (3 * len(norms) // 2), gates, *layout)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        grads = rows_train_bwd(grad_y, x, table, saved, run, needs[0], needs[1 : 1 + len(weights)])
    return [grad for grad in grads if grad is not None]


def _bwd_fake(grad_y, x, saved, weights, norms, gates, *rest):
    needs = rest[-1]
    needed = [weight for weight, need in zip(weights, needs[1:], strict=False) if need]
    given = [torch.empty_like(x)] * needs[0]
    given += [weights[0].new_empty(sum(weight.numel() for weight in needed))] if needed else []
    return [*given, grad_y.new_empty((len(norms) // 2, 2, len(norms[0])), dtype=torch.float32)]


def _described(x, weights, norms, running, gates, scales, flags, constants, precision):
    """The gates [N, blocks], and the blocks as the kernels read them."""
    layout = [BASIC, 1, int(Gate.FULL)] * len(scales)  # of a batch: nobody reads these gates
    run = block_run(weights, norms, running, layout, scales, flags, constants, precision)
    return np.array(gates, np.int8).reshape(len(x), -1), run


for _key in ("CPU", "CUDA"):
    library.impl("rows_train_triton_fwd", _fwd, _key)
    library.impl("rows_train_triton_bwd", _bwd, _key)
torch.library.register_fake("pathnet::rows_train_triton_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::rows_train_triton_bwd", _bwd_fake, lib=library)
batch_one_by_one("rows_train_triton_bwd")
