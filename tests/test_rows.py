"""Gates per image: whose statistics, whose gradient, and what is skipped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_paths import NETS, gradients, make

from pathnet import Gate, Paths

OFF, FULL, FORWARD, FROZEN, RESIDUAL = Gate


def test_rows_on_running_statistics_are_images_on_their_own():
    """With running statistics images do not meet: every row is the row alone under its own gates."""
    for options in NETS:
        net, x = make(**options)
        gates = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1], [2, 0, 3]])
        y, grad_x, grads = gradients(net, x, Paths(gates))
        total = [torch.zeros_like(p) for p in net.parameters()]
        for i in range(4):
            yi, gi, single = gradients(net, x[i : i + 1], Paths(gates[i]))
            torch.testing.assert_close(y[i : i + 1], yi, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(grad_x[i : i + 1], gi, rtol=1e-9, atol=1e-10)
            total = [t if g is None else t + g for t, g in zip(total, single, strict=True)]
        for got, want in zip(grads, total, strict=True):
            torch.testing.assert_close(torch.zeros_like(want) if got is None else got, want, rtol=1e-8, atol=1e-9)


def by_hand(block, x, rows):
    """conv-BN-ReLU-conv-BN over the rows that run, every intermediate of a FORWARD row detached."""

    def cut(u):
        return torch.stack([u[i].detach() if gate == FORWARD else u[i] for i, gate in enumerate(rows)])

    u = cut(block.conv1(cut(x)))
    u = F.batch_norm(u, None, None, block.bn1.weight, block.bn1.bias, True, 0.1, block.bn1.eps)
    u = cut(block.conv2(F.relu(cut(u))))
    u = F.batch_norm(u, None, None, block.bn2.weight, block.bn2.bias, True, 0.1, block.bn2.eps)
    return F.relu(cut(u) + x)


def test_active_rows_share_statistics_and_detached_rows_carry_no_gradient_through_them():
    net, _ = make(training=True)
    block, x = net.layer1[0], torch.randn(5, 4, 6, 6, dtype=torch.float64).abs()
    rows = [FULL, OFF, FORWARD, FULL, OFF]
    active = [0, 2, 3]

    def run(f):
        z = x.clone().requires_grad_()
        block.zero_grad(set_to_none=True)
        f(z).square().sum().backward()
        return z.grad, [p.grad for p in block.parameters()]

    def expected(z):
        y = by_hand(block, z[active], [FULL, FORWARD, FULL])
        return torch.cat([y, z[[1, 4]]])[[0, 3, 1, 2, 4]]

    from pathnet.route import Route

    route = Route(torch.tensor(rows, dtype=torch.int8).view(5, 1), torch.ones(1, dtype=torch.float64))
    got, want = run(lambda z: block(z, route)), run(expected)
    torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-10)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_active_rows_alone_reach_the_running_statistics():
    net, x = make(training=True)
    alone, _ = make(training=True)
    gates = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]])
    gradients(net, x, Paths(gates))
    with torch.no_grad():
        alone.layer1[0](alone.stem(x)[[0, 2, 3]])
    torch.testing.assert_close(net.layer1[0].bn1.running_mean, alone.layer1[0].bn1.running_mean)
    assert net.layer2[0].bn1.num_batches_tracked == 0, "no active row is OFF for this step"


def test_all_rows_compute_under_bn_all():
    """bn="all" is the mask times the branch, by ordinary autograd: OFF rows get a gradient through the statistics."""
    net, x = make(training=True, bn="all")
    twin, _ = make(training=True)
    mask = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    y, grad_x, grads = gradients(net, x, Paths(mask))

    def plain(z):
        z = twin.stem(z)
        for i, block in enumerate(twin.blocks):
            z = block.activation(mask[:, i].double().view(-1, 1, 1, 1) * block.residual(z) + block.shortcut(z))
        return twin.head(z)

    z = x.clone().requires_grad_()
    out = plain(z)
    out.square().sum().backward()
    torch.testing.assert_close(y, out.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad_x, z.grad, rtol=1e-8, atol=1e-10)
    for got, p in zip(grads, twin.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-8, atol=1e-10)
    assert grad_x[3].abs().sum() > 0


def test_one_gate_for_all_rows_is_that_gate_for_the_batch():
    for options in NETS:
        net, x = make(training=True, **options)
        twin, _ = make(training=True, **options)
        gates = [1, 2, 4]
        rows, batch = (
            gradients(net, x, Paths(torch.tensor(gates).expand(4, 3))),
            gradients(twin, x, Paths(gates)),
        )
        assert torch.equal(rows[0], batch[0]) and torch.equal(rows[1], batch[1])
        assert all((a is None) == (b is None) for a, b in zip(rows[2], batch[2], strict=True))


def test_skipped_rows_are_not_computed():
    net, x = make(training=True)
    seen = []
    net.layer1[0].conv1.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    net(x, paths=Paths(torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]])))
    assert seen == [2]
    net, x = make(training=True, bn="all")
    net.layer1[0].conv1.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    net(x, paths=Paths(torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]])))
    assert seen == [2, 4]


def test_batch_statistics_of_one_value_are_refused():
    net, _ = make(training=True)
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)  # 1x1 in the last stage
    with pytest.raises(ValueError, match="at least two values a channel, but 1 image"):
        net(x, paths=Paths(torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]])))


def test_frozen_rows_beside_others_need_a_plain_batch_norm():
    net, x = make(training=True)
    net.layer1[0].bn1 = torch.nn.SyncBatchNorm(4).double()
    with pytest.raises(ValueError, match="FROZEN gates beside others need a plain nn.BatchNorm2d"):
        net(x, paths=Paths(torch.tensor([[1, 1, 1], [3, 1, 1], [1, 1, 1], [1, 1, 1]])))
