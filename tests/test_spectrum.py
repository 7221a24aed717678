"""The gradient by path length, exact: against every single path, and against the gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from analysis_cases import SETTINGS, input_gradient, make_data, make_net

from pathnet import PathResNet, analysis, samplers, use_backend
from pathnet.analysis import links, scaled, tape


@pytest.mark.parametrize("bn", ["running", "batch"])
@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
def test_sums_of_all_single_paths_are_the_spectrum_and_the_gradient(block, shortcut, bn):
    net, data = make_net(block, shortcut).double(), make_data(dtype=torch.float64)
    spectrum = analysis.gradient_spectrum(net, data, bn=bn)
    expected = input_gradient(net.train(bn == "batch"), data)
    paths = analysis.PathGradients(net, data, bn=bn)
    for length in range(7):
        along = [paths.along(chosen) for chosen in itertools.combinations(range(6), length)]
        total = sum(gradient * 2.0**exponent for gradient, exponent in along)
        assert spectrum.norms[length].item() == pytest.approx(total.norm().item(), rel=1e-12)
        share = ((total * expected).sum() / expected.square().sum()).item()
        assert spectrum.shares[length].item() == pytest.approx(share, rel=1e-12, abs=1e-12)
    assert (spectrum.gradient - expected).norm() <= 1e-12 * expected.norm()
    assert spectrum.mismatch <= 1e-12 and spectrum.shares.sum().item() == pytest.approx(1, abs=1e-12)


def test_running_statistics_stay():
    net, data = make_net(), make_data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    analysis.gradient_spectrum(net, data, bn="batch")
    assert not net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("block", ["preact", "basic"])
def test_spectrum_in_float32_on_the_kernels(block):
    torch.manual_seed(0)
    net = PathResNet(20, 4, block=block, in_channels=1).eval()
    data = torch.randn(40, 1, 16, 16), torch.arange(40) % 4
    with use_backend("reference"):
        eager = analysis.gradient_spectrum(net, data, at="stem")
    fast = analysis.gradient_spectrum(net, data, at="stem")
    exact = analysis.gradient_spectrum(net.double(), (data[0].double(), data[1]), at="stem")
    assert fast.gradient.shape == (40, 16, 16, 16)
    error = [(found.norms - exact.norms).norm() / exact.norms.norm() for found in (fast, eager)]
    assert error[0] <= 4 * error[1] + 1e-6
    assert fast.mismatch <= 1e-5


@pytest.mark.parametrize("blocks", [6, 54])
def test_it_takes_n_times_n_plus_1_over_2_products(blocks, monkeypatch):
    net, data = PathResNet(2 * blocks + 2, 4, block="preact", in_channels=1, width=2), make_data(2)
    counts: list[int] = []

    def counted(pull):
        return lambda self, gradients: counts.append(len(gradients)) or pull(self, gradients)

    for kind in (links.Link, tape.TapedBlock):
        monkeypatch.setattr(kind, "residual", counted(kind.residual))
    analysis.gradient_spectrum(net, data)
    assert sum(counts) == blocks * (blocks + 1) // 2


def test_rule_of_the_sampler_holds():
    net, data = make_net(paths=samplers.KeepExactly(2)).double(), make_data(dtype=torch.float64)
    spectrum = analysis.gradient_spectrum(net, data)
    expected = input_gradient(net, data)
    assert (spectrum.gradient - expected).norm() <= 1e-12 * expected.norm() and spectrum.mismatch <= 1e-12


def test_sums_far_below_float32_are_measured():
    net, data = make_net(), make_data()
    for block in net.blocks:
        block.conv2.weight.data *= 1e-9
    spectrum = analysis.gradient_spectrum(net, data, at="stem")
    alone = analysis.gradient_by_length(net, data, samples=1, lengths=[6], at="stem")[0].log10_norms[0]
    assert spectrum.norms[6].log10().item() == pytest.approx(alone, abs=1e-3) and alone < -50
    assert spectrum.shares[0].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("largest", [1e-30, 1e30])
def test_rescaling_is_exact(largest):
    before = torch.tensor([largest, -largest / 3])
    values, exponent = scaled.rescaled(scaled.Scaled(before, 7), before.norm().item())
    assert 0.5 <= values[0] < 1
    assert torch.equal(values.double() * 2.0 ** (exponent - 7), before.double())
    for still in (torch.zeros(2), torch.tensor([math.inf, 1.0]), torch.tensor([math.nan, 1.0]), torch.ones(2)):
        assert scaled.rescaled(scaled.Scaled(still, 7), still.norm().item()) == scaled.Scaled(still, 7)


def test_bad_input():
    with pytest.raises(ValueError, match="at least one image"):
        analysis.gradient_spectrum(make_net(), make_data(0))
    net = make_net()
    net.fc.weight.data.zero_()
    with pytest.raises(ValueError, match="data must give a gradient, but its norm is 0.0"):
        analysis.gradient_spectrum(net, make_data())
