"""Layers of a block as plain values, and what they do to rows that pass gradient differently."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(NamedTuple):
    weight: Tensor  # [C_out, C_in / groups, k, k]
    bias: Tensor | None
    stride: tuple[int, ...]  # (rows, columns), as the two below
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Norm(NamedTuple):
    """A batch norm; `batch_stats` says whether it normalises by the batch's statistics or by the running ones."""

    weight: Tensor | None  # [C], as all below
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None  # []
    momentum: float | None
    eps: float
    batch_stats: bool


class Relu(NamedTuple):
    inplace: bool = False


class Pad(NamedTuple):
    """Option A shortcut: every stride-th pixel, zero channels before and after (He et al. 2015, section 3.3)."""

    stride: int
    before: int
    after: int

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def add_gradient(self, grad_x: Tensor, grad_y: Tensor) -> None:
        """Add to `grad_x`, in place, what `grad_y` gives it through `pad`."""
        grad_x[:, :, :: self.stride, :: self.stride] += grad_y.narrow(1, self.before, grad_x.shape[1])


Layer = Conv | Norm | Relu | Pad | nn.Module  # a Module stands for itself wherever a user changed the net


class Flow(Enum):
    """What gradient a set of rows passes through a layer."""

    TRAIN = "to the input and to the weights"
    INPUT = "to the input"
    NONE = "nowhere"

    @overload
    def weights(self, tensor: Tensor) -> Tensor: ...
    @overload
    def weights(self, tensor: None) -> None: ...
    def weights(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or self is Flow.TRAIN else tensor.detach()


class Rows(NamedTuple):
    """Images of a batch that share a flow."""

    x: Tensor  # [rows, C, H, W]
    flow: Flow


def run_layers(layers: Sequence[Layer], parts: Sequence[Rows], update: bool) -> list[Tensor]:
    """Run `layers` over every part; batch statistics are those of all parts together.

    `update` says whether running statistics move.
    """
    parts = [Rows(x if flow is not Flow.NONE else x.detach(), flow) for x, flow in parts]
    for layer in layers:
        if isinstance(layer, Norm):
            outputs = _norm(layer, parts, update)
        elif isinstance(layer, nn.Module):
            outputs = _module(layer, parts, update)
        elif isinstance(layer, Relu) and len(parts) > 1:
            outputs = [F.relu(part.x) for part in parts]  # the parts are views of one tensor: never in place
        else:
            outputs = [_pointwise(layer, part) for part in parts]
        parts = [Rows(y, part.flow) for y, part in zip(outputs, parts, strict=True)]
    return [part.x for part in parts]


def _pointwise(layer: Conv | Relu | Pad, part: Rows) -> Tensor:
    """Apply a layer in which images do not meet."""
    x, flow = part
    if isinstance(layer, Conv):
        weight, bias = flow.weights(layer.weight), flow.weights(layer.bias)
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, Pad):
        return layer.pad(x)
    return F.relu(x, layer.inplace)


def _norm(layer: Norm, parts: Sequence[Rows], update: bool) -> list[Tensor]:
    if not layer.batch_stats:
        return [_running_norm(layer, part) for part in parts]
    if len(parts) == 1:
        x, flow = parts[0]
        return [_batch_norm(layer, x, flow.weights(layer.weight), flow.weights(layer.bias), update)]
    joint = torch.cat([part.x for part in parts])
    normalised = _batch_norm(layer, joint, None, None, update).split([len(part.x) for part in parts])
    outputs = [_affine(layer, y, part.flow) for y, part in zip(normalised, parts, strict=True)]
    return [y.detach() if part.flow is Flow.NONE else y for y, part in zip(outputs, parts, strict=True)]


def _running_norm(layer: Norm, part: Rows) -> Tensor:
    weight, bias = part.flow.weights(layer.weight), part.flow.weights(layer.bias)
    return F.batch_norm(part.x, layer.running_mean, layer.running_var, weight, bias, False, 0.0, layer.eps)


def _batch_norm(layer: Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None, update: bool) -> Tensor:
    """Normalise by the batch's statistics, exactly as `nn.BatchNorm2d` does in training."""
    if x.numel() < 2 * x.shape[1]:
        raise ValueError(
            f"batch statistics need at least two values a channel, but {len(x)} image(s) of {x.shape[2]}x{x.shape[3]} "
            "pixels reached a batch norm; train on more images, or call net.eval() for running statistics"
        )
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, layer.eps)
    if not update:  # copies move, since checkpointing wants a recomputation to save what the forward saved
        mean, var = layer.running_mean.clone(), layer.running_var.clone()
        return F.batch_norm(x, mean, var, weight, bias, True, 0.0, layer.eps)
    layer.num_batches_tracked.add_(1)
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    return F.batch_norm(x, layer.running_mean, layer.running_var, weight, bias, True, momentum, layer.eps)


def _affine(layer: Norm, x: Tensor, flow: Flow) -> Tensor:
    if layer.weight is None or layer.bias is None:
        return x
    shape = (1, -1, 1, 1)
    return x * flow.weights(layer.weight).view(shape) + flow.weights(layer.bias).view(shape)


def _module(module: nn.Module, parts: Sequence[Rows], update: bool) -> list[Tensor]:
    """Call a child that is not what its name says (hooked, parametrized, swapped): it runs as it is."""
    meets = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if not meets or len(parts) == 1:
        return [_call(module, part, update) for part in parts]
    if any(part.flow is Flow.INPUT for part in parts):
        raise ValueError(
            f"per-sample FROZEN gates beside others need a plain nn.BatchNorm2d, but the block holds a "
            f"{type(module).__name__}; use one gate for the batch, or bn='all' with OFF and FULL only"
        )
    together = Rows(torch.cat([part.x for part in parts]), Flow.TRAIN)
    joint = _call(module, together, update).split([len(part.x) for part in parts])
    return [y.detach() if part.flow is Flow.NONE else y for y, part in zip(joint, parts, strict=True)]


def _call(module: nn.Module, part: Rows, update: bool) -> Tensor:
    if part.flow is Flow.TRAIN and update:
        return module(part.x)
    tensors = {name: part.flow.weights(p) for name, p in module.named_parameters()}
    if not update:  # running statistics stay: the module moves copies of them
        tensors |= {name: b.clone() for name, b in module.named_buffers()}
    y = torch.func.functional_call(module, tensors, (part.x,))
    return y.detach() if part.flow is Flow.NONE else y
