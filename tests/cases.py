"""One case an op: blocks, inputs and how far a backend may err from float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pathnet.blocks import BLOCKS, Stage

FORMS = ("basic", "preact", "bottleneck")
SHORTCUTS = ("pad", "pad_end", "conv")


def make_stage(form: str, shortcut: str = "pad", channels: int = 16, width: int = 16, stride: int = 2, blocks: int = 3):
    """A stage in evaluation whose batch norms have lived: statistics and weights far from 0 and 1."""
    torch.manual_seed(0)
    kind = BLOCKS[form]
    first = kind(channels, width, stride, shortcut)
    stage = Stage(first, *(kind(width * kind.expansion, width, 1, shortcut) for _ in range(blocks - 1)))
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return stage.eval()


def double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def specs(stage: Stage) -> list:
    return [block.spec() for block in stage]


def assert_errs_like_eager(got: Tensor, eager: Tensor, truth: Tensor, factor: float = 2.0) -> None:
    """At most `factor` times the error of eager PyTorch in the same dtype, plus one rounding, from float64."""
    scale = truth.abs().max().clamp_min(1e-30)
    rounding = torch.finfo(eager.dtype).eps
    error, allowed = ((y.double() - truth).abs().max() / scale for y in (got, eager))
    assert error <= factor * allowed + rounding, f"error {error:.2e}, eager's {allowed:.2e}"


class Recorder(TorchDispatchMode):
    """Keeps the calls of this library's ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pathnet":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
