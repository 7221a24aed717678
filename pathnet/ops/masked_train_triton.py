"""A run of blocks in training whose gates are a tensor on the device, by the Triton kernels: for CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.once import differentiable_once
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import BASIC, form_of
from pathnet.ops.stage_train_run import Run, run_of
from pathnet.ops.stage_train_triton import supports_blocks
from pathnet.ops.stage_train_triton_rules import block_run
from pathnet.ops.stage_train_triton_run import unpacked, with_counters
from pathnet.ops.triton_calls import channels_last, dense, is_channels_last, product_precision
from pathnet.reference import Block, Step


def masked_train_triton(
    x: Tensor, blocks: Sequence[Block], gates: Tensor, scales: Sequence[float], update: bool = True
) -> Tensor:
    """x_i = act(x_{i-1} + s_i f_i(x_{i-1})), under gates that nobody reads on the host.

    x [N, C, H, W], gates int8 [blocks] on its device, each OFF, FULL or FORWARD, scales a number a block. Parameters of
    blocks that are not FULL get zeros as their gradient. `update`: whether running statistics move.
    Raises ValueError for what the kernels do not run.
    """
    reason = unfit(x, blocks, gates)
    if reason:
        raise ValueError(f"gates on the device need what these kernels run: {reason}")
    run = run_of([(spec, Step(Gate.FULL, float(scale), update)) for spec, scale in zip(blocks, scales, strict=True)])
    precision = product_precision()
    with torch.autocast(x.device.type, enabled=False):  # the kernels cast weights themselves
        y = _MaskedTrainTriton.apply(
            channels_last(x), gates, run, precision, *map(dense, run.weights), *run.norms
        )  # fmt: skip
    return y if is_channels_last(x) else y.contiguous()


def unfit(x: Tensor, blocks: Sequence[Block], gates: Tensor) -> str | None:
    """Why the kernels cannot run this, in a sentence."""
    if gates.dtype != torch.int8 or gates.device != x.device or gates.shape != (len(blocks),):
        return (
            f"gates must be int8 [{len(blocks)}] on {x.device}, not {gates.dtype} {list(gates.shape)} on {gates.device}"
        )
    if any(block.shortcut for block in blocks):
        return "a shortcut is not the identity; run that block on its own"
    if any(form_of(block) != BASIC for block in blocks):
        return "a block is not a basic one"
    return supports_blocks(x, blocks)


class _MaskedTrainTriton(torch.autograd.Function):
    """Keeps what blocks that are all FULL keep: the host does not know better."""

    @staticmethod
    def forward(ctx, x: Tensor, gates: Tensor, run: Run, precision: str, *params: Tensor):
        weights, norms = params[: len(run.weights)], params[len(run.weights) :]
        gates = gates.clone()  # they may change before the backward
        y, saved = torch.ops.pathnet.masked_train_triton_fwd(
            x, gates, weights, norms, list(with_counters(run)), *run.layout[1:], precision
        )
        ctx.run, ctx.precision = run, precision
        ctx.save_for_backward(x, gates, *weights, *saved)
        return y

    @staticmethod
    def backward(ctx, grad_y: Tensor):
        x, gates, *kept = ctx.saved_tensors
        weights, saved = kept[: len(ctx.run.weights)], kept[len(ctx.run.weights) :]
        needs = [True, False, *ctx.needs_input_grad[4:]]
        with torch.no_grad():
            found = torch.ops.pathnet.masked_train_triton_bwd(
                grad_y, x, gates, saved, weights, ctx.run.norms, *ctx.run.layout[1:], ctx.precision,
                needs[2 : 2 + len(weights)],
            )  # fmt: skip
        grad_x, _, *others = differentiable_once(list(unpacked(iter(found), needs, weights, ctx.run.norms)))
        return grad_x if ctx.needs_input_grad[0] else None, None, None, None, *others


# ---- the ops ---------------------------------------------------------------------------------------------------------


def _fwd(x, gates, weights, norms, running, *rest):
    from pathnet.kernels.masked_train import masked_train_fwd

    with torch.cuda.device_of(x):
        y, kept = masked_train_fwd(x, gates, _described(weights, norms, running, *rest))
    return y, kept.flat()


def _fwd_fake(x, gates, weights, norms, running, *rest):
    from pathnet.kernels.masked_train import masked_kept

    return torch.empty_like(x), masked_kept(x, _described(weights, norms, running, *rest)).flat()


def _bwd(grad_y, x, gates, saved, weights, norms, *rest):
    from pathnet.kernels.masked_train import masked_train_bwd

    *layout, needs = rest
    blocks = _described(weights, norms, [None] * (3 * len(norms) // 2), *layout)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        grads = masked_train_bwd(grad_y, x, gates, saved, blocks, needs)
    return [grad for grad in grads if grad is not None]


def _bwd_fake(grad_y, x, gates, saved, weights, norms, *rest):
    needed = [weight.numel() for weight, need in zip(weights, rest[-1], strict=True) if need]
    given = [torch.empty_like(x), *([weights[0].new_empty(sum(needed))] if needed else [])]
    return [*given, grad_y.new_empty((len(norms) // 2, 2, len(norms[0])), dtype=torch.float32)]


def _described(weights, norms, running, scales, flags, constants, precision):
    layout = [BASIC, 1, int(Gate.FULL)] * len(scales)  # nobody reads these gates
    return block_run(weights, norms, running, layout, scales, flags, constants, precision)


for _key in ("CPU", "CUDA"):
    library.impl("masked_train_triton_fwd", _fwd, _key)
    library.impl("masked_train_triton_bwd", _bwd, _key)
torch.library.register_fake("pathnet::masked_train_triton_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::masked_train_triton_bwd", _bwd_fake, lib=library)
