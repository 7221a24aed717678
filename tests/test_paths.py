"""What each gate means, exactly: the testable properties of the papers, in float64."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from pathnet import Gate, PathResNet, Paths, use_backend
from pathnet.ops import stage
from pathnet.profile import count
from pathnet.route import Route

NETS = [
    dict(block="basic"),
    dict(block="basic", shortcut="conv"),
    dict(block="preact"),
    dict(block="preact", shortcut="conv"),
    dict(depth=11, block="bottleneck", shortcut="conv"),
]
N = 3  # blocks


def make(training: bool = False, dtype=torch.float64, **options) -> tuple[PathResNet, torch.Tensor]:
    torch.manual_seed(0)
    net = PathResNet(**{"depth": 8, "width": 4, **options}).to(dtype).train(training)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net, torch.randn(4, 3, 8, 8, dtype=dtype)


def gradients(net, x, paths=None):
    """Logits, the gradient at the input and every parameter's (None where there is none)."""
    x = x.clone().requires_grad_()
    net.zero_grad(set_to_none=True)
    y = net(x, paths=paths) if paths is not None else net(x)
    y.square().sum().backward()
    return y.detach(), x.grad, [p.grad for p in net.parameters()]


class Plain(nn.Module):
    """The same net by its children, as one writes it without pathnet; gates[i] cuts gradients with detach."""

    def __init__(self, net: PathResNet, gates=None, order=None, multiplier=None) -> None:
        super().__init__()
        self.net, self.gates = net, gates or [Gate.FULL] * net.num_blocks
        self.order = order or range(net.num_blocks)
        self.multiplier = multiplier or [1.0] * net.num_blocks

    def forward(self, x):
        net = self.net
        x = net.conv1(x)
        x = x if net.bn1 is None else net.relu(net.bn1(x))
        for i in self.order:
            block, gate = net.blocks[i], self.gates[i]
            skip = block.shortcut(x)
            if gate == Gate.OFF:
                x = skip if block.has_identity_shortcut else block.activation(skip)
                continue
            f = self.multiplier[i] * block.residual(x)
            f = f.detach() if gate == Gate.FORWARD else f
            skip = skip.detach() if gate == Gate.RESIDUAL else skip
            x = block.activation(f + skip)
        x = x if net.bn is None else net.relu(net.bn(x))
        return net.fc(net.avgpool(x).flatten(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_full_is_the_plain_net_bit_for_bit(options, training, dtype):
    """Property 5 of the reference: outputs, every gradient, running statistics."""
    net, x = make(training, dtype, **options)
    twin, _ = make(training, dtype, **options)
    expected = gradients(Plain(twin), x)
    for paths in (None, Paths.keep(N, range(N)), Paths.keep(N, range(N)).reordered(range(N))):
        fresh, _ = make(training, dtype, **options)
        with use_backend("reference"):
            y, grad_x, grads = gradients(fresh, x, paths)
        assert torch.equal(y, expected[0]) and torch.equal(grad_x, expected[1])
        plain = {name: p.grad for name, p in twin.named_parameters()}
        assert all(torch.equal(g, plain[name]) for g, (name, _) in zip(grads, fresh.named_parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", NETS)
def test_each_gate_is_its_plain_pytorch_form(options, training):
    """Rows OFF, FULL, FORWARD and RESIDUAL of the table against detach and skipping; properties 5, 6 and 7."""
    mixes = [[0, 1, 2], [2, 2, 2], [4, 0, 1], [1, 4, 2], [0, 0, 0], [4, 4, 4], [2, 0, 4]]
    for gates in mixes:
        net, x = make(training, **options)
        twin, _ = make(training, **options)
        y, grad_x, grads = gradients(net, x, Paths(gates))
        expected_y, expected_x, _ = gradients(Plain(twin, gates), x)
        plain = {name: p.grad for name, p in twin.named_parameters()}
        torch.testing.assert_close(y, expected_y, rtol=0, atol=1e-12)
        torch.testing.assert_close(grad_x, expected_x, rtol=1e-10, atol=1e-11)
        for got, (name, _) in zip(grads, net.named_parameters(), strict=True):
            want = plain[name]
            if got is None:
                assert want is None or not want.any(), name
            else:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=name)
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize("options", NETS)
def test_untouched_parameters_have_no_gradient(options):
    net, x = make(**options)
    for gates in ([0, 2, 3], [3, 3, 3], [4, 0, 2]):
        gradients(net, x, Paths(gates))
        for block, gate in zip(net.blocks, gates, strict=True):
            shortcut = [] if block.downsample is None else list(block.downsample.parameters())
            branch = [p for name in set(block.branch) for p in getattr(block, name).parameters()]
            assert all((p.grad is not None) == (gate in (Gate.FULL, Gate.RESIDUAL)) for p in branch)
            trained = gate in (Gate.FULL, Gate.OFF, Gate.FORWARD)
            assert all((p.grad is not None) == trained for p in shortcut)


@pytest.mark.parametrize("options", NETS)
def test_frozen_passes_the_gradient_and_leaves_everything_still(options):
    net, x = make(True, **options)
    twin, _ = make(True, **options)
    y, grad_x, grads = gradients(net, x, Paths.frozen(N, [1]))
    expected_y, expected_x, _ = gradients(Plain(twin), x)
    assert torch.equal(y, expected_y) and torch.equal(grad_x, expected_x)
    block, twin_block = net.blocks[1], twin.blocks[1]
    assert all(p.grad is None for p in block.parameters())
    fresh, _ = make(True, **options)
    for name in set(block.branch):
        for a, b in zip(getattr(block, name).buffers(), getattr(fresh.blocks[1], name).buffers(), strict=True):
            assert torch.equal(a, b), "running statistics of a FROZEN branch must stay"
    if block.downsample is not None:
        for a, b in zip(block.downsample.buffers(), twin_block.downsample.buffers(), strict=True):
            assert torch.equal(a, b), "a projection updates its own batch norm under every gate"


@pytest.mark.parametrize("gates, moved", [([1, 2, 4], [1, 1, 1]), ([0, 3, 1], [0, 0, 1])])
def test_running_statistics_move_once_where_a_block_runs(gates, moved):
    for options in NETS:
        net, x = make(True, **options)
        gradients(net, x, Paths(gates))
        for block, times in zip(net.blocks, moved, strict=True):
            assert block.bn1.num_batches_tracked == times and block.bn2.num_batches_tracked == times
            for child in block.downsample.children() if block.downsample is not None else ():
                if isinstance(child, nn.BatchNorm2d):
                    assert child.num_batches_tracked == 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", NETS)
def test_single_paths_add_up_to_the_gradient(options, training):
    """Property 1: the sum over all 2^n single paths is the gradient; every path has the plain net's value."""
    net, x = make(training, **options)
    y, grad_x, _ = gradients(net, x)
    total = torch.zeros_like(x)
    for k in range(N + 1):
        for chosen in combinations(range(N), k):
            value, gradient, _ = gradients(net, x, Paths.single(N, chosen))
            assert torch.equal(value, y)
            total += gradient
    assert (total - grad_x).norm() / grad_x.norm() < 1e-12


@pytest.mark.parametrize("options", NETS)
def test_length_graded_sums_follow_the_recursion(options):
    """Properties 2 and 3: the exact vector sum of all C(n, k) paths by block vector-Jacobian products."""
    net, x = make(**options)
    inputs, z = [], x.clone().requires_grad_()
    h = net.stem(z)
    for block in net.blocks:
        inputs.append(h.detach().requires_grad_())
        h = block(inputs[-1])
    top = h.detach().requires_grad_()
    graded = {0: torch.autograd.grad(net.head(top).square().sum(), top)[0]}
    for block, inside in zip(reversed(net.blocks), reversed(inputs), strict=True):
        parts = {}
        for gate, step in ((Gate.RESIDUAL, 1), (Gate.FORWARD, 0)):
            out = net_block(block, inside, gate)
            for k, g in graded.items():
                piece = torch.autograd.grad(out, inside, g, retain_graph=True)[0]
                parts[k + step] = parts.get(k + step, 0) + piece
        graded = parts
    stem = torch.autograd.grad(net.stem(z), z, sum(graded.values()))[0]
    assert (stem - gradients(net, x)[1]).norm() / stem.norm() < 1e-12
    scaled = {t: sum(t**k * g for k, g in graded.items()) for t in (0.0, 0.5)}
    for t, want in scaled.items():
        torch.testing.assert_close(want, graded_by_scaling(net, inputs, top, t), rtol=1e-9, atol=1e-12)


def net_block(block, x, gate):
    one = torch.ones(1, dtype=torch.float64)
    return stage(x, [block.spec()], Route(torch.tensor([int(gate)], dtype=torch.int8), one))


def graded_by_scaling(net, inputs, top, t):
    """Backward with the residual gradient multiplied by t: sum over k of t^k G_k."""
    g = torch.autograd.grad(net.head(top).square().sum(), top)[0]
    for block, inside in zip(reversed(net.blocks), reversed(inputs), strict=True):
        through = torch.autograd.grad(net_block(block, inside, Gate.RESIDUAL), inside, g)[0]
        around = torch.autograd.grad(net_block(block, inside, Gate.FORWARD), inside, g)[0]
        g = t * through + around
    return g


def test_off_is_the_identity_exactly_where_the_stream_is_not_negative():
    """Property 12: act(x) = x after a ReLU; before one they differ, and OFF is the identity all the same."""
    net, x = make(block="basic")
    block = net.layer1[0]
    stream = net.stem(x)
    assert (stream >= 0).all() and torch.equal(block.activation(stream.clone()), stream)
    off = net_block(block, -stream, Gate.OFF)
    assert torch.equal(off, -stream) and not torch.equal(torch.relu(-stream), -stream)


@pytest.mark.parametrize("options", NETS)
def test_order_and_multipliers(options):
    """Property 13: the order is the plain net's in that order; gates and multipliers go with the block."""
    options = {**options, "depth": {8: 14, 11: 20}[options.get("depth", 8)]}
    net, x = make(**options)
    swap = [1, 0, 2, 3, 4, 5]
    if [0, 1] not in net.swappable():  # a projection stands at the start
        swap = [0, 1, 2, 3, 4, 5]
    gates, factors = [1, 0, 1, 2, 1, 4], [1.0, 0.5, -2.0, 0.25, 1.0, 3.0]
    twin, _ = make(**options)
    y, grad_x, _ = gradients(net, x, Paths(gates).scaled(factors).reordered(swap))
    expected = gradients(Plain(twin, gates, swap, factors), x)
    torch.testing.assert_close(y, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_x, expected[1], rtol=1e-10, atol=1e-11)
    rows = torch.tensor(factors).expand(4, 6).clone()
    per_row = gradients(net, x, Paths(gates).scaled(rows).reordered(swap))
    torch.testing.assert_close(per_row[0], y, rtol=1e-6, atol=1e-6)


def test_orders_stay_inside_groups_of_equal_shape():
    net, x = make(depth=14)
    assert net.swappable() == [[0, 1], [3], [2], [5], [4]]
    with pytest.raises(ValueError, match="block 2 at position 1"):
        net(x, paths=Paths.keep(6, range(6)).reordered([0, 2, 1, 3, 4, 5]))
    deep = PathResNet(20)
    assert deep.swappable() == [[0, 1, 2], [4, 5], [3], [7, 8], [6]]


@pytest.mark.parametrize("block, bits", [("basic", 1), ("preact", 0)])
def test_what_a_run_of_blocks_stores(block, bits):
    """By the reference: FORWARD blocks store one bit an element together, or nothing; OFF blocks nothing."""
    net, _ = make(training=True, depth=20, block=block, dtype=torch.float32)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    ones = torch.ones(3, dtype=torch.float64)

    def saved(gate):
        with use_backend("reference"):
            return count(net.layer1, x, Route(torch.full((3,), int(gate), dtype=torch.int8), ones)).saved

    assert saved(Gate.FORWARD) == bits * -(-x.numel() // 8)
    assert saved(Gate.OFF) == 0
    assert saved(Gate.FULL) > 6 * x.numel() * 4
