"""The ops stage_train_triton_fwd and stage_train_triton_bwd: flat lists to the kernels, and shapes for tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_forms import KERNELS, PREACTS, RECOMPUTED

if TYPE_CHECKING:  # Triton may be missing: then nobody calls these ops
    from pathnet.kernels.block_run import BlockRun


def block_run(
    weights: Sequence[Tensor], norms: Sequence[Tensor], running: Sequence[Tensor | None], blocks: Sequence[int],
    scales: Sequence[float], flags: Sequence[bool], constants: Sequence[float], precision: str,
) -> BlockRun:  # fmt: skip
    from pathnet.kernels.block_run import BlockRun
    from pathnet.kernels.conv_forms import chip_of
    from pathnet.kernels.passes import Norm

    depth = len(KERNELS[blocks[0]])
    last = None if blocks[0] in PREACTS else depth - 1  # a norm behind the last convolution takes the multiplier in
    described = [
        Norm(
            *norms[2 * i : 2 * i + 2], *running[3 * i : 3 * i + 3], *constants[2 * i : 2 * i + 2],
            scales[i // depth] if i % depth == last else 1.0, *flags[2 * i : 2 * i + 2],
        )
        for i in range(len(norms) // 2)
    ]  # fmt: skip
    chip, recomputes = chip_of(weights[0].device), blocks[0] == RECOMPUTED
    strides, gates = list(blocks[1::3]), list(blocks[2::3])
    return BlockRun(weights, described, strides, gates, list(scales), precision, chip, recomputes)


class _Form(NamedTuple):
    """The functions that train blocks of one form."""

    forward: Callable
    backward: Callable
    keeps: Callable
    kept_tensors: Callable


def _form(blocks: Sequence[int]) -> _Form:
    if blocks[0] in PREACTS:
        from pathnet.kernels.stage_train_preact_bwd import stage_train_preact_bwd
        from pathnet.kernels.stage_train_preact_fwd import keeps, kept_tensors, stage_train_preact_fwd

        return _Form(stage_train_preact_fwd, stage_train_preact_bwd, keeps, kept_tensors)
    from pathnet.kernels.stage_train_bwd import stage_train_bwd
    from pathnet.kernels.stage_train_fwd import keeps, kept_tensors, stage_train_fwd

    which = {"recomputes": blocks[0] == RECOMPUTED}
    return _Form(stage_train_fwd, stage_train_bwd, partial(keeps, **which), partial(kept_tensors, **which))


def _fwd(x, skip, weights, norms, running, blocks, *rest):
    run = block_run(weights, norms, running, blocks, *rest)
    with torch.cuda.device_of(x):
        y, kept = _form(blocks).forward(x, skip, run)
    return y, [t for t in kept if t is not None]


def _fwd_fake(x, skip, weights, norms, running, blocks, *rest):
    from pathnet.kernels.block_run import empty

    run = block_run(weights, norms, running, blocks, *rest)
    shapes = run.shapes(x.shape[0], *x.shape[2:])
    kept = _form(blocks).kept_tensors(run.gates, x, shapes)
    return empty(x, shapes[-1][-1]), [t for t in kept if t is not None]


def _bwd(grad_y, x, saved, weights, norms, blocks, *rest):
    *layout, has_skip, needs = rest
    run = block_run(weights, norms, [None] * (3 * len(norms) // 2), blocks, *layout)
    form, rows = _form(blocks), iter(saved)
    kept = [next(rows) if keep else None for keep in form.keeps(run.gates, run.depth)]
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):
        grads = form.backward(grad_y, x, kept, run, has_skip, *needs[:2], needs[2 : 2 + len(weights)])
    return [grad for grad in grads if grad is not None]


MOST_COPIES = 16  # gradients at once: each has counters of its own


def _together(grads_y, x, saved, weights, norms, blocks, *rest):
    """The gradients of x and skip for several of y [k, N, C, H, W], in the launches of one."""
    *layout, _, needs = rest
    run = block_run(weights, norms, [None] * (3 * len(norms) // 2), blocks, *layout)
    preact = blocks[0] in PREACTS
    vendors = not preact and run.vendors(run.shapes(x.shape[0], *x.shape[2:]), x.dtype)
    if preact or vendors or any(needs[2 : 2 + len(weights)]):
        return None
    parts = []
    for several in grads_y.split(MOST_COPIES):
        found = torch.ops.pathnet.stage_train_triton_bwd(several.flatten(0, 1), x, saved, weights, norms, blocks, *rest)
        parts.append([grad.unflatten(0, (len(several), -1)) for grad in found])
    return [torch.cat(grads) for grads in zip(*parts, strict=True)]


def _bwd_fake(grad_y, x, saved, weights, norms, *rest):
    needs, copies = rest[-1], len(grad_y) // len(x)
    shape = len(grad_y), *x.shape[1:]
    given = [torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)] * needs[0]
    given += [torch.empty_like(grad_y, memory_format=torch.channels_last)] if needs[1] else []
    needed = [weight for weight, need in zip(weights, needs[2:], strict=False) if need]
    given += [weights[0].new_empty(sum(weight.numel() for weight in needed))] if needed else []
    return [*given, grad_y.new_empty((copies * len(norms) // 2, 2, max(map(len, norms))), dtype=torch.float32)]


for _key in ("CPU", "CUDA"):
    library.impl("stage_train_triton_fwd", _fwd, _key)
    library.impl("stage_train_triton_bwd", _bwd, _key)
torch.library.register_fake("pathnet::stage_train_triton_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stage_train_triton_bwd", _bwd_fake, lib=library)
batch_one_by_one("stage_train_triton_bwd", _together)
