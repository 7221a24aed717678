"""A stage inside a compiled graph, where gates are data: one opaque op each way, computed by the reference.

The forward keeps the stage's input alone (1 T a stage, under any gates) and the backward computes the stage again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.ops.packing import Packed, pack, unpack
from pathnet.ops.parameters import idle_parameters
from pathnet.ops.schemas import library
from pathnet.ops.untouched import keep_none
from pathnet.reference import Block, Step, host_steps
from pathnet.reference import stage as reference_stage
from pathnet.route import Route


def stage_traced(x: Tensor, blocks: Sequence[Block], route: Route, zero_unused: bool) -> Tensor:
    """`stage` for torch.compile: one graph serves all gates; saves x [N, C, H, W] for backward."""
    packed, autocast = pack(blocks), _autocast_text(x)
    return _StageTraced.apply(x, packed, route, autocast, zero_unused, *packed.params)


class _StageTraced(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, packed, route, autocast, zero_unused, *params):
        ctx.packed, ctx.route, ctx.autocast, ctx.zero_unused = packed, route, autocast, zero_unused
        ctx.save_for_backward(x, route.gates, route.multiplier, route.present, *packed.fixed, *params)
        return torch.ops.pathnet.stage_traced_fwd(
            x, route.gates, route.multiplier, params, packed.moving, packed.fixed, packed.layout, packed.constants,
            route.update, route.mask_rows, autocast,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, grad_y):
        x, gates, multiplier, present, *tensors = ctx.saved_tensors
        count = len(ctx.packed.fixed)
        needs = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]]
        grads = torch.ops.pathnet.stage_traced_bwd(
            grad_y, x, gates, multiplier, present, tensors[count:], tensors[:count], ctx.packed.layout,
            ctx.packed.constants, needs, ctx.route.mask_rows, ctx.autocast, ctx.zero_unused,
        )  # fmt: skip
        wanted = iter(grads)
        grad_x, *grad_params = [next(wanted) if need else None for need in needs]
        return grad_x, None, None, None, None, *grad_params


def _autocast_text(x: Tensor) -> str:
    """The dtype that autocast asks for, as the ops carry it; empty where it is off."""
    on = torch.is_autocast_enabled(x.device.type)
    return str(torch.get_autocast_dtype(x.device.type)).removeprefix("torch.") if on else ""


def _above_autograd() -> torch._C._ForceDispatchKeyGuard:
    """Autograd records again, even where a compiled graph has called the op from below it."""
    hidden = torch._C._dispatch_tls_local_exclude_set()
    key = torch._C.DispatchKey
    for recording in (key.AutogradFunctionality, key.AutogradOther, key.AutogradNestedTensor, key.ADInplaceOrView):
        hidden = hidden.remove(recording)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), hidden)


def _autocast(x: Tensor, dtype: str) -> torch.autocast:
    return torch.autocast(x.device.type, getattr(torch, dtype) if dtype else None, enabled=bool(dtype))


def _like(x: Tensor, y: Tensor) -> Tensor:
    """y in the memory format of x, and never x itself."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return y.clone(memory_format=memory_format) if y is x else y.contiguous(memory_format=memory_format)


def _fwd(x, gates, multiplier, params, moving, fixed, layout, constants, update, mask_rows, autocast):
    blocks = unpack(Packed(params, moving, fixed, layout, constants))
    with torch.no_grad(), _autocast(x, autocast):
        return _like(x, reference_stage(x, blocks, host_steps(gates, multiplier, update, mask_rows)))


def _fwd_fake(x, gates, multiplier, params, moving, fixed, layout, constants, update, mask_rows, autocast):
    blocks = unpack(Packed(params, moving, fixed, layout, constants))
    with torch.no_grad(), _autocast(x, autocast):
        return _like(x, reference_stage(x, blocks, [Step(update=False)] * len(blocks)))


def _bwd(
    grad_y,
    x,
    gates,
    multiplier,
    present,
    params,
    fixed,
    layout,
    constants,
    needs,
    mask_rows,
    autocast,
    zero_unused,
):
    leaves = [t.detach().requires_grad_(need) for t, need in zip((x, *params), needs, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    blocks = unpack(Packed(leaves[1:], [], fixed, layout, constants))
    with _above_autograd(), torch.enable_grad(), _autocast(x, autocast):
        y = reference_stage(leaves[0], blocks, host_steps(gates, multiplier, False, mask_rows))
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if y.requires_grad:
        found = torch.autograd.grad(y, wanted, grad_y, allow_unused=True)
    grads = [_own(g, leaf, grad_y) for g, leaf in zip(found, wanted, strict=True)]
    if not zero_unused:
        route = Route(gates, multiplier, present, False, mask_rows)
        untouched, _ = idle_parameters(unpack(Packed(params, [], fixed, layout, constants)), route)
        given = dict(zip((id(t) for t, need in zip((x, *params), needs, strict=True) if need), grads, strict=True))
        keep_none([p for p in untouched if p.requires_grad], [given[id(p)] for p in untouched if p.requires_grad])
    return grads


def _own(grad: Tensor | None, leaf: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient as the fake promises it: zeros for None, laid out as the leaf is, and never the op's own input."""
    if grad is None:
        return torch.zeros_like(leaf)
    return torch.empty_like(leaf).copy_(grad) if grad is grad_y or grad.stride() != leaf.stride() else grad


def _bwd_fake(grad_y, x, gates, multiplier, present, params, fixed, layout, constants, needs, *options):
    return [torch.empty_like(t) for t, need in zip((x, *params), needs, strict=True) if need]


library.impl("stage_traced_fwd", _fwd, "CompositeExplicitAutograd")
library.impl("stage_traced_bwd", _bwd, "CompositeExplicitAutograd")
torch.library.register_fake("pathnet::stage_traced_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stage_traced_bwd", _bwd_fake, lib=library)
