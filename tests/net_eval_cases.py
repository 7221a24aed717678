"""Cases of net_eval: nets, a run of the CUDA kernel on the host, and its comparison with float64."""

from __future__ import annotations

import copy

import torch
from cases import assert_errs_like_eager
from cuda_host.ops import on_host
from torch import nn

from pathnet import PathResNet, Paths
from pathnet.models.resolve import resolve
from pathnet.models.whole import whole_net
from pathnet.ops.net_eval import net_eval, unfit

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def make_net(depth: int = 8, **settings) -> PathResNet:
    """A net in evaluation whose batch norms have lived."""
    net = PathResNet(depth=depth, **settings)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval().requires_grad_(False)


def run(net: PathResNet, x, paths: Paths | None = None, **how):
    """Logits of the CUDA kernel on the host."""
    values = whole_net(net)
    assert unfit(x, values) is None
    with on_host(**how):
        return net_eval(x, values, *resolve(net, x, paths))


def check(net: PathResNet, x, paths: Paths | None = None, **how) -> None:
    """Compare with float64; eager PyTorch in the same dtype says how far one may be off (for TF32, bfloat16)."""
    dtype = x.dtype
    low = torch.bfloat16 if dtype == torch.float32 else dtype
    truth = copy.deepcopy(net).double()(x.double(), paths)
    eager = copy.deepcopy(net).to(low)(x.to(low), paths)
    got = run(copy.deepcopy(net).to(dtype), x, paths, **how)
    assert_errs_like_eager(got, eager.to(dtype), truth, factor=0.5 if dtype == torch.float32 else 2.0)
