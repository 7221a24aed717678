"""The control without shortcuts: what it computes, and what a lesion, an order and a wrong call do to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pathnet import Paths, analysis
from pathnet.models import PathVGG


@pytest.fixture
def net():
    torch.manual_seed(0)
    return PathVGG(4, layers=9, width=8, in_channels=1).eval()  # seven layers to delete; 1, 3 and 5 halve the image


@pytest.fixture
def data():
    return torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4


def by_hand(net, x, order, deleted=()):
    """The net in plain PyTorch."""
    x = torch.relu(net.bn1(net.conv1(x)))
    for index in order:
        layer = net.layers[index]
        x = nn.functional.max_pool2d(x, 2) if index in (1, 3, 5) else x
        x = x if index in deleted else torch.relu(layer.bn(layer.conv(x)))
    return net.fc(x.mean((2, 3)))


def test_fifteen_layers_have_thirteen_that_can_be_deleted():
    net = PathVGG()
    assert net.num_blocks == len(net.blocks) == 13 and sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 14
    assert net.swappable() == [[0], [1], [2, 3, 4], [5], [6, 7, 8], [9], [10, 11, 12]]
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert {module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)} == {128}


@pytest.mark.parametrize("deleted", [(), (0,), (3,), (1, 2, 6), range(7)])
def test_deleted_layers_pass_their_input_on(net, data, deleted):
    expected = by_hand(net, data[0], range(7), deleted)
    assert torch.equal(net(data[0], paths=Paths.delete(7, deleted)), expected)


def test_layers_of_equal_shape_change_places(net, data):
    net = PathVGG(4, layers=12, width=8, in_channels=1).eval()
    order = [0, 1, 3, 2, 4, 5, 6, 7, 8, 9]
    moved = net(data[0], paths=Paths.delete(10, []).reordered(order))
    swapped = nn.Sequential(*(net.layers[i] for i in order))
    assert torch.equal(moved, net.head(swapped(net.stem(data[0])))) and not torch.equal(moved, net(data[0]))
    with pytest.raises(ValueError, match="blocks of equal shape"):
        net(data[0], paths=Paths.delete(10, []).reordered([1, 0, *range(2, 10)]))


def test_the_engine_shares_prefixes_and_gives_the_same_predictions(net, data, monkeypatch):
    runs, through = [], PathVGG.through
    monkeypatch.setattr(
        PathVGG, "through", lambda self, x, order, route: runs.extend(order) or through(self, x, order, route)
    )
    entries = [None, *(Paths.delete(7, [i]) for i in range(7))]
    results = analysis.evaluate(net, data, entries)
    assert len(runs) == 7 + 7 * 8 // 2  # a deleted layer may pool, so it is an operation too
    for entry, result in zip(entries, results, strict=True):
        assert torch.equal(result.predictions, net(data[0], paths=entry).argmax(1))
    assert [lesion.error for lesion in analysis.delete_each(net, data)] == [result.error for result in results[1:]]


def test_it_trains(net, data):
    net.train()
    nn.functional.cross_entropy(net(data[0]), data[1]).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    "paths",
    [Paths.backward(7, [1]), Paths.delete(7, []).scaled(0.5), Paths(torch.ones(12, 7, dtype=torch.int8))],
    ids=["gates", "multiplier", "rows"],
)
def test_there_are_no_other_ways_to_run_it(net, data, paths):
    with pytest.raises(ValueError, match="OFF or FULL, and no multiplier"):
        net(data[0], paths=paths)


def test_bad_calls(net, data):
    with pytest.raises(ValueError, match="layers must be at least 6, got 5"):
        PathVGG(layers=5)
    with pytest.raises(ValueError, match="7 blocks, got 6"):
        net(data[0], paths=Paths.delete(6, []))
    with pytest.raises(ValueError, match="at least 8x8 pixels"):
        net(torch.randn(2, 1, 4, 4))
