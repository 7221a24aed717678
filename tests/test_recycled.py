"""Memory of the CPU training kernels that is used again: no graph may meet another's values in it."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import make_stage, specs

from pathnet import extension, use_backend
from pathnet.ops import stage

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")


@pytest.fixture(autouse=True)
def on_the_cpu_kernels():
    with use_backend("cpu"):  # for the process, so not in a thread
        yield


NET = make_stage("basic", stride=1, blocks=2).train()


def images(seed: int) -> torch.Tensor:
    """A batch of 2 MiB, whose memory is recycled in large pages."""
    return torch.randn(32, 16, 32, 32, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def forward(x: torch.Tensor) -> torch.Tensor:
    return stage(x, specs(copy.deepcopy(NET)))


def gradient(seed: int) -> torch.Tensor:
    x = images(seed)
    forward(x).square().sum().backward()
    return x.grad


def test_graphs_that_live_together_keep_their_own_values():
    alone = [gradient(seed) for seed in range(3)]
    gc.collect()  # what they held waits for its next use
    inputs = [images(seed) for seed in range(3)]
    outputs = [forward(x) for x in inputs]
    for y in reversed(outputs):
        y.square().sum().backward(retain_graph=True)
    for x, expected in zip(inputs, alone, strict=True):
        assert torch.equal(x.grad, expected)
    for x in inputs:
        x.grad = None
    outputs[1].square().sum().backward()
    assert torch.equal(inputs[1].grad, alone[1])


def test_threads_do_not_share_what_is_recycled():
    alone = [gradient(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(gradient, range(4)))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
