"""Gates of each image in evaluation on the Triton kernels: values against float64, and bytes by the images that run."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from test_stage_eval_triton import compare
from training_cases import route_of
from triton_cases import DEVICE, assert_requested, halves, interpreted, on_device, requests

from pathnet import PathResNet, Paths, profile, use_backend
from pathnet.backend import refusal
from pathnet.kernels.launch import observed
from pathnet.ops.stage_eval import SUPPORTS, stage_eval

pytestmark = on_device

GATES = [
    [1, 0, 0, 2, 0],
    [0, 0, 0, 0, 0],
    [3, 0, 1, 0, 4],
    [0, 0, 0, 1, 1],
]  # an OFF column, and an image without a block


@pytest.mark.parametrize(
    "channels, dtype, gates",
    [(16, torch.float32, GATES), (24, torch.bfloat16, [[1, 0], [0, 4], [2, 3]]), (72, torch.float32, [[0], [1]])],
    ids=str,
)
def test_values(channels, dtype, gates, poisoned):
    stage = make_stage("basic", "pad", channels, channels, stride=1, blocks=len(gates[0]))
    stage = stage if dtype == torch.float32 else halves(stage, dtype)
    scales = [1.0, -0.5, 2.0, 1.0, 0.5][: len(gates[0])]
    compare(stage, torch.randn(len(gates), channels, 5, 3).to(dtype), route_of(gates, scales))


def test_a_shortcut_that_is_no_identity(poisoned):
    stage = make_stage("basic", "conv", blocks=2).to(DEVICE)
    compare(stage, torch.randn(3, 16, 5, 4, device=DEVICE), route_of([[0, 1], [1, 1], [1, 0]]))


def test_memory_formats_and_what_nobody_may_write(poisoned):
    """An image that runs no block stays as it is, and so does x."""
    stage, route = make_stage("basic", "pad", stride=1, blocks=2).to(DEVICE), route_of([[1, 1], [0, 0], [0, 1]])
    x = torch.randn(3, 16, 5, 4, device=DEVICE)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), use_backend("triton"):
        plain, formatted = (stage_eval(t, specs(stage), route) for t in (x, last))
    assert torch.equal(plain, formatted) and plain.is_contiguous() and not formatted.is_contiguous()
    assert torch.equal(last, x) and torch.equal(plain[1], x[1])


def test_bytes_are_those_of_the_images_that_run():
    """5 T of each block, times its share of the images; and what runs no block is read and written once."""
    net, x = PathResNet(20, num_classes=3, width=16).to(DEVICE).eval(), torch.rand(4, 3, 8, 8, device=DEVICE)
    paths = Paths(torch.tensor(GATES)[:, [0, 2, 3] + [1] * 6])
    with torch.no_grad(), use_backend("triton"):
        kernels = profile(net, x, paths).kernels
    stream, shares = x.numel() // 3 * 16 * 4, 2 / 4 + 1 / 4 + 2 / 4
    copied = kernels["pathnet.triton copy of rows"]
    assert copied.launches == 1 and copied.read - 8 == copied.written == stream / 4
    convs = [kernels[f"pathnet.triton rows: evaluation conv{i}"] for i in (1, 2)]
    small = 9 * 16 * 16 * 4 + 4 * 16 * 4  # a weight and a norm
    tables = 8 * 4 * shares  # an int64 an image, once in conv1 and twice in conv2
    assert sum(kernel.read + kernel.written for kernel in convs) == 5 * stream * shares + 6 * small + 3 * tables


@interpreted
def test_requested_bytes_are_what_the_interpreter_loads_and_stores():
    stage = make_stage("basic", "pad", 24, 24, 1, 3)
    with torch.no_grad(), use_backend("triton"), observed() as launches, requests(launches) as counted:
        stage_eval(torch.rand(4, 24, 7, 6), specs(stage), route_of([[1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]))
    assert [launch.name for launch in launches] == ["rows: evaluation conv1", "rows: evaluation conv2"] * 3 + [
        "copy of rows"
    ]
    assert_requested(launches, counted, least=20)


def test_the_registered_op_passes_opcheck():
    stage, x = make_stage("basic", stride=1, blocks=1).to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    with torch.no_grad(), use_backend("triton"), Recorder() as recorder:
        stage_eval(x, specs(stage), route_of([[1], [0]]))
    ((func, args),) = recorder.calls
    assert func.name() == "pathnet::rows_eval_triton"
    torch.library.opcheck(func, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_what_is_refused_says_why():
    stage, x = make_stage("basic").to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    route = route_of([[1, 1, 1], [1, 0, 1]])

    def why(route) -> str:
        return refusal("stage_eval", "triton", SUPPORTS, x, specs(stage), None, route) or ""

    assert why(route) == ""
    assert 'bn="all"' in why(route._replace(mask_rows=True))
    assert "multipliers differ" in why(route._replace(multiplier=torch.rand(2, 3, dtype=torch.float64)))
