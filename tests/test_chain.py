"""A net in evaluation on the CPU is one call from the stem to the last block, as long as nobody has changed it."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder
from torch import nn

from pathnet import PathResNet, Paths, extension, use_backend
from pathnet.blocks import Stage

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

X = torch.randn(3, 3, 12, 9, generator=torch.Generator().manual_seed(0))
LESIONS = (
    None,
    Paths.delete(6, [1, 2]),
    Paths.keep(6, []),
    Paths.keep(6, [0, 2, 3]).scaled(0.5),
    Paths(torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1], [1] * 6], dtype=torch.int8)),
    Paths(torch.tensor([0, 2, 3, 4, 1, 0], dtype=torch.int8)),
)


def make_net(block: str = "basic", **options) -> PathResNet:
    """A net whose batch norms have lived."""
    torch.manual_seed(0)
    net = PathResNet(20 if "bottleneck" in block else 14, block=block, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


@torch.no_grad()
def calls_of(net: PathResNet, x: torch.Tensor = X) -> int:
    with Recorder() as recorder:
        net(x)
    return len(recorder.calls)


def in_parts(net: PathResNet, x: torch.Tensor, paths: Paths | None) -> torch.Tensor:
    """The same net, stage by stage: behind a hook that does nothing."""
    watched = copy.deepcopy(net)
    watched.layer1.register_forward_hook(lambda module, args, out: None)
    assert calls_of(watched, x) == 4
    return watched(x, paths=paths)


@pytest.mark.parametrize("block", ["basic", "preact", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["pad", "pad_end", "conv"])
@torch.no_grad()
def test_one_call_gives_the_bits_of_the_parts(block, shortcut):
    net = make_net(block, shortcut=shortcut)
    assert calls_of(net) == 1
    places = next(group for group in reversed(net.swappable()) if len(group) > 1) if block != "bottleneck" else [3, 3]
    order = [places[1] if i == places[0] else places[0] if i == places[1] else i for i in range(6)]
    for paths in (*LESIONS, Paths.keep(6, [1, 4]).reordered(order)):
        assert torch.equal(net(X, paths=paths), in_parts(net, X, paths)), paths
    images = X.to(memory_format=torch.channels_last)[1:, :, :, 1:]
    assert torch.equal(net(images), in_parts(net, images, None))
    assert net(X[:0]).shape == (0, 10)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("images", [19, 50])
@torch.no_grad()
def test_an_image_has_its_bits_in_any_batch(images, count, threads):
    """Groups of images grow from stage to stage: each must meet its own gates, values and place."""
    net, random = make_net(), torch.Generator().manual_seed(images)
    net.fc = nn.Identity()  # whose matrix product would depend on the batch
    x = torch.randn(images, 3, 32, 32, generator=random)
    gates = torch.randint(0, 2, (images, 6), generator=random, dtype=torch.int8)
    multiplier = torch.rand(images, 6, generator=random)
    threads(count)
    assert calls_of(net, x) == 1
    together = net(x, paths=Paths(gates).scaled(multiplier))
    for i in (0, 1, 7, images // 2, images - 1):
        alone = net(x[i : i + 1], paths=Paths(gates[i : i + 1]).scaled(multiplier[i : i + 1]))
        assert torch.equal(together[i : i + 1], alone), i


def hook_on_the_stem(net):
    net.conv1.register_forward_hook(lambda module, args, out: 2 * out)


def hook_on_a_stage(net):
    net.layer2.register_forward_hook(lambda module, args, out: 2 * out)


def hook_on_a_block(net):
    net.layer2[1].register_forward_hook(lambda module, args, out: 2 * out)


def weight_of_the_stem(net):
    net.conv1.weight.data.mul_(2)


def statistics_of_the_stem(net):
    net.bn1.running_mean = net.bn1.running_mean + 1


def other_stem(net):
    net.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)


def stem_in_training(net):
    net.bn1.train()


def other_activation(net):
    net.relu = nn.LeakyReLU(0.5)


def other_stage(net):
    net.layer1 = Stage(*make_net().layer1[:1]).eval()
    net.layer1[0].bn2.bias.data.add_(1)


def one_block_fewer(net):
    del net.layer3[1]


def weight_of_a_block(net):
    net.layer3[1].conv2.weight = nn.Parameter(torch.randn(64, 64, 3, 3))


def forward_of_a_stage(net):
    net.layer3.forward = lambda x, route=None, order=None: x.new_ones(len(x), 64, 3, 3)


def own_stem(net):
    net.stem = lambda x, update=True: x.new_ones(len(x), 16, *x.shape[2:])


def own_class(net):
    class Own(PathResNet):
        def through(self, x, order, route=None):
            return 2 * super().through(x, order, route)

    net.__class__ = Own


EDITS = (
    hook_on_the_stem, hook_on_a_stage, hook_on_a_block, weight_of_the_stem, statistics_of_the_stem, other_stem,
    stem_in_training, other_activation, other_stage, one_block_fewer, weight_of_a_block, forward_of_a_stage, own_stem,
    own_class,
)  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
@torch.no_grad()
def test_an_edit_is_seen(edit):
    net = make_net()
    before = net(X)
    assert torch.equal(net(X), before)
    edit(net)
    fresh = copy.deepcopy(net)  # which nobody has described yet
    if edit is own_stem:
        fresh.stem = net.stem
    after = net(X)
    assert torch.equal(after, fresh(X)) and not torch.equal(after, before)


@torch.no_grad()
def test_what_the_kernel_does_not_take_runs_stage_by_stage():
    with use_backend("reference"):
        assert calls_of(make_net()) == 0
    wide = make_net(width=72)
    assert calls_of(wide, torch.cat([X, X])) == 1 and calls_of(wide) == 3, "on 3 tiles the last stage loses"
    with torch.enable_grad():
        net = make_net()
        assert net(X).requires_grad
    assert net(X, paths=Paths.on_device(torch.ones(6, dtype=torch.int8))).isfinite().all()
    double = net.double()
    assert calls_of(double, X.double()) == 0
