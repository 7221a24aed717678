"""stage_eval on the Triton kernels: values against float64, launches and bytes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, assert_errs_like_eager, double, make_stage, specs
from training_cases import route_of
from triton_cases import DEVICE, halves, on_device

from pathnet import PathResNet, Paths, use_backend
from pathnet.backend import refusal
from pathnet.kernels.catalogue import meta_eval
from pathnet.ops.stage_eval import SUPPORTS, stage_eval

pytestmark = on_device


def compare(stage, x, route=None) -> None:
    stage = stage.to(DEVICE)
    with torch.no_grad(), use_backend("triton"):
        got = stage_eval(x.to(DEVICE), specs(stage), route)
    with torch.no_grad(), use_backend("reference"):
        eager = stage_eval(x.to(DEVICE), specs(stage), route)
        truth = stage_eval(x.to(DEVICE).double(), specs(double(stage)), route)
    assert got.dtype == x.dtype
    assert_errs_like_eager(got, eager, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shortcut, gates", [("conv", [1, 2, 0]), ("pad", [0, 3, 4])])
def test_values(shortcut, gates, dtype, poisoned):
    stage = make_stage("basic", shortcut, width=24)
    stage = stage if dtype == torch.float32 else halves(stage, dtype)
    compare(stage, torch.rand(2, 16, 7, 5).to(dtype), route_of(gates, [1.0, -0.5, 2.0]))


@pytest.mark.parametrize("shape", [(1, 72, 3, 3), (1, 8, 5, 13)], ids=str)
def test_sizes_around_the_block_limits(shape, poisoned):
    compare(make_stage("basic", "pad", shape[1], shape[1], stride=1, blocks=1), torch.randn(shape))


def test_memory_format_and_autograd(poisoned):
    stage, x = make_stage("basic", blocks=2).to(DEVICE), torch.randn(2, 16, 5, 4, device=DEVICE)
    with torch.no_grad(), use_backend("triton"):
        plain, last = (
            stage_eval(x.contiguous(memory_format=form), specs(stage))
            for form in (torch.contiguous_format, torch.channels_last)
        )
    assert torch.equal(plain, last) and plain.is_contiguous() and not last.is_contiguous()


def test_a_whole_net_and_its_lesions():
    net, x = PathResNet(8, num_classes=3, width=8).to(DEVICE).eval(), torch.rand(2, 3, 8, 8, device=DEVICE)
    for paths in (Paths.delete(3, []), Paths.delete(3, [0, 1])):
        with torch.no_grad(), use_backend("reference"):
            expected = net(x, paths=paths)
        with torch.no_grad(), use_backend("triton"):
            torch.testing.assert_close(net(x, paths=paths), expected)


@pytest.mark.parametrize("form, width", [("preact", 24), ("bottleneck", 6)])
def test_values_of_other_forms(form, width, poisoned):
    stage = make_stage(form, "conv", width=width)
    compare(stage, torch.rand(2, 16, 7, 5), route_of([1, 2, 3], [1.0, -0.5, 2.0]))


def test_two_launches_and_five_streams_a_block():
    launches = meta_eval(16, 3, "float16")
    stream = launches[0].arguments["x"].numel()
    sides = [(launch, name) for launch in launches for side in (launch.reads, launch.writes) for name in side]
    large = sum(t.numel() for launch, name in sides if (t := launch.arguments[name]).numel() >= stream)
    assert len(launches) == 2 * 3 and large == 5 * 3 * stream


def test_the_registered_op_passes_opcheck():
    stage, x = make_stage("basic", blocks=1).to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    with torch.no_grad(), use_backend("triton"), Recorder() as recorder:
        stage_eval(x, specs(stage))
    ((func, args),) = recorder.calls
    in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")  # graphs do not hold it
    torch.library.opcheck(func, args, test_utils=in_eager_mode)


def test_what_is_refused_says_why():
    stage, x = make_stage("basic").to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)

    def why(*call) -> str:
        return refusal("stage_eval", "triton", SUPPORTS, x, specs(stage), *call) or ""

    assert why() == "" and "bfloat16 activations" in why("bf16")
