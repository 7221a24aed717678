"""A run of gated blocks on a GPU as one autograd function, over the ops of Triton or of CUDA C++."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import pathnet.ops.stage_train_triton_rules  # noqa: F401  # the ops, and what PyTorch must know of them
from pathnet.gates import Gate
from pathnet.ops.asked import asked_for
from pathnet.ops.once import differentiable_once
from pathnet.ops.stage_train_forms import BOTTLENECK, PREACTS, RECOMPUTED
from pathnet.ops.stage_train_run import Run, recorded, run_of
from pathnet.ops.triton_calls import channels_last, dense, is_channels_last, product_precision
from pathnet.reference import Block, Step


def stage_train_triton_run(x: Tensor, skip: Tensor | None, blocks: Sequence[tuple[Block, Step]]) -> Tensor:
    """x [N, C, H, W] through basic blocks of one gate each; h(x) is `skip` for the first, None for the identity."""
    return stage_train_gpu_run("stage_train_triton", x, skip, blocks)


def stage_train_gpu_run(op: str, x: Tensor, skip: Tensor | None, blocks: Sequence[tuple[Block, Step]]) -> Tensor:
    """The same by the ops `op`_fwd and `op`_bwd."""
    run = run_of(blocks)
    if skip is not None and blocks[0][1].gate is Gate.FORWARD:
        x = x.detach()  # all gradient takes the shortcut
    if not recorded(x, skip, *run.weights, *run.norms):
        run.layout.blocks[2::3] = [int(Gate.FORWARD)] * len(blocks)  # the same values, and the least is saved
    if run.layout.blocks[0] == BOTTLENECK and all(spec.recompute for spec, _ in blocks):
        run.layout.blocks[::3] = [RECOMPUTED] * len(blocks)
    precision = product_precision()
    with torch.autocast(x.device.type, enabled=False):  # the kernels cast weights themselves
        y = _StageTrainGpuRun.apply(op, channels_last(x), None if skip is None else channels_last(skip), run, precision,
                                    *map(dense, run.weights), *run.norms)  # fmt: skip
    return y if is_channels_last(x) else y.contiguous()


class _StageTrainGpuRun(torch.autograd.Function):
    """Keeps x only where the first block's weights are trained, or its norm reads x, and weights only of blocks that
    pass a gradient."""

    @staticmethod
    def forward(ctx, op: str, x: Tensor, skip: Tensor | None, run: Run, precision: str, *params: Tensor):
        layout, gates = run.layout, run.layout.blocks[2::3]
        weights, norms = params[: len(run.weights)], params[len(run.weights) :]
        running = list(with_counters(run))
        forward = getattr(torch.ops.pathnet, f"{op}_fwd")
        y, saved = forward(x, skip, weights, norms, running, *layout, precision)
        ctx.params = len(params)
        ctx.op, ctx.run, ctx.precision, ctx.has_skip, ctx.shape = op, run, precision, skip is not None, x.shape
        preact = layout.blocks[0] in PREACTS
        ctx.passes = preact and all(gate == Gate.FORWARD for gate in gates)
        ctx.keeps_x = gates[0] in (Gate.FULL, Gate.RESIDUAL) or (preact and gates[0] == Gate.FROZEN)
        ctx.read = [gate != Gate.FORWARD for gate in gates for _ in range(len(weights) // len(gates))]
        ctx.weights = [None if read else weight for weight, read in zip(weights, ctx.read, strict=True)]
        kept = [weight for weight, read in zip(weights, ctx.read, strict=True) if read]
        ctx.save_for_backward(*([x] if ctx.keeps_x else []), *kept, *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        if ctx.passes:  # no ReLU stands behind the sums
            return None, *(grad_y if need else None for need in ctx.needs_input_grad[1:3]), *[None] * (2 + ctx.params)
        kept, run = iter(ctx.saved_tensors), ctx.run
        # Else it tells the shape and nobody reads it; not batched, as grad_y may be.
        x = next(kept) if ctx.keeps_x else torch.empty(1, dtype=grad_y.dtype, device=grad_y.device).expand(ctx.shape)
        weights = [next(kept) if weight is None else weight for weight in ctx.weights]
        asked = asked_for(ctx)  # of x, skip if there is one, and the parameters
        needs = asked if ctx.has_skip else [asked[0], False, *asked[1:]]
        with torch.no_grad():
            backward = getattr(torch.ops.pathnet, f"{ctx.op}_bwd")
            found = backward(
                grad_y, x, list(kept), weights, run.norms, *run.layout, ctx.precision, ctx.has_skip, needs,
            )  # fmt: skip
        grads = unpacked(iter(found), needs, weights, run.norms)
        grad_x, grad_skip, *others = differentiable_once(list(grads))
        return None, grad_x, grad_skip, None, None, *others


def with_counters(run: Run) -> Iterator[Tensor]:
    """Mean, variance and counter of each norm."""
    for index, counter in enumerate(run.counters):
        yield from (*run.running[2 * index : 2 * index + 2], counter)


def unpacked(
    found: Iterator[Tensor], needs: Sequence[bool], weights: Sequence[Tensor], norms: Sequence[Tensor]
) -> Iterator[Tensor | None]:
    """The gradients of x, skip, weights and norms, where needed, out of the op's few tensors."""
    for need in needs[:2]:
        yield next(found) if need else None
    needs_weights, needs_norms = needs[2 : 2 + len(weights)], needs[2 + len(weights) :]
    flat, first = next(found) if any(needs_weights) else None, 0
    for weight, need in zip(weights, needs_weights, strict=True):
        if need and flat is not None:
            yield flat[first : first + weight.numel()].as_strided(
                weight.shape, weight.stride(), flat.storage_offset() + first
            )
            first += weight.numel()
        else:
            yield None
    of_norms = next(found)
    for index, (parameter, need) in enumerate(zip(norms, needs_norms, strict=True)):
        first = index % 2 * len(parameter)
        yield of_norms[index // 2].view(-1)[first : first + len(parameter)].to(parameter.dtype) if need else None
