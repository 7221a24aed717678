"""A stem's batch norm, ReLU and perhaps max pooling in training, as one autograd function over two CPU ops."""

from __future__ import annotations

import torch
from torch import Tensor

from pathnet import backend, extension
from pathnet.ops.once import differentiable_once
from pathnet.ops.one_by_one import batch_one_by_one
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_cpu import unfit_input, unfit_mode, unfit_norm
from pathnet.reference import Norm

LANES = 16  # channels of a vector (kBlock in csrc/cpu/image.h)


def stem_train(u: Tensor, norm: Norm, pool: bool, update: bool = True) -> Tensor:
    """ReLU(norm(u)), and if `pool` its maxima over 3x3 of stride 2, for calls that `supports_cpu` accepts.

    Shapes: u [N, C, H, W] -> the same, or [N, C, ceil(H / 2), ceil(W / 2)] with windows padded by 1, in channels_last.
    Running statistics move if `update`.
    """
    moves = norm.batch_stats and update
    if moves and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    running = [norm.running_mean, norm.running_var]
    u = u.contiguous(memory_format=torch.channels_last)
    settings = norm.batch_stats, moves, norm.eps, norm.momentum or 0.0, pool
    return _StemTrain.apply(u, norm.weight, norm.bias, running, *settings)


def supports_cpu(u: Tensor, norm: Norm) -> str | None:
    """Why the compiled CPU kernels should not train this stem, in a sentence; None if they may."""
    if backend.forced() not in (None, "cpu"):
        return f"backend {backend.forced()!r} was asked for"
    if not extension.available():
        return extension.why_not()
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (u, norm.weight, norm.bias)):
        return "no gradient is asked for"
    return unfit_mode() or unfit_input(u) or unfit_norm(norm) or _unfit_shape(u, norm)


def _unfit_shape(u: Tensor, norm: Norm) -> str | None:
    n, channels, h, w = u.shape
    if channels % LANES:
        return f"u has {channels} channels, and this kernel needs a multiple of {LANES}"
    if norm.batch_stats and n * h * w < 2:
        return "batch statistics need at least two values a channel"
    return None


class _StemTrain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, weight, bias, running, *settings):
        y, winners, state = torch.ops.pathnet.stem_train_fwd(u, [weight, bias], running, *settings)
        ctx.save_for_backward(u, winners, state, weight)
        ctx.batch_stats = settings[0]
        return y

    @staticmethod
    def backward(ctx, grad_y):
        with torch.no_grad():
            grads = torch.ops.pathnet.stem_train_bwd(
                grad_y, *ctx.saved_tensors, ctx.batch_stats, ctx.needs_input_grad[0]
            )
        weight, bias, u = differentiable_once([*grads, None][:3])
        return u, weight, bias, *[None] * 6


def _fwd_fake(u, norm, running, batch_stats, update, eps, momentum, pool):
    n, channels, h, w = u.shape
    sides = (-(-h // 2), -(-w // 2)) if pool else (h, w)
    y = torch.empty((n, channels, *sides), dtype=u.dtype, device=u.device, memory_format=torch.channels_last)
    return y, u.new_empty((n, *sides, channels // 4) if pool else (0,)), u.new_empty((4, channels))


def _bwd_fake(grad_y, u, winners, state, weight, batch_stats, needs_u):
    channels = u.shape[1]
    return [u.new_empty(channels), u.new_empty(channels), *([torch.empty_like(u)] if needs_u else [])]


torch.library.register_fake("pathnet::stem_train_fwd", _fwd_fake, lib=library)
torch.library.register_fake("pathnet::stem_train_bwd", _bwd_fake, lib=library)
batch_one_by_one("stem_train_bwd")
