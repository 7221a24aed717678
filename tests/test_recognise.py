"""Weights tell which net they belong to."""

from __future__ import annotations

import pytest
import torch

from pathnet import PathResNet
from pathnet.models.recognise import recognise

NETS = {
    "basic14": {"depth": 14, "in_channels": 1},
    "basic20": {"depth": 20, "shortcut": "conv", "num_classes": 7},
    "preact14": {"depth": 14, "block": "preact"},
    "preact26": {"depth": 26, "block": "preact", "shortcut": "conv", "width": 8},
    "bottleneck20": {"depth": 20, "block": "bottleneck", "shortcut": "conv"},
    "preact_bottleneck20": {"depth": 20, "block": "preact_bottleneck", "shortcut": "conv"},
    "imagenet18": {"depth": 18, "stem": "imagenet"},
    "imagenet34": {"depth": 34, "stem": "imagenet", "num_classes": 5},
    "imagenet50": {"depth": 50, "stem": "imagenet"},
    "imagenet101": {"depth": 101, "stem": "imagenet"},
}


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_recognised_by_its_weights(name):
    net = PathResNet(**{"width": 4} | NETS[name])
    found, same = recognise(net.state_dict())
    assert found == name
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in same.state_dict().items()} == shapes
    assert [type(block) for block in same.blocks] == [type(block) for block in net.blocks]


def test_padding_is_asked_for():
    weights = PathResNet(14).state_dict()
    assert recognise(weights, "pad_end")[1].blocks[2].downsample.before == 0
    assert recognise(weights)[1].blocks[2].downsample.before == 8


def stages_of(sizes):
    """Weights of a net whose stages have these sizes."""
    weights = {"conv1.weight": torch.zeros(16, 3, 3, 3), "fc.weight": torch.zeros(10, 64)}
    for stage, size in enumerate(sizes, 1):
        weights |= {f"layer{stage}.{block}.conv1.weight": torch.zeros(16, 16, 3, 3) for block in range(size)}
    return weights


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"features.0.weight": torch.zeros(8, 3, 3, 3)}, "in torchvision's names .* but they hold features.0.weight"),
        (stages_of([2, 3, 2]), r"stages of 2, 3, 2 blocks \(basic, cifar stem\)"),
        (stages_of([2, 2, 2, 2]), "stages of 2, 2, 2, 2 blocks"),
        (stages_of([1, 1, 1]) | {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "imagenet stem"),
    ],
)
def test_weights_of_other_nets_are_refused(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        recognise(weights)
