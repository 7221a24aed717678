"""What stands before the blocks: a convolution, and what its kind of net puts behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathnet import backend
from pathnet.blocks.describe import describe, has_hooks, run_modules
from pathnet.gates import Gate
from pathnet.ops.stage_eval import stage_eval
from pathnet.ops.stage_eval import supports_cpu as supports_eval
from pathnet.ops.stem_eval import stem_eval
from pathnet.ops.stem_eval import supports_cpu as supports_eval_stem
from pathnet.ops.stem_train import stem_train
from pathnet.ops.stem_train import supports_cpu as supports_train
from pathnet.reference import Block, Conv, Norm, Relu
from pathnet.route import Route

_SHORTCUT_ALONE = Route(torch.full((1,), int(Gate.OFF), dtype=torch.int8), torch.ones(1, dtype=torch.float64))


def run_cifar_stem(conv: nn.Module, norm: nn.Module | None, act: nn.Module | None, x: Tensor, update: bool) -> Tensor:
    """Run a convolution, and batch norm and ReLU where there are any, on x.

    Without a gradient they are a block of a stage that is its shortcut, and so one call of `stage_eval`; in training
    batch norm and ReLU are one op, where a CPU kernel takes them.
    """
    modules = conv, norm, act
    if torch.is_grad_enabled() and norm is not None and act is not None:
        second, third = (*describe((norm, act)), None)[:2]
        u = run_modules((conv,), x, update)
        if isinstance(second, Norm) and isinstance(third, Relu) and supports_train(u, second) is None:
            return stem_train(u, second, False, update)
        return run_modules((norm, act), u, update)
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        stem = cifar_stem(*modules)
        if backend.forced() in (None, "cpu") and supports_eval(x, [stem]) is None:
            return stage_eval(x, [stem], _SHORTCUT_ALONE)
    return run_modules(modules, x, update)


def cifar_stem(conv: nn.Module, norm: nn.Module | None, act: nn.Module | None) -> Block:
    """The same as a block that is its shortcut."""
    layers = describe((conv, norm, act))
    last = layers[-1] if isinstance(layers[-1], Relu) else None
    return Block((), layers if last is None else layers[:-1], last)


def run_imagenet_stem(
    conv: nn.Module, norm: nn.Module, act: nn.Module, pool: nn.Module, x: Tensor, update: bool
) -> Tensor:
    """Run the four on x: as one op in evaluation, in training all behind the convolution, where a CPU kernel takes it.

    `update` says whether running statistics move.
    """
    first, second, third = (*describe((conv, norm, act)), None, None, None)[:3]
    if isinstance(second, Norm) and isinstance(third, Relu) and _is_plain(pool):
        if torch.is_grad_enabled():
            u = run_modules((conv,), x, update)
            if supports_train(u, second) is None:
                return stem_train(u, second, True, update)
            return run_modules((norm, act, pool), u, update)
        if isinstance(first, Conv) and supports_eval_stem(x, first, second) is None:
            return stem_eval(x, first, second)
    return run_modules((conv, norm, act, pool), x, update)


def _is_plain(pool: nn.Module) -> bool:
    """Whether it is the pooling that the kernel has: 3x3 of stride 2, padding 1."""
    if type(pool) is not nn.MaxPool2d or has_hooks(pool) or "forward" in vars(pool):
        return False
    geometry = pool.kernel_size, pool.stride, pool.padding, pool.dilation
    pairs = tuple(value if isinstance(value, tuple) else (value, value) for value in geometry)
    return pairs == ((3, 3), (2, 2), (1, 1), (1, 1)) and not pool.ceil_mode and not pool.return_indices
