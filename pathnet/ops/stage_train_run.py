"""A run of gated blocks as one autograd function over the ops stage_train_fwd and stage_train_bwd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import pathnet.ops.stage_train_rules  # noqa: F401  # what PyTorch must know of the ops
from pathnet.gates import Gate
from pathnet.ops.once import differentiable_once
from pathnet.ops.stage_train_forms import PROJECTION, by_block, form_of
from pathnet.reference import Block, Conv, Norm, Pad, Step
from pathnet.reference.block import RESIDUAL_FLOW, SHORTCUT_FLOW
from pathnet.reference.layers import Flow, Layer


class Layout(NamedTuple):
    """All but the tensors, as the ops take it: block after block in the order of execution."""

    blocks: list[int]  # form, stride and gate of each block, and of a projection behind them
    scales: list[float]  # the multiplier of each block; where one has several, of each image of each block
    flags: list[bool]  # of each batch norm: by batch statistics, and whether the running ones move
    constants: list[float]  # of each batch norm: eps and momentum


class Run(NamedTuple):
    """A run as the flat lists of an op."""

    layout: Layout
    weights: list[Tensor]  # of each convolution
    norms: list[Tensor]  # weight and bias of each batch norm
    running: list[Tensor]  # mean and variance of each batch norm
    counters: list[Tensor]  # num_batches_tracked of each batch norm


class Projection(NamedTuple):
    """A shortcut that the kernels compute."""

    conv: Conv  # 1x1
    norm: Norm | None = None  # pre-activation blocks have none


def stage_train_run(
    x: Tensor,
    skip: Tensor | Pad | Projection | None,
    blocks: Sequence[tuple[Block, Step]],
    rows: Tensor | None = None,
) -> Tensor:
    """x [N, C, H, W] through blocks of one gate each, whose shortcut is the identity; for the first, h(x) is `skip` or
    what that layer makes of x. Only the images of `rows` run, where they are given; the others pass."""
    run = run_of(blocks)
    if isinstance(skip, Projection):
        _append_projection(run, skip, blocks[0][1])
        skip = None
    moving = [count for count, moves in zip(run.counters, run.layout.flags[1::2], strict=True) if moves]
    if moving:
        torch._foreach_add_(moving, 1)
    if skip is not None and blocks[0][1].gate is Gate.FORWARD:
        x = x.detach()  # all gradient takes the shortcut
    if not recorded(x, skip if isinstance(skip, Tensor) else None, *run.weights, *run.norms):
        # the same values, and the least is saved
        run.layout.blocks[2::3] = [int(Gate.FORWARD)] * (len(run.layout.blocks) // 3)
    return _StageTrainRun.apply(x, skip, rows, run.layout, run.running, *run.weights, *run.norms)


def run_of(blocks: Sequence[tuple[Block, Step]]) -> Run:
    """The blocks as flat lists; parameters that a gate does not train are detached."""
    run = Run(Layout([], [], [], []), [], [], [], [])
    for spec, step in blocks:
        _append(run, spec, step)
    run.layout.scales.extend(_scales([step.multiplier for _, step in blocks]))
    return run


def _scales(multipliers: Sequence[float | Tensor]) -> Iterator[float]:
    images = next((len(factor) for factor in multipliers if isinstance(factor, Tensor)), 1)
    for factor in multipliers:
        yield from factor.tolist() if isinstance(factor, Tensor) else [factor] * images


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd asks for a gradient of one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _append(run: Run, spec: Block, step: Step) -> None:
    assert isinstance(step.gate, Gate)  # the kernels take no others
    _append_layers(run, spec.residual, RESIDUAL_FLOW[step.gate], step.update and step.gate is not Gate.FROZEN)
    stride = max(layer.stride[0] for layer in spec.residual if isinstance(layer, Conv))
    form = form_of(spec)
    assert form is not None  # `supports_...` has refused any other
    run.layout.blocks.extend((form, stride, int(step.gate)))


def _append_projection(run: Run, projection: Projection, step: Step) -> None:
    """Behind the blocks, under the gate whose branch passes what this shortcut passes."""
    flow = SHORTCUT_FLOW[step.gate]  # type: ignore[index]  # one gate for the batch
    _append_layers(run, [layer for layer in projection if layer is not None], flow, step.update)
    gate = next(gate for gate, branch in RESIDUAL_FLOW.items() if branch is flow)
    run.layout.blocks.extend((PROJECTION, projection.conv.stride[0], int(gate)))


def _append_layers(run: Run, layers: Sequence[Layer], flow: Flow, moves: bool) -> None:
    for layer in layers:
        if isinstance(layer, Conv):
            run.weights.append(flow.weights(layer.weight))
        elif isinstance(layer, Norm):
            weight, bias, mean, variance, count = (t for t in layer[:5] if t is not None)  # none is: `supports_...`
            run.norms.extend((flow.weights(weight), flow.weights(bias)))
            run.running.extend((mean, variance))
            run.counters.append(count)
            run.layout.flags.extend((layer.batch_stats, layer.batch_stats and moves))
            run.layout.constants.extend((layer.eps, layer.momentum or 0.0))


class _StageTrainRun(torch.autograd.Function):
    """The op keeps copies of what its backward reads, weights of convolutions apart; those of FORWARD blocks it never
    reads."""

    @staticmethod
    def forward(ctx, x, skip, rows, layout, running, *params):
        ctx.pad = skip if isinstance(skip, Pad) else None
        skip = skip if ctx.pad is None else ctx.pad.pad(x)
        count = len(params) - len(running)  # a convolution has one parameter, a batch norm two of each kind
        weights, norms = params[:count], params[count:]
        y, saved = torch.ops.pathnet.stage_train_fwd(x, skip, rows, weights, norms, running, *layout)
        ctx.rows, ctx.layout, ctx.norms, ctx.running, ctx.has_skip = rows, layout, norms, running, skip is not None
        ctx.like_x = x.shape, x.stride()
        ctx.unread = [w if gate == Gate.FORWARD else None for w, gate in _with_gates(weights, layout)]
        read = [w for w, gate in _with_gates(weights, layout) if gate != Gate.FORWARD]
        ctx.save_for_backward(*read, *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        needs_x, needs_skip, _, _, _, *needs_params = ctx.needs_input_grad
        needs = [needs_x, needs_skip or (needs_x and ctx.pad is not None), *needs_params]
        x = torch.empty_strided(*ctx.like_x)  # tells shape and memory format; nobody reads it
        kept = iter(ctx.saved_tensors)
        weights = [next(kept) if w is None else w for w in ctx.unread]
        arguments = x, ctx.rows, list(kept), weights, ctx.norms, ctx.running, *ctx.layout, ctx.has_skip, needs
        with torch.no_grad():
            wanted = iter(torch.ops.pathnet.stage_train_bwd(grad_y, *arguments))
            grad_x, grad_skip, *others = [next(wanted) if need else None for need in needs]
            if ctx.pad is not None:
                if needs_x:
                    ctx.pad.add_gradient(grad_x, grad_skip)
                grad_skip = None
        grad_x, grad_skip, *others = differentiable_once([grad_x, grad_skip, *others])
        return grad_x, grad_skip, None, None, None, *others


def _with_gates(weights: Sequence[Tensor], layout: Layout) -> Iterator[tuple[Tensor, int]]:
    """Each convolution's weight with the gate of its block."""
    for gate, own in zip(layout.blocks[2::3], by_block(layout.blocks[::3], weights), strict=True):
        yield from ((weight, gate) for weight in own)
