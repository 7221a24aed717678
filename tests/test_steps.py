"""Training steps: samplers at work, optimizers that must not move what a step leaves alone, checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from test_paths import make
from torch.utils.checkpoint import checkpoint

from pathnet import PathResNet, Paths
from pathnet.samplers import BackwardOnly, DropPath, KeepExactly, ResidualDropPath, SinglePath, StochasticDepth


def step(net, x, optimizer, **kwargs):
    optimizer.zero_grad()
    net(x, **kwargs).square().mean().backward()
    optimizer.step()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def test_momentum_and_weight_decay_do_not_move_what_a_step_leaves_alone():
    net, x = make(training=True)
    optimizer = sgd(net)
    step(net, x, optimizer)  # momentum everywhere
    before = copy.deepcopy(net.state_dict())
    step(net, x, optimizer, paths=Paths([1, 0, 2]))
    for name, value in net.state_dict().items():
        if name.startswith(("layer2", "layer3")) and not name.startswith("layer3.0.bn"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(net.layer1[0].conv1.weight, before["layer1.0.conv1.weight"])


def test_residual_drop_path_leaves_half_of_the_net_alone_in_each_step():
    """Property 16: frozen tensors are bit-identical after a step of the second kind, dropped ones after the first."""
    net, x = make(training=True, depth=20, paths=ResidualDropPath(0.5))
    optimizer = sgd(net)
    for number in range(4):
        gates = net.paths.draw(number, 4, 9).gates.tolist()
        before = copy.deepcopy(net)
        step(net, x, optimizer)
        trained = {i for i, gate in enumerate(gates) if gate == 1}
        assert 0 < len(trained) < 9
        for i, (block, old) in enumerate(zip(net.blocks, before.blocks, strict=True)):
            same = [
                torch.equal(p, q) for p, q in zip(block.state_dict().values(), old.state_dict().values(), strict=True)
            ]
            assert all(same) == (i not in trained)


def test_gradients_of_other_uses_stay():
    net, x = make(training=True)
    block = net.layer2[0]
    (net(x, paths=Paths.delete(3, [1])).sum() + block.conv1.weight.square().sum()).backward()
    assert torch.equal(block.conv1.weight.grad, 2 * block.conv1.weight)
    kept = block.conv1.weight.grad.clone()
    net(x, paths=Paths.delete(3, [1])).sum().backward()  # accumulated gradients stay
    assert torch.equal(block.conv1.weight.grad, kept)
    net.zero_grad()
    (net(x, paths=Paths.delete(3, [1])).sum() + net(x, paths=Paths.delete(3, [0])).sum()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_unused_grad_zero_gives_zeros():
    net, x = make(training=True, unused_grad="zero")
    net(x, paths=Paths([0, 2, 3])).sum().backward()
    for block in net.blocks:
        assert all(p.grad is not None and not p.grad.any() for p in block.parameters())


def test_parameters_that_need_no_gradient_are_left_out():
    net, x = make(training=True)
    net.layer1.requires_grad_(False)
    net(x, paths=Paths([0, 1, 1])).sum().backward()
    assert all(p.grad is None for p in net.layer1.parameters())
    assert all(p.grad is not None for p in net.layer2.parameters())


@pytest.mark.parametrize(
    "sampler",
    [KeepExactly(2), StochasticDepth(), DropPath(0.4), BackwardOnly(2), SinglePath(2), ResidualDropPath(0.5)],
    ids=repr,
)
def test_a_sampler_needs_no_change_in_a_training_script(sampler):
    net, x = make(training=True, paths=sampler)
    twin, _ = make(training=True)
    for number in range(3):
        assert torch.equal(net(x), twin(x, paths=sampler.draw(number, len(x), 3)))
    assert int(net._draws.step) == 3
    net.eval(), twin.eval()
    rule = sampler.test_multiplier(3)
    expected = twin(x) if rule is None else twin(x, paths=Paths.keep(3, range(3)).scaled(rule))
    assert torch.equal(net(x), expected) and int(net._draws.step) == 3
    assert torch.equal(net(x, paths=Paths([1, 1, 1], raw=True)), twin(x))


def test_explicit_paths_replace_the_draw_and_keep_the_rule():
    net, x = make(paths=KeepExactly(2))
    plain, _ = make()
    lesion = Paths.delete(3, [1])
    assert torch.equal(net(x, paths=lesion), plain(x, paths=lesion.scaled(2 / 3)))
    assert torch.equal(net(x, paths=Paths(lesion.gates, raw=True)), plain(x, paths=lesion))
    net.train(), plain.train()
    assert torch.equal(net(x, paths=lesion), plain(x, paths=lesion)) and int(net._draws.step) == 0
    net.paths = lesion
    assert torch.equal(net(x), plain(x, paths=lesion))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sampler", [None, KeepExactly(1), DropPath(0.5)])
def test_checkpointing_replays_the_draw_and_updates_nothing_twice(sampler, reentrant):
    net, x = make(training=True, paths=sampler)
    twin, _ = make(training=True, paths=sampler)
    for number in range(4):
        a, b = (x + number).requires_grad_(), (x - number).requires_grad_()
        for model, run in ((net, lambda z: checkpoint(net, z, use_reentrant=reentrant)), (twin, twin)):
            model.zero_grad()
            (run(a).square().sum() + 2 * run(b).square().sum()).backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-10)
        assert all(torch.equal(p, q) for p, q in zip(net.buffers(), twin.buffers(), strict=True))
    assert torch.equal(net._draws.step, twin._draws.step)


def test_checkpointing_recalls_the_draw_where_the_input_is_made_anew():
    net, x = make(training=True, paths=KeepExactly(1))
    twin, _ = make(training=True, paths=KeepExactly(1))
    checkpoint(lambda z: net(z * 2).sum(), x.requires_grad_(), use_reentrant=False).backward()
    twin(x * 2).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [p.grad is None for p in twin.parameters()]


def test_the_draw_counter_travels_with_the_weights():
    net, x = make(training=True, paths=KeepExactly(1))
    net(x), net(x)
    state = net.state_dict()
    assert state["_extra_state"]["sampler"] == "KeepExactly(m=1, seed=0)"
    resumed, _ = make(training=True, paths=KeepExactly(1))
    resumed.load_state_dict(state)
    assert torch.equal(resumed(x), net(x))
    plain, _ = make()
    assert "_extra_state" not in plain.state_dict()
    with pytest.warns(UserWarning, match="trained under KeepExactly"):
        plain.load_state_dict(state)
    resumed.load_state_dict(plain.state_dict())  # loading without it is no error


def test_all_off_trains_stem_and_head():
    net, x = make(training=True)
    net(x, paths=Paths.keep(3, [])).sum().backward()
    assert net.conv1.weight.grad is not None and net.fc.weight.grad is not None
    assert all(p.grad is None for p in net.layer1.parameters())


def test_double_backward_and_func_transforms_use_the_reference():
    net, x = make()
    x.requires_grad_()
    for paths in (None, Paths([1, 2, 4]), Paths([2, 2, 0])):
        first = torch.autograd.grad(net(x, paths=paths).square().sum(), x, create_graph=True)[0]
        assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()
    parameters = dict(net.named_parameters())
    for paths in (None, Paths([1, 2, 0])):
        grads = torch.func.grad(
            lambda p, paths=paths: torch.func.functional_call(net, p, (x.detach(),), {"paths": paths}).sum()
        )(parameters)
        net.zero_grad()
        net(x.detach(), paths=paths).sum().backward()
        for name, p in net.named_parameters():
            want = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(grads[name], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unused_grad, calls", [("none", 0), ("zero", 1)])
def test_hooks_of_what_a_step_leaves_alone_run_only_with_zeros(unused_grad, calls):
    """A hook that expects a tensor never meets None, as in plain PyTorch, where a skipped block's hooks do not run."""
    net, x = make(training=True, unused_grad=unused_grad)
    seen = []
    net.layer2[0].conv1.weight.register_hook(lambda grad: seen.append(2 * grad))
    net(x, paths=Paths.delete(3, [1])).sum().backward()
    assert len(seen) == calls and not any(grad.any() for grad in seen)


def test_a_net_of_one_draw_a_forward():
    net = PathResNet(8, width=4, paths=KeepExactly(1))
    net(torch.randn(2, 3, 8, 8))
    copy_ = copy.deepcopy(net)
    assert int(copy_._draws.step) == 1
    copy_(torch.randn(2, 3, 8, 8))
    assert (int(copy_._draws.step), int(net._draws.step)) == (2, 1)
