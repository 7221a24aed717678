"""stage_train of pre-activation blocks by the CUDA kernels, executed on the host: against float64, races, bugs."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, specs
from cuda_host.host import SCHEDULES, Edit
from cuda_host.ops import on_host
from cuda_train_cases import assert_found, differences, stage_of, stage_train
from training_cases import check, route_of, step
from triton_cases import DIRECT, halves

from pathnet import use_backend

pytestmark = [pytest.mark.cuda_host, pytest.mark.usefixtures("cuda_anywhere")]


def preact(dtype: torch.dtype, channels: int = 16, blocks: int = 1):
    return stage_of(dtype, channels, blocks, "preact")


def test_forward_blocks_pass_the_gradient_with_no_launch():
    stage, x = preact(torch.bfloat16, blocks=2), torch.randn(3, 16, 14, 15).bfloat16()
    with on_host() as host:
        check("cuda", stage, x, route_of([2, 2]), DIRECT)
    assert host.launches == 1 + 4


def test_statistics_survive_a_mean_far_from_zero():
    stage, x = preact(torch.float16), torch.randn(3, 16, 14, 15).half() + 100
    with on_host():
        check("cuda", stage, x, None, DIRECT)


def test_batch_norms_by_running_statistics():
    stage, x = preact(torch.bfloat16, blocks=2), torch.randn(3, 16, 14, 15).bfloat16()
    stage[0].bn1.eval(), stage[1].bn2.eval()
    with on_host():
        check("cuda", stage, x, None, DIRECT)
        check("cuda", stage.eval(), x, route_of([4, 1]), DIRECT)


@pytest.mark.parametrize("gates", [[1, 1], [2, 1], [1, 2], [4, 3]], ids=str)
def test_a_shortcut_that_is_not_the_identity_has_a_gradient_of_its_own(gates):
    """A projection that keeps the shape, by plain PyTorch; with [1, 2] nothing stands between it and grad_y."""
    stage = preact(torch.bfloat16, blocks=2)
    stage[0].shortcut = halves(torch.nn.Sequential(torch.nn.Conv2d(16, 16, 1, bias=False)), torch.bfloat16)
    x = torch.randn(3, 16, 14, 15).bfloat16()
    with on_host():
        check("cuda", stage, x, route_of(gates), DIRECT)


# ---- schedules and checks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_access_is_allowed_and_every_schedule_gives_the_same_bits(schedule):
    """No race, within a thread block and between them; nothing read that was not written, nothing outside."""
    stage, x, route = preact(torch.bfloat16, blocks=4), torch.randn(4, 16, 17, 18).bfloat16(), route_of([1, 2, 3, 4])
    with on_host():
        expected = step("cuda", stage, x, route)
    with on_host("check", schedule, seed=3):
        assert differences(step("cuda", stage, x, route), expected) == []


def test_every_access_is_allowed_in_float32():
    stage, x = preact(torch.float32, 32, 2), torch.randn(14, 32, 7, 6)
    with on_host("check", "skewed by warp"):
        step("cuda", stage, x)


BUGS = {
    "a sum's gradient written for the rows beside the band, too": ("race between blocks|differs", Edit(
        "stage_train_bwd.cuh", "if (place.mine) g.store", "if (place.inside) g.store")),
    "a sum's gradient that forgets the skip": ("differs", Edit(
        "stage_train_bwd.cuh", "value += Op::load(next.at + i);", "value += 0.f;")),
    "a data gradient without the multiplier": ("differs", Edit(
        "stage_train_bwd.cuh", "scale() * low, scale() * high", "low, high")),
    "a weight gradient without the multiplier": ("differs", Edit(
        "stage_train_weight_gradient.cuh", "= scale * at(i)", "= at(i)")),
    "a skip that is the block's own value": ("uninitialised", Edit(
        "stage_train_preact.cuh", "run.skip : run.input(b);", "run.skip : run.blocks[b].x;")),
    "a gradient overwritten that the next launch reads": ("race|differs", Edit(
        "stage_train_preact.cuh", "kInner = 2, kOuter = 3", "kInner = 2, kOuter = 2")),
    "one buffer for the gradients of two sums": ("race|differs", Edit(
        "stage_train_preact.cuh", "turn = 1 - turn;", "turn = 0;")),
    "a skip that RESIDUAL does not cut": ("differs", Edit(
        "stage_train_preact.cuh", "run_.gates[b] == kResidual ? nullptr : entered", "entered")),
    "statistics of the value without its skip": ("differs", Edit(
        "stage_train_fwd.cuh", "low = fmaf(plan_.scale, low, beside.x)", "low = fmaf(plan_.scale, low, 0.f)")),
    "a gradient that departs without its norm's constants": ("differs", Edit(
        "stage_train_ends.cuh", "slope(0), slope(1))", "slope(0), 0.f)")),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    stage, x = preact(torch.bfloat16, blocks=3), torch.randn(4, 16, 17, 18).bfloat16()  # two slots
    assert_found(*BUGS[bug], stage, x, route_of([4, 1, 1], [1.5, 0.5, 1.5]))


def test_the_ops_as_pytorch_sees_them():
    stage, x = preact(torch.bfloat16, blocks=3), torch.randn(2, 16, 17, 18).bfloat16().requires_grad_()
    with on_host(), use_backend("cuda"):
        with Recorder() as recorder:
            y = stage_train.stage_train(x, specs(stage), route_of([2, 1, 3]), zero_unused=False)
            torch.autograd.grad(y, x, torch.randn(y.shape).bfloat16())
        for op, arguments in recorder.calls:
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
