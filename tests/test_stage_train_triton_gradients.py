"""Several gradients of a run at once on the Triton kernels: the launches of one, and no work for weights."""

from __future__ import annotations

import pytest
import torch
from cases import double, make_stage, specs
from training_cases import images, route_of
from triton_cases import DEVICE, interpreted, on_device

from pathnet import use_backend
from pathnet.kernels import copies
from pathnet.kernels.launch import observed
from pathnet.ops.stage_train import stage_train

pytestmark = on_device

K = 3


def forward(backend, stage, x, gates):
    with use_backend(backend):
        return stage_train(x, specs(stage), route_of(gates), zero_unused=False)


def together(y, x, incoming):
    return torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]


@pytest.mark.parametrize(
    "form, gates, stride, training",
    [
        ("basic", [1, 2, 3], 1, True),
        ("basic", [4, 1], 2, False),
        ("bottleneck", [1], 2, True),
        ("preact", [1], 1, True),
    ],
    ids=str,
)
def test_several_gradients_are_those_of_float64(form, gates, stride, training, poisoned):
    stage = make_stage(form, stride=stride, blocks=len(gates)).train(training).to(DEVICE)
    x = images(stage.cpu(), (2, 16, 5, 6), route_of(gates)).to(DEVICE)
    stage, x = stage.to(DEVICE), x.requires_grad_()
    y = forward("triton", stage, x, gates)
    incoming = torch.randn(K, *y.shape, device=DEVICE)
    with observed() as launches:
        got = together(y, x, incoming)
    with observed() as single:
        alone = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming]
    assert torch.equal(got, torch.stack(alone)), "each gradient's sums are its own, in the order of one alone"
    assert not any("weight" in launch.name for launch in (*launches, *single))
    assert len(launches) * (1 if form == "preact" else K) == len(single)
    x64 = x.detach().double().requires_grad_()
    truth = together(forward("reference", double(stage), x64, gates), x64, incoming.double())
    torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


def test_weights_that_are_asked_for_are_summed_one_by_one():
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.rand(2, 16, 3, 3, device=DEVICE)
    y, weight = forward("triton", stage, x, [1]), stage[0].conv1.weight
    incoming = torch.randn(2, *y.shape, device=DEVICE)
    alone = [torch.autograd.grad(y, weight, g, retain_graph=True)[0] for g in incoming]
    assert torch.equal(together(y, weight, incoming), torch.stack(alone))


@interpreted
def test_copies_that_share_their_sums_are_found(monkeypatch):
    stage, x = make_stage("basic", stride=1, blocks=1).train(), torch.rand(2, 16, 3, 3).requires_grad_()
    y = forward("triton", stage, x, [1])
    incoming = torch.randn(2, *y.shape)
    right = together(y, x, incoming)
    monkeypatch.setattr(copies, "TABLES", ())
    assert not torch.equal(together(y, x, incoming), right)
