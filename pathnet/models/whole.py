"""A net as values, for the op that runs all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pathnet.backend import forced
from pathnet.blocks.describe import describe, has_hooks
from pathnet.blocks.stage import Stage, specs_of
from pathnet.ops.net_eval import Net, runs_whole
from pathnet.reference import Block

if TYPE_CHECKING:
    from pathnet.models.path_resnet import PathResNet


def in_one_launch(net: PathResNet, x: Tensor) -> Net | None:
    """The values of `net` where `net_eval` runs x at once, else None.

    Raises RuntimeError, with the reason, if the backend "cuda" is forced and cannot run the call.
    """
    trains = net.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if trains or (x.device.type == "cpu" and forced() != "cuda"):
        return None
    values = whole_net(net)
    return values if runs_whole(x, values) else None


def whole_net(net: PathResNet) -> Net | None:
    """The values of `net`; None where a part of it is not what its class says, or is called by somebody's own code."""
    if is_overridden(net, ("stem", "through", "head")) or net.maxpool is not None:
        return None
    stem = describe((net.conv1,) if net.bn1 is None else (net.conv1, net.bn1, net.relu))
    last = () if net.bn is None else describe((net.bn, net.relu))
    stages = [stage_values(stage) for stage in net.stages]
    if any(isinstance(layer, nn.Module) for layer in (*stem, *last)) or None in stages or not _is_plain_head(net):
        return None
    return Net(stem, tuple(stages), last, (net.fc.weight, net.fc.bias))  # type: ignore[arg-type]  # None is not among


def stage_values(stage: Stage) -> tuple[Block, ...] | None:
    """The blocks of `stage`; None where one runs module by module, or the stage is called by somebody's own code."""
    specs = specs_of(stage)
    called = type(stage) is not Stage or has_hooks(stage) or "forward" in vars(stage)
    return None if called or None in specs else tuple(specs)  # type: ignore[arg-type]  # None is not among


def is_overridden(net: PathResNet, parts: Sequence[str]) -> bool:
    """Whether a subclass, or an attribute of this net, takes the place of one of these parts of the forward."""
    base = next(kind for kind in type(net).__mro__ if kind.__module__ == "pathnet.models.path_resnet")
    return any(getattr(type(net), name) is not getattr(base, name) or name in vars(net) for name in parts)


def _is_plain_head(net: PathResNet) -> bool:
    pool, fc = net.avgpool, net.fc
    plain = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1)) and type(fc) is nn.Linear
    called = any(has_hooks(part) or "forward" in vars(part) for part in (pool, fc))
    tensors = [] if not plain or fc.bias is None else [fc.weight, fc.bias]
    return len(tensors) == 2 and not called and all(type(t) is nn.Parameter for t in tensors)
