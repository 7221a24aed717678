"""A user's changes to the net give what plain PyTorch gives, and `explain` says why a block is not fused."""

from __future__ import annotations

import pytest
import torch
from test_paths import Plain, gradients, make
from torch import nn
from torch.nn.utils import parametrizations, prune

from pathnet import Gate, Paths, explain


def hooked(net):
    net.layer2[0].conv1.register_forward_hook(lambda module, args, out: 2 * out)


def hooked_before(net):
    net.layer2[0].bn2.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def pruned(net):
    prune.l1_unstructured(net.layer2[0].conv2, "weight", amount=0.5)


def parametrized(net):
    parametrizations.weight_norm(net.layer2[0].conv1)


def swapped_activation(net):
    net.layer2[0].relu = nn.LeakyReLU(0.1)


def swapped_norm(net):
    net.layer2[0].bn1 = nn.GroupNorm(2, 8).double()


def swapped_conv(net):
    net.layer2[0].conv2 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular").double()


def dropout_inside(net):
    net.layer2[0].conv2 = nn.Sequential(net.layer2[0].conv2, nn.Identity())


def norm_in_eval(net):
    net.layer2[0].bn1.eval()


def cumulative_average(net):
    net.layer2[0].bn1.momentum = None


def no_affine(net):
    net.layer2[0].bn1 = nn.BatchNorm2d(8, affine=False).double()


def no_bias(net):
    net.layer2[0].bn1.bias = None


def no_statistics(net):
    net.layer2[0].bn2 = nn.BatchNorm2d(8, track_running_stats=False).double()


def frozen_child(net):
    net.layer2[0].conv1.requires_grad_(False)


AS_MODULE = {
    hooked: "conv1: it has a hook",
    hooked_before: "bn2: it has a hook",
    pruned: "conv2: it has a hook",
    parametrized: "conv1: it is a ParametrizedConv2d",
    swapped_activation: "relu: it is a LeakyReLU",
    swapped_norm: "bn1: it is a GroupNorm",
    swapped_conv: "conv2: its padding is circular",
    dropout_inside: "conv2: it is a Identity",
    no_bias: "bn1: it has only one of weight and bias",
}
AS_VALUES = (norm_in_eval, cumulative_average, no_affine, no_statistics, frozen_child)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", [*AS_MODULE, *AS_VALUES])
def test_a_changed_child_gives_what_plain_pytorch_gives(change, training):
    for gates in ([1, 1, 1], [1, 2, 1], [2, 4, 1]):
        net, x = make(training)
        twin, _ = make(training)
        for model in (net, twin):
            torch.manual_seed(1)
            change(model)
        got = gradients(net, x, Paths(gates))
        want = gradients(Plain(twin, gates), x)
        torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[1], want[1], rtol=1e-9, atol=1e-10)
        plain = {name: p.grad for name, p in twin.named_parameters()}
        for grad, (name, _) in zip(got[2], net.named_parameters(), strict=True):
            if grad is not None:
                torch.testing.assert_close(grad, plain[name], rtol=1e-9, atol=1e-10)
            else:
                assert plain[name] is None or not plain[name].any()
        for a, b in zip(net.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", AS_MODULE)
def test_explain_says_why_a_block_is_not_fused(change):
    net, x = make()
    change(net)
    rows = explain(net, x).blocks
    assert [row.fused for row in rows] == [True, False, True]
    assert rows[1].backend == "reference" and AS_MODULE[change] in rows[1].reasons["cpu"]
    assert "module by module" in str(explain(net, x))


@pytest.mark.parametrize("change", AS_VALUES)
def test_settings_that_values_can_say_stay_fused(change):
    net, x = make()
    change(net)
    assert all(row.fused for row in explain(net, x).blocks)


@pytest.mark.parametrize("gate", list(Gate))
def test_frozen_and_every_gate_run_through_changed_children(gate):
    """A block of modules obeys each gate as a block of values does."""
    net, x = make(training=True)
    twin, _ = make(training=True)
    net.layer2[0].bn1.register_forward_hook(lambda module, args, out: None)
    got, want = gradients(net, x, Paths([1, gate, 1])), gradients(twin, x, Paths([1, gate, 1]))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    for a, b in zip(got[2], want[2], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_hooks_of_blocks_and_stages_run():
    net, x = make()
    seen = []
    net.layer1[0].register_forward_hook(lambda module, args, out: seen.append(("block", len(args))))
    net.layer2.register_forward_hook(lambda module, args, out: seen.append(("stage", len(args))))
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    try:
        net(x)
    finally:
        handle.remove()
    assert seen == [("block", 1), ("stage", 1)]
    net.layer1[0].register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    net(x.requires_grad_()).sum().backward()
    assert seen[-1] == "backward"


def test_a_foreign_block_runs_as_it_is_and_refuses_gates():
    net, x = make()
    net.layer1[0] = nn.Conv2d(4, 4, 1).double()
    assert net(x).isfinite().all()
    assert net(x, paths=Paths([1, 0, 2])).isfinite().all()
    with pytest.raises(TypeError, match="a Conv2d stands where a residual block was"):
        net(x, paths=Paths([0, 1, 1]))
    assert not explain(net, x).blocks[0].fused


def test_parts_of_a_net_alone():
    net, x = make(training=True)
    twin, _ = make(training=True)
    inside = net.stem(x)
    torch.testing.assert_close(net.layer1(inside), Plain(twin).net.layer1[0](twin.stem(x)))
    block = net.layer2[0]
    got = block(torch.randn(2, 4, 6, 6, dtype=torch.float64))
    assert got.shape == (2, 8, 3, 3)


def test_sync_batch_norm_without_a_process_group_is_batch_norm():
    net, x = make(training=False)
    twin, _ = make(training=False)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    got, want = gradients(net, x, Paths([1, 2, 1])), gradients(twin, x, Paths([1, 2, 1]))
    torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], want[1], rtol=1e-9, atol=1e-11)
    assert "SyncBatchNorm" in explain(net, x).blocks[0].reasons["cpu"]
