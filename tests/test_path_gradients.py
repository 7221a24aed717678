"""The gradient along single paths: equal to that of the net, and all of them together the gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from analysis_cases import SETTINGS, input_gradient, make_data, make_net

from pathnet import Paths, analysis, samplers


@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
@pytest.mark.parametrize("chosen", [(), (0,), (2, 3), (0, 1, 2, 3, 4, 5)])
def test_path_gradient_equals_that_of_the_net(block, shortcut, chosen):
    net, data = make_net(block, shortcut).double(), make_data(dtype=torch.float64)
    gradient, exponent = analysis.PathGradients(net, data).along(chosen)
    expected = input_gradient(net, data, Paths.single(6, chosen))
    assert expected.norm() > 0
    assert (gradient * 2.0**exponent - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
def test_all_paths_add_up_to_the_gradient(block, shortcut):
    net, data = make_net(block, shortcut).double(), make_data(dtype=torch.float64)
    gradients = analysis.PathGradients(net, data)
    total = torch.zeros_like(data[0])
    for length in range(7):
        for chosen in itertools.combinations(range(6), length):
            gradient, exponent = gradients.along(chosen)
            total += gradient * 2.0**exponent
    expected = input_gradient(net, data)
    assert (total - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
def test_statistics_of_the_batch(block, shortcut):
    net, data = make_net(block, shortcut).double(), make_data(dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = analysis.PathGradients(net, data, bn="batch")
    chosen = [subset for length in range(7) for subset in itertools.combinations(range(6), length)]
    total = sum(gradient * 2.0**exponent for gradient, exponent in map(gradients.along, chosen))
    assert not net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    expected = input_gradient(net.train(), data)
    assert (total - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("block", ["preact", "basic"])
def test_gradients_at_the_output_of_the_stem(block):
    net, data = make_net(block).double(), make_data(dtype=torch.float64)
    gradient, exponent = analysis.PathGradients(net, data, at="stem").along((1, 3, 4))
    stem = net.stem(data[0]).detach().requires_grad_()
    net.stem = lambda x, update=True: stem
    loss = F.cross_entropy(net(data[0], paths=Paths.single(6, (1, 3, 4))), data[1])
    (expected,) = torch.autograd.grad(loss, stem)
    assert gradient.shape == stem.shape
    assert (gradient * 2.0**exponent - expected).norm() <= 1e-10 * expected.norm()


def test_parameters_are_frozen_for_the_forward_alone():
    net, data = make_net(), make_data()
    net.layer2.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in net.parameters()]
    gradients = analysis.PathGradients(net, data)
    assert [parameter.requires_grad for parameter in net.parameters()] == asked
    gradients.along((1, 3))
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("block", ["preact", "basic"])
def test_many_paths_at_once_give_the_norms_of_each(block, monkeypatch):
    net, data = make_net(block, depth=20).double(), make_data(dtype=torch.float64)
    gradients = analysis.PathGradients(net, data)
    paths = [subset for length in (0, 2, 3, 9) for subset in itertools.combinations(range(9), length)] * 2
    norms = gradients.log10_norms(paths)
    for path, norm in list(zip(paths, norms, strict=True))[::17]:
        expected = input_gradient(net, data, Paths.single(9, path)).norm().log10().item()
        assert norm == pytest.approx(expected, abs=1e-9)
    monkeypatch.setattr(gradients, "_together", 5)
    assert gradients.log10_norms(paths) == pytest.approx(norms, abs=1e-12)


def test_places_and_statistics_that_do_not_exist():
    with pytest.raises(ValueError, match="at must be one of .* but they are 'head' and 'running'"):
        analysis.PathGradients(make_net(), make_data(), at="head")


def test_path_gradient_follows_the_rule_of_the_sampler():
    net, data = make_net(paths=samplers.KeepExactly(2)).double(), make_data(dtype=torch.float64)
    gradient, exponent = analysis.PathGradients(net, data).along((1, 4))
    expected = input_gradient(net, data, Paths.single(6, (1, 4)))
    assert (gradient * 2.0**exponent - expected).norm() <= 1e-10 * expected.norm()


def test_gradient_by_length_draws_by_seed_and_length_alone():
    net, data = make_net(), make_data()
    full = analysis.gradient_by_length(net, data, samples=5, seed=2)
    assert [entry.length for entry in full] == list(range(7))
    assert (
        analysis.gradient_by_length(net, data, samples=3, seed=2, lengths=[4])[0].log10_norms == full[4].log10_norms[:3]
    )
    assert len(set(full[0].log10_norms)) == len(set(full[6].log10_norms)) == 1
    expected = input_gradient(net, data, Paths.single(6, range(6))).double().norm().log10()
    assert full[6].log10_norms[0] == pytest.approx(expected.item(), abs=1e-4)
    with pytest.raises(ValueError, match=r"0\.\.6.*7"):
        analysis.gradient_by_length(net, data, lengths=[7])


def test_norms_far_below_float32_are_measured():
    net, data = make_net(), make_data()
    exact = analysis.gradient_by_length(net.double(), make_data(dtype=torch.float64), 1, lengths=[6])[0].log10_norms[0]
    for block in net.float().blocks:
        block.conv2.weight.data *= 1e-9
    tiny = analysis.gradient_by_length(net, data, samples=1, lengths=[6])[0].log10_norms[0]
    assert tiny < -50 and math.isfinite(exact)


def test_gradient_of_zero_is_minus_infinity():
    net = make_net()
    net.blocks[2].conv2.weight.data.zero_()
    norms = analysis.gradient_by_length(net, make_data(), samples=2, lengths=[6])[0].log10_norms
    assert norms == (-math.inf, -math.inf)
