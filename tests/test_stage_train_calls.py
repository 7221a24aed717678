"""stage_train on the CPU kernels: what is saved, which blocks share a call, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, make_stage, specs
from torch.autograd import forward_ad
from training_cases import SIDE, TRAINED_FORMS, C, N, blocks_of, stage_of, stream, train

from pathnet import PathResNet, Paths, explain, extension, profile, use_backend
from pathnet.blocks import BLOCKS
from pathnet.ops.stage_train import SUPPORTS
from pathnet.profile import count

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")


@pytest.fixture(autouse=True)
def on_the_kernels():
    with use_backend("cpu"):
        yield


STATE = 4 / (N * SIDE * SIDE)  # of a batch norm, in streams: mean, inverse deviation, scale and shift
STATES = 2 * STATE  # of a block of two
IN_EAGER_MODE = ("test_schema", "test_autograd_registration", "test_faketensor")  # graphs hold stage_traced instead


def saved(form: str, gates: list[int]) -> float:
    """Bytes that the forward keeps for its backward, in multiples of the stream."""
    channels = C * BLOCKS[form].expansion
    stage, x = stage_of(form, len(gates), channels), stream(channels=channels)
    return count(lambda_module(lambda x: train(stage, x, gates), stage), x).saved / (x.numel() * x.element_size())


def lambda_module(function, stage):
    module = torch.nn.Module()
    module.stage, module.forward = stage, function
    return module


@pytest.mark.parametrize(
    "form, gates, streams",
    [
        ("basic", [0, 0, 0, 0], 0),
        ("preact", [0, 0, 0, 0], 0),
        ("basic", [2, 2, 2, 2], 1 / 32),
        ("basic", [2, 0, 2, 2], 1 / 32),
        ("preact", [2, 2, 2, 2], 0),
        ("basic", [1, 1, 1, 1], 4 * (3 + 1 / 32 + STATES)),
        ("basic", [3, 4, 3, 4], 2 * (2 + 3) + 4 * (1 / 32 + STATES)),
        ("preact", [1, 1, 1, 1], 4 * (2 + STATES)),
        ("preact", [3, 4, 3, 4], 4 * (2 + STATES)),
        ("basic", [2, 2, 1, 2], 1 / 32 + 3 + 1 / 32 + STATES),
        ("preact", [2, 2, 1, 2], 2 + STATES),
        ("basic", [1, 0, 0, 0], 3 + 1 / 32 + STATES),
        ("bottleneck", [2, 0, 2, 2], 1 / 32),
        ("bottleneck", [1, 1, 1, 1], 4 * (2.5 + 1 / 32 + 3 * STATE)),
        ("preact_bottleneck", [2, 2, 2, 2], 0),
        ("preact_bottleneck", [3, 4, 1, 2], 3 * (1.5 + 3 * STATE)),
        ("bottleneck", [3, 4, 3, 2], 2 * 1.5 + 2.5 + 3 * (1 / 32 + 3 * STATE)),
    ],
    ids=str,
)
def test_what_a_stage_saves(form, gates, streams):
    """3 T and a bit an element for each FULL block after ReLUs, 2 T before them; a bit for a run of FORWARD blocks.

    A bottleneck's inner values are a quarter of the stream each.
    """
    assert saved(form, gates) == streams


def test_blocks_before_the_first_gradient_save_nothing():
    stage = stage_of(blocks=4)
    for block in stage[:3]:
        block.requires_grad_(False)
    module = lambda_module(lambda x: train(stage, x), stage)
    x = stream(requires_grad=False)
    assert count(module, x).saved < 3.1 * x.numel() * x.element_size()


def test_without_a_gradient_statistics_move_and_nothing_is_saved():
    """Batch norm is re-estimated, and reentrant checkpointing runs forward, by the training kernels too."""
    stage, x = stage_of(), stream()
    twin = copy.deepcopy(stage)
    with torch.no_grad(), Recorder() as recorder:
        y = stage(x)
    assert (
        len(recorder.calls) == 1 and not y.requires_grad and count(stage.requires_grad_(False), x.detach()).saved == 0
    )
    assert torch.equal(y, twin(x))
    stage = copy.deepcopy(twin)
    with torch.no_grad():
        stage(x), twin(x.detach())
    assert all(torch.equal(a, b) for a, b in zip(stage.buffers(), twin.buffers(), strict=True))


# ---- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gates, shortcut, runs",
    [
        ([1, 2, 3, 4], "identity", [4]),
        ([1, 0, 0, 4], "identity", [2]),
        ([0, 0, 0, 0], "identity", []),
        ([1, 2, 3, 4], "conv", [4]),
        ([0, 2, 0, 4], "conv", [2]),
        ([0, 0, 0, 0], "conv", []),
    ],
    ids=str,
)
def test_blocks_share_a_call(gates, shortcut, runs):
    stage = stage_of() if shortcut == "identity" else make_stage("basic", "conv", blocks=4).train()
    with Recorder() as recorder:
        train(stage, stream(), gates).sum().backward()
    calls = [blocks_of(args) for func, args in recorder.calls if func is torch.ops.pathnet.stage_train_fwd.default]
    assert calls == runs and len(recorder.calls) == 2 * len(runs)


@pytest.mark.parametrize("form", TRAINED_FORMS)
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_the_registered_ops_pass_opcheck(form, shortcut):
    """With the arguments that they really get: several gates, statistics and memory formats."""
    stage = make_stage(form, shortcut).train()
    stage[1].bn1.eval()
    x = torch.randn(3, 16, 10, 6)
    with Recorder() as recorder:
        for gates in ([1, 1, 1], [2, 3, 2], [4, 2, 1]):
            train(stage, x.requires_grad_(), gates).square().sum().backward()
            x = x.detach().to(memory_format=torch.channels_last)
    assert len(recorder.calls) == 6
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        torch.library.opcheck(func, detached, test_utils=IN_EAGER_MODE)


def test_profile_names_the_kernels():
    net = PathResNet(8, width=8).train()
    kernels = profile(net, torch.randn(2, 3, 8, 8), backward=True).kernels
    assert kernels["pathnet.stage_train_fwd"].launches == kernels["pathnet.stage_train_bwd"].launches == 3


# ---- what is refused -------------------------------------------------------------------------------------------------


def grouped(stage):
    stage[1].conv1 = torch.nn.Conv2d(C, C, 3, padding=1, groups=2, bias=False)


REFUSALS = {
    "double": (lambda stage: stage.double(), "float64"),
    "bias": (lambda stage: setattr(stage[1], "conv1", torch.nn.Conv2d(C, C, 3, padding=1)), "bias"),
    "groups": (grouped, "groups"),
    "dilation": (lambda stage: setattr(stage[1].conv1, "dilation", (2, 2)), "dilation"),
    "1x1": (lambda stage: setattr(stage[1], "conv1", torch.nn.Conv2d(C, C, 1, bias=False)), "kernels of"),
    "stride": (lambda stage: setattr(stage[1].conv1, "stride", (3, 3)), "stride 3"),
    "strides": (lambda stage: setattr(stage[1].conv2, "stride", (2, 2)), "strides of the branch"),
    "affine": (lambda stage: setattr(stage[1], "bn1", torch.nn.BatchNorm2d(C, affine=False)), "no affine weights"),
    "statistics": (
        lambda stage: setattr(stage[1], "bn1", torch.nn.BatchNorm2d(C, track_running_stats=False)),
        "tracks no statistics",
    ),
    "momentum": (lambda stage: setattr(stage[1].bn1, "momentum", None), "momentum=None"),
    "activation": (lambda stage: setattr(stage[1], "relu", torch.nn.GELU()), "known forms"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_forced_backend_says_why_it_cannot(name):
    change, words = REFUSALS[name]
    stage = stage_of()
    change(stage)
    with pytest.raises(RuntimeError, match=words):
        train(stage, stream())
    assert SUPPORTS["reference"](stream(), specs(stage)) is None


def test_sides_and_modes_are_refused():
    stage = stage_of()
    blocks = specs(stage)
    assert "float64" in SUPPORTS["cpu"](stream().double(), blocks)
    assert "no image" in SUPPORTS["cpu"](torch.randn(0, C, 8, 8), blocks)
    assert "one pixel" in SUPPORTS["cpu"](torch.randn(9, C, 1, 2), specs(make_stage("basic", "conv")))
    for form in TRAINED_FORMS[1:]:
        assert "even sides" in SUPPORTS["cpu"](torch.randn(2, C, 9, 8), specs(make_stage(form, "conv")))
    first = make_stage("bottleneck", "conv")
    first[0].conv1.stride, first[0].conv2.stride = (2, 2), (1, 1)
    assert "strides of the branch" in SUPPORTS["cpu"](torch.randn(2, C, 8, 8), specs(first))
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in SUPPORTS["cpu"](stream(), blocks)
    with forward_ad.dual_level():
        assert "forward-mode" in SUPPORTS["cpu"](stream(), blocks)


@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_batches_of_nothing_and_statistics_of_one_value_are_plain_pytorch_s(form):
    stage = make_stage(form, "conv")
    with use_backend("reference"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathnet.backend._forced", None)
        y = train(stage, x := torch.randn(0, C, 8, 8, requires_grad=True))
        y.sum().backward()
        assert y.shape == (0, C * BLOCKS[form].expansion, 4, 4) and x.grad.shape == x.shape
        assert not any(p.grad.any() for p in stage.parameters())
        with pytest.raises(ValueError, match="at least two values a channel, but 1 image.* of 1x1 pixels"):
            train(stage.train(), torch.randn(1, C, 2, 2))


def test_function_transforms_run_on_the_reference():
    stage, x = stage_of().eval(), stream()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathnet.backend._forced", None)
        expected = torch.autograd.grad(train(stage, x).sum(), x)[0]
        torch.testing.assert_close(torch.func.grad(lambda z: train(stage, z).sum())(x), expected, rtol=1e-3, atol=1e-4)
        with forward_ad.dual_level():
            y = train(stage, forward_ad.make_dual(x, torch.ones_like(x)))
            tangent = forward_ad.unpack_dual(y).tangent
        torch.testing.assert_close(tangent.sum(), expected.sum(), rtol=1e-2, atol=1e-2)


def test_explain_names_the_kernels():
    net, x = PathResNet(8, width=8).train(), torch.randn(2, 3, 8, 8)
    assert [row.backend for row in explain(net, x).blocks] == ["cpu"] * 3
    assert net(x, paths=Paths([1, 2, 4])).requires_grad
