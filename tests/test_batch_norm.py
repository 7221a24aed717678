"""Running statistics estimated anew for the net that is tested."""

from __future__ import annotations

import copy

import pytest
import torch
from analysis_cases import SETTINGS, make_data, make_net
from torch import nn

from pathnet import Paths, analysis, samplers
from pathnet.models import PathVGG


def norms(net):
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def by_hand(net, x, size, paths=None):
    """The same by PyTorch's own average over batches."""
    net = copy.deepcopy(net)
    net.paths = None
    for norm in norms(net):
        norm.momentum = None
        norm.reset_running_stats()
    with torch.no_grad():
        for part in x.split(size):
            net.train()(part, paths=paths)
    return norms(net)


@pytest.mark.parametrize(("block", "shortcut"), SETTINGS)
def test_statistics_are_averages_over_the_batches(block, shortcut):
    net, (x, y) = make_net(block, shortcut).double(), make_data(12, torch.float64)
    weights = [parameter.clone() for parameter in net.parameters()]
    expected = by_hand(net, x, 6)
    analysis.reestimate_batch_norm(net, (x, y), batch_size=6)
    for norm, other in zip(norms(net), expected, strict=True):
        assert torch.allclose(norm.running_mean, other.running_mean, rtol=1e-12, atol=1e-12)
        assert torch.allclose(norm.running_var, other.running_var, rtol=1e-12, atol=1e-12)
        assert norm.momentum == 0.1 and norm.num_batches_tracked == 2 and not norm.training
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))


def test_the_rule_of_the_sampler_holds_and_its_draws_do_not_move():
    net, (x, y) = make_net(paths=samplers.KeepExactly(2)), make_data(8)
    expected = by_hand(net, x, 8, Paths.delete(6, []).scaled(2 / 6))
    step = int(net._draws.step)
    analysis.reestimate_batch_norm(net.train(), [(x, y)])
    assert net.training and int(net._draws.step) == step and net.paths == samplers.KeepExactly(2)
    for norm, other in zip(norms(net), expected, strict=True):
        assert torch.allclose(norm.running_var, other.running_var, rtol=1e-5)


def test_one_batch_makes_evaluation_equal_to_training():
    """Up to the variance, which PyTorch averages without bias: N / (N - 1)."""
    net, (x, y) = make_net().double(), make_data(8, torch.float64)
    analysis.reestimate_batch_norm(net, (x, y))
    expected = net.train()(x)
    for norm in norms(net):
        norm.momentum = 0.0
    assert (net.eval()(x) - expected).norm() < 0.05 * expected.norm()


def test_a_net_without_shortcuts_too():
    net, data = PathVGG(4, layers=6, width=4, in_channels=1), make_data(8)
    analysis.reestimate_batch_norm(net, data)
    assert norms(net)[0].num_batches_tracked == 1


def test_what_is_refused_changes_nothing():
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for data, sentence in [
        (make_data(0), "at least two images, but it is empty"),
        ((torch.randn(3, 1, 12, 12), torch.zeros(3)), "batches of two images at least"),
        ((torch.randn(4, 2, 12, 12), torch.zeros(4)), "x must have the shape"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            analysis.reestimate_batch_norm(net, data, batch_size=2)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert all(norm.momentum == 0.1 for norm in norms(net)) and not net.training
    bare = make_net()
    for norm in norms(bare):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    with pytest.raises(ValueError, match="keep running statistics, but none does"):
        analysis.reestimate_batch_norm(bare, make_data())
