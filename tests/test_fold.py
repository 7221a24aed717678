"""Batch norms folded into the convolution before them: the same values, and only where nothing trains."""

from __future__ import annotations

import torch
from cases import assert_errs_like_eager, double
from torch import nn

from pathnet import use_backend
from pathnet.blocks import run_modules
from pathnet.blocks.describe import describe
from pathnet.ops.fold import folded
from pathnet.reference.layers import Conv, Norm, Relu


def make_stem(bias: bool = False) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d(8)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return nn.Conv2d(3, 8, 7, 2, padding=3, bias=bias), norm.eval(), nn.ReLU(), nn.MaxPool2d(3, 2)


def kinds(layers) -> list[type]:
    return [type(layer) for layer in layers]


def test_values():
    x = torch.randn(2, 3, 17, 19)
    for stem in (make_stem(), make_stem(bias=True)):
        with torch.no_grad():
            y = run_modules(stem, x, update=False)
            with use_backend("reference"):
                eager = run_modules(stem, x, update=False)
                truth = run_modules([double(module) for module in stem], x.double(), update=False)
        assert_errs_like_eager(y, eager, truth)


def test_only_where_nothing_trains():
    stem, x = make_stem(), torch.randn(2, 3, 17, 19)
    layers = describe(stem)
    with torch.no_grad():
        assert kinds(folded(layers, x)) == [Conv, Relu, nn.MaxPool2d]
        assert kinds(folded(layers, x.double())) == kinds(layers)
        with use_backend("reference"):
            assert kinds(folded(layers, x)) == kinds(layers)
        stem[1].train()
        assert Norm in kinds(folded(describe(stem), x))
    assert kinds(folded(layers, x)) == kinds(layers)


def test_a_batch_norm_alone_stays():
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        assert kinds(folded(describe([norm, nn.ReLU()]), torch.randn(2, 3, 4, 4))) == [Norm, Relu]
