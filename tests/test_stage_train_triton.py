"""stage_train on the Triton kernels: values, every gradient and running statistics against float64.

Where no GPU is at hand they run in Triton's interpreter, which takes a tenth of a second a launch: few and tiny cases.
"""

from __future__ import annotations

import copy

import pytest
import torch
from cases import make_stage
from training_cases import check, route_of, step
from triton_cases import DEVICE, DIRECT, compare, halves, on_device

from pathnet import Gate, PathResNet, Paths, use_backend
from pathnet.kernels import passes

pytestmark = on_device


@pytest.mark.parametrize(
    "shortcut, training, gates",
    [("conv", True, [1, 4, 3]), ("pad", False, [1, 2, 1]), ("pad_end", True, [2, 2, 1]), ("conv", False, [3, 0, 4])],
)
def test_a_strided_stage_on_odd_sides(shortcut, training, gates, poisoned):
    compare(make_stage("basic", shortcut, width=24).train(training), (2, 16, 5, 7), gates)


@pytest.mark.parametrize("gates", [[1, 2, 2, 0, 3, 1], [2, 2, 4, 1, 2, 2], [2, 2, 2, 2, 2, 2]], ids=str)
def test_a_run_of_identity_shortcuts(gates, poisoned):
    stage = make_stage("basic", stride=1, blocks=6).train()
    compare(stage, (2, 16, 4, 5), gates, [1.0, 0.5, 1.0, 1.0, -1.5, 2.0])


@pytest.mark.parametrize(
    "shape",
    [(1, 16, 5, 13), (2, 8, 4, 17), (1, 24, 3, 3), (2, 40, 2, 3), (3, 72, 3, 3), (1, 16, 1, 9)],
    ids=str,
)
def test_sizes_around_the_block_limits(shape, poisoned):
    """65 and 136 pixels are one tile and a few, 8 to 40 channels less than a block or a part of two, 72 two tiles."""
    compare(make_stage("basic", "pad", shape[1], shape[1], stride=1, blocks=1).train(), shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shortcut, gates", [("pad", [1, 2, 1]), ("conv", [3, 4])])
def test_half_precision(dtype, shortcut, gates, poisoned):
    """Products of rounded factors, sums in float32; each tensor is compared as float32 ones are."""
    stage = make_stage("basic", shortcut, blocks=len(gates)).train()
    x = torch.rand(3, 16, 6, 6).to(dtype)
    check("triton", halves(stage, dtype).to(DEVICE), x.to(DEVICE), route_of(gates), DIRECT)


def test_autocast_casts_the_weights(poisoned):
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    low = halves(stage, torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = step("triton", copy.deepcopy(low).float(), x.bfloat16())
    for name, tensor in step("triton", low, x.bfloat16()).items():
        if "conv" in name:
            assert got[name].dtype == torch.float32
            torch.testing.assert_close(got[name].bfloat16(), tensor)
        else:
            assert torch.equal(got[name], tensor), name


def test_statistics_are_chosen_batch_norm_by_batch_norm(poisoned):
    stage = make_stage("basic", stride=1, blocks=2).train()
    stage[0].bn2.eval(), stage[1].bn1.eval()
    compare(stage, (2, 16, 4, 4))


def test_statistics_survive_a_mean_far_from_zero(poisoned):
    """The naive formula, mean of squares less square of the mean, would lose every digit here."""
    compare(make_stage("basic", stride=1, blocks=1).train(), (3, 16, 5, 5), mean=300.0)


def test_a_recomputation_moves_nothing():
    stage, route = make_stage("basic", stride=1, blocks=2).train().to(DEVICE), route_of([1, 2], update=False)
    got = step("triton", stage, torch.randn(2, 16, 4, 4, device=DEVICE), route)
    assert all(torch.equal(got[name], buffer) for name, buffer in stage.named_buffers())


def test_memory_formats_and_views(poisoned):
    stage, route = make_stage("basic", blocks=2).train().to(DEVICE), route_of([1, 1])
    plain = torch.randn(2, 16, 5, 4, device=DEVICE)
    view = torch.empty(4, 20, 9, 7, device=DEVICE)[1:3, 2:18, 1:6, 2:6].copy_(plain)
    last = plain.contiguous(memory_format=torch.channels_last)
    expected = step("triton", stage, plain, route)
    for x, weights in ((view, plain), (last, last)):
        same = copy.deepcopy(stage)
        same.to(memory_format=torch.channels_last if weights is last else torch.contiguous_format)
        got = step("triton", same, x, route)
        assert got["y"].is_contiguous(memory_format=torch.channels_last) == (x is last)
        for name, tensor in expected.items():  # the incoming gradient is written in the order of the memory
            assert tensor is None or torch.equal(got[name], tensor), name


def test_weights_with_gaps(poisoned):
    """A view whose taps do not lie evenly: its gradient has the layout of no dense weight."""
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.randn(2, 16, 4, 4, device=DEVICE)
    expected = step("triton", stage, x)
    wide = torch.empty(16, 16, 4, 5, device=DEVICE)[:, :, :3, 1:4]
    stage[0].conv1.weight.data = wide.copy_(stage[0].conv1.weight.data)
    for name, tensor in step("triton", stage, x).items():
        assert torch.equal(tensor, expected[name]), name


def test_bits_repeat():
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.randn(3, 16, 5, 5, device=DEVICE)
    first, second = step("triton", stage, x), step("triton", stage, x)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_offsets_beyond_32_bits(monkeypatch, poisoned):
    """The predicate, and the kernels with 64-bit indices."""
    with torch.device("meta"):
        assert not passes.wide(torch.empty(2**31 - passes.FURTHEST), None)
        assert passes.wide(torch.empty(3), torch.empty(2**31 - passes.FURTHEST + 1))
    monkeypatch.setattr(passes, "wide", lambda *tensors: True)
    compare(make_stage("basic", blocks=2).train(), (2, 16, 5, 4), [1, 1])


def test_whole_nets_for_several_steps():
    """Stem, stages and head together, a new draw of gates a step: the parameters follow those of float64."""
    gates = [[1, 1, 1], [1, 2, 0], [3, 1, 4]]
    x, target = torch.randn(4, 3, 8, 8, device=DEVICE), torch.arange(4, device=DEVICE) % 3
    nets = {name: PathResNet(8, num_classes=3, width=8).to(DEVICE) for name in ("triton", "reference")}
    truth = copy.deepcopy(nets["reference"]).double()
    nets["triton"].load_state_dict(nets["reference"].state_dict())
    for backend, net in (*nets.items(), ("reference", truth)):
        optimizer = torch.optim.SGD(net.train().parameters(), lr=0.1, momentum=0.9)
        for row in gates:
            optimizer.zero_grad()
            with use_backend(backend):
                y = net(x.to(net.fc.weight.dtype), paths=Paths([Gate(g) for g in row]))
            torch.nn.functional.cross_entropy(y, target).backward()
            optimizer.step()
    exact = torch.cat([p.detach().flatten() for p in truth.parameters()])
    errors = {
        name: float((torch.cat([p.detach().flatten() for p in net.parameters()]) - exact).norm())
        for name, net in nets.items()
    }
    assert errors["triton"] <= 4 * errors["reference"] + 1e-6
