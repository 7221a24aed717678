"""Small nets and images that the tests of the analysis share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pathnet import PathResNet

SETTINGS = [("preact", "pad"), ("preact", "conv"), ("basic", "pad"), ("basic", "conv")]


def make_net(block="preact", shortcut="pad", depth=14, paths=None) -> PathResNet:
    """A small net whose batch norms are not trivial, in evaluation."""
    torch.manual_seed(0)
    net = PathResNet(depth, 4, block=block, shortcut=shortcut, in_channels=1, width=4, paths=paths)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def make_data(images=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 1, 12, 12, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(images) % 4


def input_gradient(net, data, paths=None) -> torch.Tensor:
    x, y = data[0].clone().requires_grad_(), data[1]
    return torch.autograd.grad(F.cross_entropy(net(x, paths=paths), y), x)[0]
