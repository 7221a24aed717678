"""Projection shortcuts on the CPU kernels of training: which they run, what is saved, asked for and refused.

tests/test_stage_train.py has their values under all gates.
"""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, make_stage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import SIDE, TRAINED_FORMS, C, N, check, images, route_of, step, stream, train

from pathnet import PathResNet, explain, extension, use_backend
from pathnet.profile import count

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")


class PyTorchs(TorchDispatchMode):
    """Keeps the names of convolutions and batch norms that PyTorch computes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func.name() or "batch_norm" in func.name():
            self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


def first_of(form: str, stride: int = 2, width: int = C):
    """One block with a projection."""
    return make_stage(form, "conv", width=width, stride=stride, blocks=1).train()


def convolutions_of_pytorch(stage) -> list[str]:
    with use_backend("cpu"), PyTorchs() as pytorchs:
        train(stage, stream()).sum().backward()
    return pytorchs.calls


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_no_convolution_is_left_to_pytorch(form, stride):
    assert convolutions_of_pytorch(first_of(form, stride, 2 * C)) == []


OTHERS = {
    "bias": (lambda h: h.__setitem__(0, nn.Conv2d(C, C, 1, 2)), "bias"),
    "kernel": (lambda h: h.__setitem__(0, nn.Conv2d(C, C, 3, 2, 1, bias=False)), "not 1x1"),
    "affine": (lambda h: h.__setitem__(1, nn.BatchNorm2d(C, affine=False)), "no affine weights"),
    "momentum": (lambda h: setattr(h[1], "momentum", None), "momentum=None"),
    "activation": (lambda h: h.append(nn.ReLU()), "not a convolution with a batch norm"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_shortcuts_are_handed_in(name):
    change, words = OTHERS[name]
    net, stage = PathResNet(8, shortcut="conv").train(), first_of("basic")
    net.layer2[0].downsample = stage[0].downsample
    change(stage[0].downsample)
    assert len(convolutions_of_pytorch(stage)) >= 2
    check("cpu", stage, images(stage, (4, C, 8, 8)))
    report = explain(net, torch.randn(4, 3, 16, 16)).blocks[1]
    assert report.backend == "cpu" and "shortcut alone runs in plain PyTorch" in report.reasons["cpu"]
    assert words in report.reasons["cpu"]


@pytest.mark.parametrize("form", ["bottleneck", "preact_bottleneck"])
@pytest.mark.parametrize("channels, width", [(8, 24), (80, 136), (256, 64)])
def test_channels(form, channels, width, poisoned):
    """Blocks that are not full, several slabs of products, and panels of a few pixels of several images."""
    stage = make_stage(form, "conv", channels, width, blocks=1).train()
    check("cpu", stage, images(stage, (4, channels, 4, 6)))


@pytest.mark.parametrize("gate", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["basic", "preact"])
def test_memory_formats_and_views(form, gate, poisoned):
    stage, route = first_of(form), route_of([gate])
    x = images(stage, (2, C, 8, 10), route)
    last = x.contiguous(memory_format=torch.channels_last)
    view = torch.empty(4, 20, 12, 14)[1:3, 2:18, 1:9, 2:12].copy_(x)
    plain = check("cpu", stage, x, route)
    for other in (last, view):
        assert all(same(a, b) for a, b in zip(step("cpu", stage, other, route).values(), plain.values(), strict=True))


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or torch.equal(a, b)


@pytest.mark.parametrize("form", ["basic", "preact"])
@pytest.mark.parametrize("gates", [[1, 1], [2, 1], [3, 1], [2, 2]], ids=str)
def test_bits_do_not_depend_on_threads(form, gates):
    stage, route, threads = make_stage(form, "conv", blocks=2).train(), route_of(gates), torch.get_num_threads()
    x, results = torch.randn(7, C, 12, 12), []
    try:
        for threads_now in (1, 3):
            torch.set_num_threads(threads_now)
            results.append(step("cpu", stage, x, route))
    finally:
        torch.set_num_threads(threads)
    assert all(same(results[1][name], value) for name, value in results[0].items())


def test_a_recomputation_moves_nothing():
    stage, route = first_of("basic"), route_of([1], update=False)
    got = check("cpu", stage, images(stage, (2, C, 8, 8), route), route)
    assert all(torch.equal(got[name], buffer) for name, buffer in stage.named_buffers())


def test_without_a_gradient_statistics_move_as_with_one():
    stage, x = first_of("basic"), stream()
    twin = copy.deepcopy(stage)
    with use_backend("cpu"):
        y = train(stage, x)
        with torch.no_grad():
            assert torch.equal(train(twin, x), y)
    assert all(torch.equal(a, b) for a, b in zip(stage.buffers(), twin.buffers(), strict=True))


STATE = 4 / (N * SIDE * SIDE)  # of a batch norm, in values of the block: x has half its channels


@pytest.mark.parametrize(
    "form, gate, streams",
    [
        ("basic", 1, 2.5 + 1 + 1 / 32 + 3 * STATE),  # beside the block's own, the projection's output
        ("basic", 2, 0.5 + 1 + 1 / 32 + STATE),  # x and that output
        ("basic", 3, 2 + 1 + 1 / 32 + 3 * STATE),
        ("basic", 4, 2.5 + 1 / 32 + 2 * STATE),  # the block's own alone
        ("preact", 1, 1.5 + 2 * STATE),  # no norm, so no output
        ("preact", 2, 0.5),
        ("preact", 3, 1.5 + 2 * STATE),
        ("preact", 4, 1.5 + 2 * STATE),
    ],
)
def test_what_is_saved(form, gate, streams):
    stage, x = first_of(form, 1, 2 * C), stream()
    module = nn.Module()
    module.stage, module.forward = stage, lambda x: train(stage, x, [gate])
    with use_backend("cpu"):
        assert count(module, x).saved == streams * 2 * x.numel() * x.element_size()


@pytest.mark.parametrize("frozen", [["0.weight"], ["1.weight", "1.bias"], ["0.weight", "1.weight", "1.bias"]], ids=str)
@pytest.mark.parametrize("gates", [[1, 1], [2, 1]], ids=str)
def test_a_gradient_that_nobody_asks_for_changes_no_other(frozen, gates):
    stage, x = make_stage("basic", "conv", blocks=2).train(), stream()
    whole = step("cpu", stage, x, route_of(gates))
    for name in frozen:
        stage[0].downsample.get_parameter(name).requires_grad_(False)
    part = step("cpu", stage, x, route_of(gates))
    gone = {f"0.downsample.{name}" for name in frozen}
    assert all(part[name] is None if name in gone else same(part[name], whole[name]) for name in whole)
    with use_backend("cpu"):
        train(stage, x.detach(), gates).sum().backward()  # x asks for none
    assert all((p.grad is None) == (name in frozen) for name, p in stage[0].downsample.named_parameters())


# ---- what the op refuses ---------------------------------------------------------------------------------------------


def recorded_call(form: str = "basic") -> list:
    with use_backend("cpu"), Recorder() as recorder:
        train(first_of(form), stream(requires_grad=False))
    func, args = recorder.calls[0]
    assert func is torch.ops.pathnet.stage_train_fwd.default
    return list(torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args))


X, SKIP, ROWS, WEIGHTS, NORMS, _, BLOCKS_OF, SCALES = range(8)
WRONG = {
    "first": ({BLOCKS_OF: [4, 2, 1, 0, 2, 1]}, "a projection stands behind the blocks, but is at 0 of 2"),
    "alone": ({BLOCKS_OF: [4, 2, 1]}, "a projection needs a block whose shortcut it is"),
    "form": ({BLOCKS_OF: [0, 2, 1, 5, 2, 1]}, "a form of 0 to 4 for block 1, got 5"),
    "stride": ({BLOCKS_OF: [0, 2, 1, 4, 1, 1]}, "the projection must give what its block gives"),
    "skip": ({SKIP: torch.zeros(N, C, SIDE // 2, SIDE // 2)}, "one shortcut, got skip and projection"),
    "rows": ({ROWS: torch.tensor([0])}, "rows stand for blocks whose shortcut is the identity"),
    "norms": ({NORMS: [torch.ones(C)] * 4}, "norms must hold 6 values"),
    "weights": ({WEIGHTS: [torch.zeros(C, C, 3, 3)] * 2}, "weights must hold 3 values"),
    "kernel": ({WEIGHTS: [torch.zeros(C, C, 3, 3)] * 3}, r"weights\[2\] must have shape \[16, 16, 1, 1\]"),
    "channels": (
        {WEIGHTS: [*[torch.zeros(C, C, 3, 3)] * 2, torch.zeros(2 * C, C, 1, 1)]},
        "the projection must give what its block gives, 16 channels of 8 rows, got 32 of 8",
    ),
}


@pytest.mark.parametrize("gate", [3, 4])
def test_a_gradient_that_the_gate_does_not_give_is_refused(gate):
    with use_backend("cpu"), Recorder() as recorder:
        train(first_of("basic"), stream(), [gate]).sum().backward()
    func, args = recorder.calls[1]
    assert func is torch.ops.pathnet.stage_train_bwd.default
    *rest, needs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)
    torch.ops.pathnet.stage_train_bwd(*rest, needs)
    needs[4] = True  # the projection's weight, behind x, skip and two others
    with pytest.raises(ValueError, match=r"needs\[4\] is True, but the gates of these blocks give no such gradient"):
        torch.ops.pathnet.stage_train_bwd(*rest, needs)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    changes, words = WRONG[name]
    args = recorded_call()
    torch.ops.pathnet.stage_train_fwd(*args)
    for place, value in changes.items():
        args[place] = value
    with pytest.raises(ValueError, match=words):
        torch.ops.pathnet.stage_train_fwd(*args)
