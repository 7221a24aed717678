"""stage_train on the Triton kernels: pre-activation blocks and bottlenecks, as basic ones are tested."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from training_cases import check, images, route_of, step
from triton_cases import DEVICE, DIRECT, compare, halves, interpreted, on_device

from pathnet import Paths, explain, use_backend
from pathnet.blocks import BLOCKS
from pathnet.models import PathResNet
from pathnet.ops.stage_train import stage_train

pytestmark = on_device


@pytest.mark.parametrize(
    "form, width, shortcut, training, gates",
    [
        ("preact", 24, "conv", True, [1, 4, 3]),
        ("preact", 24, "pad", False, [3, 2, 1]),
        ("preact", 24, "pad_end", True, [2, 2, 1]),
        ("bottleneck", 6, "conv", True, [1, 4, 3]),
        ("preact_bottleneck", 6, "conv", True, [1, 4, 3]),
        ("bottleneck", 20, "pad", False, [2, 1]),
    ],
)
def test_a_strided_stage_on_odd_sides(form, width, shortcut, training, gates, poisoned):
    compare(make_stage(form, shortcut, width=width, blocks=len(gates)).train(training), (2, 16, 5, 7), gates)


@pytest.mark.parametrize("form", ["preact", "bottleneck", "preact_bottleneck"])
@pytest.mark.parametrize("gates", [[1, 2, 2, 0, 3, 1], [2, 4, 3, 2]], ids=str)
def test_a_run_of_identity_shortcuts(form, gates, poisoned):
    width = 16 // BLOCKS[form].expansion
    stage = make_stage(form, width=width, stride=1, blocks=len(gates)).train()
    compare(stage, (2, 16, 4, 5), gates, [1.0, 0.5, 1.0, 1.0, -1.5, 2.0][: len(gates)])


@pytest.mark.parametrize("form, width, shape", [("preact", 72, (1, 72, 3, 3)), ("bottleneck", 20, (1, 80, 5, 13))])
def test_more_channels_and_pixels_than_a_tile(form, width, shape, poisoned):
    compare(make_stage(form, "pad", shape[1], width, stride=1, blocks=1).train(), shape, [1])


@pytest.mark.parametrize("form, dtype", [("preact", torch.float16), ("bottleneck", torch.bfloat16)], ids=str)
def test_half_precision(form, dtype, poisoned):
    stage = make_stage(form, "conv", width=16 if form == "preact" else 4, blocks=2).train()
    x = torch.rand(3, 16, 6, 6).to(dtype)
    check("triton", halves(stage, dtype).to(DEVICE), x.to(DEVICE), route_of([1, 3], [0.5, 2.0]), DIRECT)


def test_a_run_of_forward_blocks_keeps_nothing_and_passes_the_gradient_as_it_is():
    stage, x = make_stage("preact", stride=1, blocks=2).train().to(DEVICE), torch.rand(2, 16, 3, 3, device=DEVICE)
    x.requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with use_backend("triton"), Recorder() as recorder:
            y = stage_train(x, specs(stage), route_of([2, 2]), zero_unused=False)
            incoming = torch.randn_like(y)
            assert torch.equal(torch.autograd.grad(y, x, incoming)[0], incoming)
    assert not kept and [func.name() for func, _ in recorder.calls] == ["pathnet::stage_train_triton_fwd"]


def test_a_gradient_that_comes_in_is_not_what_goes_out():
    """Where block 0 alone passes one, its shortcut gets what came: a copy, since an op never returns its input."""
    stage, x = make_stage("preact", "conv", blocks=2).train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    with Recorder() as recorder:
        step("triton", stage, x, route_of([1, 2]))
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(func, detached, test_utils=in_eager_mode)


@pytest.mark.parametrize("block, depth", [("preact", 8), ("bottleneck", 11), ("preact_bottleneck", 11)])
def test_whole_nets(block, depth):
    net = PathResNet(depth, num_classes=3, width=8, block=block).to(DEVICE).train()
    x = torch.rand(2, 3, 8, 8, device=DEVICE)
    with use_backend("triton"):
        assert {row.backend for row in explain(net, x).blocks} == {"triton"}
    outputs = {}
    for backend in ("triton", "reference"):
        with use_backend(backend):
            outputs[backend] = net(x, paths=Paths.backward(3, [1]))
    torch.testing.assert_close(outputs["triton"], outputs["reference"], rtol=1e-3, atol=1e-4)


BUGS = {
    "a gradient without its skip": ("preact", "entering.py", 'ENTERS == "both"', 'ENTERS == "neither"'),
    "the skip's gradient under RESIDUAL": ("preact", "stage_train_preact_bwd.py",
                                           "None if state.blocks.gates[block] == Gate.RESIDUAL", "None if False"),
    "a multiplier that weights do not see": ("preact", "weight_gradient.py", "scale * middle", "middle"),
    "a sum that is not counted": ("preact", "preact_forward.py", "if SUMS:", "if SUMS and IN > OUT:"),
    "a 1x1 tap off the middle": ("bottleneck", "tiles.py", "tap // SIDE - SIDE // 2", "tap // SIDE - 1"),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(plant, bug, poisoned):
    form, *words = BUGS[bug]
    stage = make_stage(form, width=16 if form == "preact" else 4, stride=1, blocks=2).train()
    route = route_of([1, 4], [0.5, 2.0])
    x = images(stage, (2, 16, 3, 4), route)
    plant(*words)
    with pytest.raises(AssertionError):
        check("triton", stage, x, route, DIRECT)
