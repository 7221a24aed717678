"""Modules as values: what a kernel may fuse, and which modules must run as they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pathnet.blocks.shortcut import PadShortcut
from pathnet.ops.fold import folded
from pathnet.reference import Conv, Norm, Pad, Relu
from pathnet.reference.layers import Flow, Layer, Rows, run_layers

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def describe(modules: Iterable[nn.Module | None]) -> tuple[Layer, ...]:
    """The layers of `modules`: values where a module is exactly what its class says, else the module itself."""
    layers: list[Layer] = []
    for module in modules:
        if isinstance(module, nn.Sequential) and why_as_module(module) is None:
            layers.extend(describe(module))
        elif module is not None:
            layers.append(_value(module) if why_as_module(module) is None else module)
    return tuple(layers)


def run_modules(modules: Iterable[nn.Module | None], x: Tensor, update: bool) -> Tensor:
    """Run modules in a row on x; `update` says whether running statistics move."""
    return run_layers(folded(describe(modules), x), [Rows(x, Flow.TRAIN)], update)[0]


def why_as_module(module: nn.Module) -> str | None:
    """Why `module` must be called as it is, in a sentence; None if its values say it all."""
    kind = type(module)
    if kind not in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Sequential, PadShortcut):
        return f"it is a {kind.__name__} and no plain convolution, batch norm or ReLU"
    if has_hooks(module) or _has_any_global_hook():
        return "it has a hook (pruning and weight norm are hooks too)"
    if "forward" in vars(module):
        return "its forward was replaced"
    tensors = (*module._parameters.values(), *module._buffers.values())
    if any(t is not None and type(t) not in _PLAIN for t in tensors):
        return "a parameter is no plain tensor (sharded or wrapped)"
    if kind is nn.Conv2d and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return f"its padding is {module.padding_mode} {module.padding!r}"
    if kind is nn.BatchNorm2d and (module.running_mean is None) != (module.num_batches_tracked is None):
        return "it tracks running statistics without counting batches"
    if kind is nn.BatchNorm2d and (module.weight is None) != (module.bias is None):
        return "it has only one of weight and bias"
    return None


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _value(module: nn.Module) -> Layer:
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)  # why_as_module keeps such a convolution a module
        return Conv(module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)
    if isinstance(module, nn.BatchNorm2d):
        statistics = module.running_mean, module.running_var, module.num_batches_tracked
        batch_stats = module.training or module.running_mean is None
        return Norm(module.weight, module.bias, *statistics, module.momentum, module.eps, batch_stats)
    if isinstance(module, PadShortcut):
        return Pad(module.stride, module.before, module.after)
    assert isinstance(module, nn.ReLU)
    return Relu(module.inplace)
