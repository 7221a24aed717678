"""torch.compile: one graph for changing gates, equal results, untouched parameters, registered ops."""

from __future__ import annotations

import pytest
import torch
from test_paths import make
from torch._dynamo.testing import CompileCounterWithBackend

from pathnet import Gate, PathResNet, Paths
from pathnet.samplers import DropPath, KeepExactly, ResidualDropPath


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_same_step(net, twin, compiled, x, *, tolerance: float = 1e-9, **kwargs):
    for model in (net, twin):
        model.zero_grad()
    y = compiled(x, **kwargs)
    y.square().sum().backward()
    z = twin(x, **kwargs)
    z.square().sum().backward()
    torch.testing.assert_close(y, z, rtol=tolerance, atol=tolerance)
    for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance, msg=name)
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options, sampler, steps",
    [
        (dict(block="basic"), KeepExactly(1), 50),
        (dict(block="preact"), ResidualDropPath(0.5), 6),
        (dict(block="basic", shortcut="conv"), DropPath(0.3), 6),
    ],
)
def test_fifty_steps_of_changing_gates_make_at_most_two_graphs(options, sampler, steps):
    net, x = make(training=True, paths=sampler, **options)
    twin, _ = make(training=True, paths=sampler, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for _ in range(steps):
        assert_same_step(net, twin, compiled, x)
    assert counter.frame_count <= 2 and int(net._draws.step) == steps
    net.eval(), twin.eval()
    torch.testing.assert_close(compiled(x), twin(x))


def test_explicit_paths_are_data_too():
    net, x = make(training=True)
    twin, _ = make(training=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for gates in ([0, 1, 2], [4, 3, 1], [0, 0, 0], [2, 2, 2], [1, 1, 1]):
        assert_same_step(net, twin, compiled, x, paths=Paths(gates))
    assert counter.frame_count <= 2


def test_a_plain_net_is_traced_through():
    net, x = make(training=True)
    twin, _ = make(training=True)
    assert_same_step(net, twin, torch.compile(net, fullgraph=True, backend="aot_eager"), x)


def test_a_penalty_on_the_weights_keeps_its_gradient():
    net, x = make(training=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    weight = net.layer2[0].conv1.weight
    (compiled(x, paths=Paths.delete(3, [1])).sum() + weight.square().sum()).backward()
    torch.testing.assert_close(weight.grad, 2 * weight)
    assert net.layer2[0].conv2.weight.grad is None


def test_evaluation_compiles_with_lesions():
    torch.manual_seed(0)
    net, x = PathResNet(8, width=8).eval(), torch.randn(2, 3, 8, 8)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    with torch.no_grad():
        for gates in ([1, 0, 1], [0, 0, 0], [1, 1, 0]):
            torch.testing.assert_close(
                compiled(x, paths=Paths(gates)), net(x, paths=Paths(gates)), rtol=1e-4, atol=1e-5
            )
    assert counter.frame_count <= 2


@pytest.mark.parametrize("training", [False, True])
def test_a_changed_child_is_called_in_a_compiled_net(training):
    """Gates are data then, so the graph breaks there; the values are the module's own."""
    net, x = make(training)
    twin, _ = make(training)
    for model in (net, twin):
        model.layer2[0].relu = torch.nn.GELU()
    compiled = torch.compile(net, backend="aot_eager")
    assert_same_step(net, twin, compiled, x, paths=Paths([1, 1, 2]))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, paths=Paths([0, 1, 1])), twin(x, paths=Paths([0, 1, 1])))


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_reaches_the_traced_ops(grad):
    net, x = make(dtype=torch.float32)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        for paths in (Paths([1, 0, 1]), Paths([2, 1, 3])):
            torch.testing.assert_close(compiled(x, paths=paths), net(x, paths=paths), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_the_default_compiler():
    net, x = make(training=True, paths=KeepExactly(1), dtype=torch.float32)
    twin, _ = make(training=True, paths=KeepExactly(1), dtype=torch.float32)
    compiled = torch.compile(net, fullgraph=True)
    for _ in range(3):
        assert_same_step(net, twin, compiled, x, tolerance=2e-3)


def test_the_registered_ops_pass_opcheck():
    """Schema, fake and tracing of the ops that compiled graphs hold, with the arguments that they really get."""
    from pathnet.ops.packing import pack
    from pathnet.ops.stage import Route

    net, x = make(training=True, shortcut="conv")
    ops = torch.ops.pathnet
    for stage in (net.layer1, net.layer2):
        h = torch.randn(3, stage[0].conv1.in_channels, 6, 6, dtype=torch.float64)
        packed = pack([block.spec() for block in stage])
        params = [p.detach() for p in packed.params]
        for gates in ([Gate.FULL], [Gate.OFF], [[0], [1], [3]]):
            route = Route(torch.tensor(gates, dtype=torch.int8), torch.ones(1, dtype=torch.float64))
            numbers = (packed.layout, packed.constants)
            call = (h, route.gates, route.multiplier, params, packed.moving, packed.fixed, *numbers, True, False, "")
            torch.library.opcheck(ops.stage_traced_fwd.default, call)
            y = ops.stage_traced_fwd(*call)
            needs = [True] * (1 + len(params))
            back = (y, h, *route[:3], params, packed.fixed, *numbers, needs, False, "", True)
            torch.library.opcheck(ops.stage_traced_bwd.default, back)
    torch.library.opcheck(ops.draw.default, (torch.zeros((), dtype=torch.int64), repr(DropPath(0.5)), 4, 3))
