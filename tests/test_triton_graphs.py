"""CUDA graphs of training steps on the Triton kernels: with gates on the host, and with gates on the device."""

from __future__ import annotations

import pytest
import torch
from cases import make_stage, specs
from graph_cases import captured, gradients
from training_cases import route_of, step

from pathnet import PathResNet, Paths, use_backend
from pathnet.ops.stage_train import stage_train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SCALES = [1.0, 0.5, 2.0]


@pytest.fixture
def stage():
    stage = make_stage("basic", stride=1, blocks=len(SCALES)).train().cuda()
    for module in stage.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics stay, so that every replay is the same step
    return stage


@pytest.fixture
def x():
    return torch.rand(4, 16, 9, 8, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture
def net():
    net = PathResNet(14, width=16).cuda().train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    return net


def assert_as(results, stage, x, gates) -> None:
    y, grads = results
    expected = step("triton", stage, x, route_of(gates, SCALES))
    torch.testing.assert_close(y, expected["y"])
    for name, grad in zip(["x", *dict(stage.named_parameters())], grads, strict=True):
        wanted = expected[name]
        if grad is not None:
            torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted)


def test_a_step_of_gates_on_the_host(stage, x):
    gates = [1, 2, 1]

    def training_step():
        with use_backend("triton"):
            y = stage_train(x, specs(stage), route_of(gates, SCALES), zero_unused=False)
        return y, gradients(y, x, stage)

    graph, results = captured(training_step)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.rand_like(x))
        graph.replay()
        assert_as(results, stage, x, gates)


def test_one_graph_serves_changing_gates_on_the_device(stage, x):
    from pathnet.ops.masked_train_triton import masked_train_triton

    gates = torch.ones(len(SCALES), dtype=torch.int8, device="cuda")

    def training_step():
        y = masked_train_triton(x, specs(stage), gates, SCALES)
        return y, gradients(y, x, stage)

    graph, results = captured(training_step)
    for own in ([1, 1, 1], [1, 0, 2], [0, 0, 0], [2, 1, 0], [0, 0, 1]):
        gates.copy_(torch.tensor(own, dtype=torch.int8))
        graph.replay()
        assert_as(results, stage, x, own)


def test_one_graph_of_a_net_serves_changing_gates(net):
    images, gates = torch.rand(4, 3, 16, 16, device="cuda"), torch.ones(6, dtype=torch.int8, device="cuda")
    paths, parameters = Paths.on_device(gates), list(net.parameters())

    def training_step():
        y = net(images, paths=paths)
        return y, torch.autograd.grad(y.square().sum(), parameters)

    graph, (y, grads) = captured(training_step)
    for own in ([1, 1, 1, 1, 1, 1], [1, 0, 2, 0, 1, 1], [0, 0, 0, 2, 0, 2]):
        gates.copy_(torch.tensor(own, dtype=torch.int8))
        graph.replay()
        expected = net(images, paths=Paths(own))
        torch.testing.assert_close(y, expected)
        wanted = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
        for grad, other in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, torch.zeros_like(grad) if other is None else other)
