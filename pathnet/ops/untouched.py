"""Parameters that a step does not train: known to autograd and DistributedDataParallel, yet left with grad None."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def attach_untouched(x: Tensor, untouched: Sequence[Tensor], elsewhere: Sequence[Tensor], zero: bool) -> Tensor:
    """Return x with parameters in its graph that get no gradient here, where somebody waits for them.

    DistributedDataParallel waits for every parameter, fills in zeros for these and hands out averages. For `elsewhere`
    (trained on another rank) that is right. For `untouched` it would give a zero gradient, which momentum and weight
    decay follow; so None is restored behind its back, or with `zero` a zero gradient is handed out in any case. In one
    process nobody waits, and hooks of these parameters do not run, as in plain PyTorch.
    """
    untouched = [p for p in untouched if p.requires_grad]
    elsewhere = [p for p in elsewhere if p.requires_grad]
    waited_for = zero or (dist.is_available() and dist.is_initialized())
    if not waited_for or not (untouched or elsewhere):
        return x
    return _Attach.apply(x, zero, len(untouched), *untouched, *elsewhere)


class _Attach(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, zero: bool, untouched: int, *params: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.zero, ctx.untouched, *ctx.params = inputs

    @staticmethod
    def backward(ctx, grad: Tensor):
        if ctx.zero:
            return grad, None, None, *(torch.zeros_like(p) for p in ctx.params)
        keep_none(ctx.params[: ctx.untouched])
        return grad, None, None, *(None for _ in ctx.params)


def keep_none(params: Sequence[Tensor], zeros: Sequence[Tensor] = ()) -> None:
    """At the end of the running backward, restore `grad is None` wherever no gradient was accumulated.

    `zeros` are the zero gradients that a compiled graph, which cannot say None, hands to `params` instead. The first
    callback runs when all local gradients are there, and before DistributedDataParallel hands out its averages, whose
    callback is queued later; the nested one runs after it. Gradients of other uses (a second call, a penalty on the
    weights, accumulated steps) are there by then and stay.
    """
    engine = torch.autograd.Variable._execution_engine
    waiting = [p for p in params if p.is_leaf and p.grad is None]
    handed_out = [zero.data_ptr() for zero in zeros if zero.numel()]  # no reference, else autograd copies the zeros

    def restore(idle: list[Tensor]) -> None:
        for p in idle:
            p.grad = None

    def when_local_gradients_are_there() -> None:
        idle = [p for p in waiting if p.grad is None or _is_untouched_zero(p.grad, handed_out)]
        engine.queue_callback(lambda: restore(idle))

    if waiting:
        engine.queue_callback(when_local_gradients_are_there)


def _is_untouched_zero(grad: Tensor, handed_out: Sequence[int]) -> bool:
    """Whether `grad` is one of the zeros that were handed out, with nothing added to it since."""
    return grad.data_ptr() in handed_out and grad._version == 0
