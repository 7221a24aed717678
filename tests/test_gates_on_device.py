"""Nets whose gates are a tensor on the device: the same numbers as with gates on the host, and zeros for None."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from triton_cases import DEVICE, on_device

from pathnet import Gate, PathResNet, Paths, explain, profile, use_backend
from pathnet.models import PathVGG

pytestmark = on_device

GATES = [[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2]]  # a ResNet-14; blocks 2 and 4 stride


def net_of(block="basic", shortcut="pad", dtype=torch.float32, **kwargs) -> PathResNet:
    depth = 20 if block == "bottleneck" else 14
    return PathResNet(depth, block=block, shortcut=shortcut, width=8, **kwargs).to(DEVICE, dtype).train()


def images(dtype=torch.float32):
    return torch.randn(2, 3, 8, 8, dtype=dtype, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(1))


def on_the_device(gates) -> torch.Tensor:
    return torch.tensor(gates, dtype=torch.int8, device=DEVICE)


def step(net, x, paths) -> dict[str, torch.Tensor]:
    """Logits, gradients (zeros for None) and buffers that a copy of the net has after one step."""
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    y = net(x, paths=paths)
    y.square().sum().backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(net.named_buffers())}


def assert_same(got, expected) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, msg=lambda words, name=name: f"{name}: {words}")


@pytest.mark.parametrize("block, shortcut", [("basic", "pad"), ("preact", "conv"), ("bottleneck", "conv")])
def test_plain_pytorch_gives_what_gates_on_the_host_give(block, shortcut):
    net, x, gates = net_of(block, shortcut, torch.float64), images(torch.float64), on_the_device(GATES[0])
    paths, scales = Paths.on_device(gates).scaled(0.5), [0.5] * 6
    for own in GATES:
        gates.copy_(on_the_device(own))  # the paths are the same, and what they hold counts
        with use_backend("reference"):
            assert_same(step(net, x, paths), step(net, x, Paths(own).scaled(scales)))


def test_the_kernels_take_the_gates_of_a_net(poisoned):
    net, x, gates = net_of(), images(), on_the_device(GATES[0])
    paths = Paths.on_device(gates)
    for own in GATES[1:]:
        gates.copy_(on_the_device(own))
        with use_backend("triton"):
            got = step(net, x, paths)
        with use_backend("reference"):
            assert_same(got, step(net, x, Paths(own)))


def test_running_statistics_do_not_wait_for_training():
    net, x = net_of(dtype=torch.float64).eval(), images(torch.float64)
    with torch.no_grad(), use_backend("reference"):
        assert_same({"y": net(x, paths=Paths.on_device(on_the_device(GATES[1])))}, {"y": net(x, paths=Paths(GATES[1]))})


def test_a_recomputation_moves_no_running_statistics():
    from torch.utils.checkpoint import checkpoint

    net, x, paths = net_of(dtype=torch.float64), images(torch.float64), Paths.on_device(on_the_device(GATES[2]))
    once = step(net, x, paths)
    checkpoint(net, x.requires_grad_(), paths, use_reentrant=False).sum().backward()
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, once[name]), name


def test_explain_tells_which_blocks_the_kernels_take():
    net, x = net_of(), images()
    with use_backend("triton"):
        rows, host = explain(net, x, Paths.on_device(on_the_device(GATES[0]))).blocks, explain(net, x).blocks
    assert {row.op for row in rows} == {"stage_masked"} and {row.op for row in host} == {"stage_train"}
    assert [row.backend for row in rows] == ["triton", "triton", "reference", "triton", "reference", "triton"]
    assert "not the identity" in rows[2].reasons["triton"]


def counted(paths):
    net = PathResNet(8, width=8).to(DEVICE).train()
    with use_backend("triton"):
        return profile(net, images(), paths, backward=True)


def test_profile_counts_as_if_all_were_full():
    full, off = (counted(Paths.on_device(on_the_device([gate] * 3))) for gate in (1, 0))
    launches = [{name: kernel.launches for name, kernel in each.kernels.items()} for each in (full, off)]
    assert launches[0] == launches[1] and launches[0]["pathnet.triton masked: forward conv1"] == 1
    none = counted(Paths([0] * 3))
    assert full.saved == off.saved > none.saved and full.launches > none.launches


def test_paths_on_the_device_are_values_that_somebody_else_may_write():
    gates = on_the_device([1, 0, 2])
    paths = Paths.on_device(gates)
    assert paths.gates is gates and paths == Paths.on_device(gates) != Paths.on_device(gates.clone())
    assert paths.live and not Paths([1, 0, 2]).live and repr(paths) == f"Paths(3: on {gates.device})"
    assert hash(paths) == hash(Paths.on_device(gates)) and pickle.loads(pickle.dumps(paths)).live
    assert paths.scaled(2.0).live and paths.scaled(2.0).gates is gates


def through_vgg(paths) -> None:
    net = PathVGG().to(DEVICE)
    net(torch.rand(2, 3, 32, 32, device=DEVICE), paths=paths)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Paths.on_device([1, 0]), TypeError, "int8 tensor, got list"),
        (lambda: Paths.on_device(torch.ones(2)), TypeError, "got torch.float32"),
        (lambda: Paths.on_device(on_the_device([[1, 0]])), ValueError, r"shape \[blocks\]"),
        (lambda: Paths.on_device(on_the_device([1, 3])), ValueError, "OFF, FULL or FORWARD, got 3"),
        (lambda: Paths.on_device(on_the_device([1, 0])).reordered([1, 0]), ValueError, "order must be"),
        (lambda: Paths.on_device(on_the_device([1, 0])).scaled([[1.0, 2.0]]), ValueError, "one a block"),
        (lambda: net_of()(images(), paths=Paths.on_device(on_the_device([1]))), ValueError, "each of the net's 6"),
        (lambda: through_vgg(Paths.on_device(on_the_device([1] * 13))), ValueError, "on the host"),
    ],
)
def test_wrong_arguments_get_a_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_child_that_was_swapped_is_refused():
    net = net_of()
    net.blocks[1].conv1.register_forward_hook(lambda *call: None)
    with pytest.raises(ValueError, match="hooked or swapped"):
        net(images(), paths=Paths.on_device(on_the_device([Gate.FULL] * 6)))
