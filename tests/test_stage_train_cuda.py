"""stage_train by the CUDA kernels, executed on the host: values and every gradient against float64, races, bugs."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
from cases import Recorder, make_stage, specs
from cuda_host.host import SCHEDULES, Edit
from cuda_host.ops import on_host
from cuda_train_cases import CASES, FORMS, TF32, TF32_CASES, assert_found, case, differences, stage_of, stage_train
from training_cases import check, route_of, step
from triton_cases import DIRECT, halves

from pathnet import extension, use_backend
from pathnet.backend import refusal
from pathnet.blocks import BLOCKS
from pathnet.ops.stage_train_cuda import loses_cuda, supports_cuda, unfit
from pathnet.ops.stage_train_cuda_limits import missing_memory, weight_slots

pytestmark = [pytest.mark.cuda_host, pytest.mark.usefixtures("cuda_anywhere")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, shape, gates", CASES, ids=str)
def test_values(form, dtype, shape, gates):
    stage, x = case(form, dtype, shape, len(gates))
    with on_host() as host:
        check("cuda", stage, x, route_of(gates, torch.linspace(0.5, 1.5, len(gates))), DIRECT)
    assert host.launches == sum({0: 0, 2: 2}.get(gate, 4) for gate in gates) + 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape, gates", TF32_CASES, ids=str)
def test_tf32(form, shape, gates):
    stage, x = case(form, torch.float32, shape, len(gates))
    with on_host():
        check("cuda", stage, x, route_of(gates), TF32, (halves(stage, torch.bfloat16), x.bfloat16()))


def test_weights_in_another_layout_and_dtype():
    """Master weights in float32 under autocast, in channels_last, and x as a view."""
    stage, x = stage_of(torch.bfloat16), torch.rand(3, 16, 14, 15).bfloat16()
    with on_host():
        plain = step("cuda", stage, x)
        stage.to(memory_format=torch.channels_last)
        wide = torch.zeros(4, 20, 14, 30).bfloat16()[1:, 2:18, :, ::2].copy_(x)
        with torch.autocast("cpu", torch.bfloat16):
            other = step("cuda", stage.float(), wide)
    for name, tensor in plain.items():
        assert tensor is None or torch.equal(tensor, other[name].to(tensor.dtype)), name


def test_statistics_survive_a_mean_far_from_zero():
    """The naive formula, mean of squares less square of the mean, would lose every digit here."""
    stage, x = stage_of(torch.bfloat16), torch.rand(3, 16, 14, 15).bfloat16() + 300
    with on_host():
        check("cuda", stage, x, None, DIRECT)


def test_batch_norms_by_running_statistics():
    stage, x = stage_of(torch.bfloat16, blocks=2), torch.rand(3, 16, 14, 15).bfloat16()
    stage[0].bn1.eval(), stage[1].bn2.eval()
    with on_host():
        check("cuda", stage, x, None, DIRECT)


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_asks_for_no_gradient(form):
    """No tile of what its convolution has read is there; the mask before it, or the norm, still reads its values."""
    stage, x = stage_of(torch.bfloat16, blocks=2, form=form), torch.rand(3, 16, 14, 15).bfloat16()
    for conv in (stage[0].conv2, stage[1].conv1):
        conv.requires_grad_(False)
    with on_host("check"):
        check("cuda", stage, x, None, DIRECT)


def test_a_strided_first_block_goes_another_way():
    """The reference here; its shortcut runs once, so its batch norm moves once."""
    stage = halves(make_stage("basic", "conv", 16, 32, 2, 2), torch.bfloat16).train()
    x = torch.rand(8, 16, 26, 24).bfloat16()
    with on_host() as host:
        check("cuda", stage, x, route_of([1, 1]), DIRECT)
    assert host.launches == 4 + 3


# ---- schedules and checks --------------------------------------------------------------------------------------------


GATES = [1, 2, 3, 1]


def checked_case():
    return stage_of(torch.bfloat16, blocks=4), torch.rand(4, 16, 17, 18).bfloat16(), route_of(GATES)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_access_is_allowed_and_every_schedule_gives_the_same_bits(schedule):
    """No race, within a thread block and between them; nothing read that was not written, nothing outside."""
    stage, x, route = checked_case()
    with on_host():
        expected = step("cuda", stage, x, route)
    with on_host("check", schedule, seed=3):
        assert differences(step("cuda", stage, x, route), expected) == []


@pytest.mark.parametrize("dtype, shape", [(torch.float32, (14, 32, 7, 6)), (torch.bfloat16, (37, 64, 8, 8))], ids=str)
def test_every_access_is_allowed_with_more_channels(dtype, shape):
    stage, x = stage_of(dtype, shape[1]), torch.rand(shape).to(dtype)
    with on_host("check", "skewed by warp"):
        step("cuda", stage, x)


BUGS = {
    "a tile read before all of it stands": ("race|uninitialised", Edit(
        "stage_train_bwd.cuh", "      stage(band);\n      __syncthreads();\n", "      stage(band);\n")),
    "a tile overwritten while it is read": ("race|uninitialised", Edit(
        "stage_train_bwd.cuh", "      __syncthreads();  // the tiles have been read\n      stage", "      stage")),
    "sums over a tile that is still read": ("race", Edit(
        "stage_train_bwd.cuh", "    __syncthreads();  // the tiles have been read\n    if", "    if")),
    "sides not cleared": ("uninitialised", Edit(
        "stage_train_band.cuh", "side % 2 * (batch.width + 1)", "side % 2 * batch.width")),
    "slots read before all thread blocks have come": ("race between blocks|uninitialised|differs", Edit(
        "stage_train_sums.cuh", "static_cast<int>(gridDim.x) - 1;", "0;")),
    "no barrier before the arrival": ("race between blocks", Edit(
        "stage_train_sums.cuh", "  __syncthreads();  // every thread has stored\n", "")),
    "a counter that is not reset": ("uninitialised|differs", Edit(
        "stage_train_sums.cuh", "if (*flag) *counter = 0;", "")),
    "a slot of another thread block": ("race between blocks|differs", Edit(
        "stage_train_bwd.cuh", "plan_.partial + blockIdx.x * plan_.slot_size", "plan_.partial")),
    "the halo of the next image": ("out of bounds|differs", Edit(
        "stage_train_band.cuh", "image_row < batch.height;", "image_row <= batch.height;")),
    "taps that do not run backwards": ("out of bounds", Edit(
        "stage_train_run.cuh", "is_float, by_output, by_input, -by_tap", "is_float, by_output, by_input, by_tap")),
    "a mask that forgets": ("differs", Edit("stage_train_fwd.cuh", "? alive & *byte : alive", "? alive : alive")),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    stage, x = stage_of(torch.bfloat16, blocks=3), torch.rand(4, 16, 17, 18).bfloat16() - 0.5  # two slots
    torch.nn.init.normal_(stage[0].bn2.bias), torch.nn.init.normal_(stage[1].bn2.bias)  # masks that are not all set
    assert_found(*BUGS[bug], stage, x, route_of([2, 2, 1]))


# ---- what PyTorch sees, and what is refused --------------------------------------------------------------------------


def test_the_ops_as_pytorch_sees_them():
    stage, x = stage_of(torch.bfloat16, blocks=3), torch.rand(2, 16, 17, 18).bfloat16().requires_grad_()
    with on_host(), use_backend("cuda"):
        with Recorder() as recorder:
            y = stage_train.stage_train(x, specs(stage), route_of([2, 1, 3]), zero_unused=False)
            incoming = torch.randn(2, *y.shape).bfloat16()
            torch.autograd.grad(y, x, incoming[0], retain_graph=True)
        one_by_one = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming])
        together = torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]
        assert torch.equal(together, one_by_one)
        for op, arguments in recorder.calls:
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "words, shape, form, dtype",
    [
        ("24 channels", (8, 24, 8, 8), "basic", torch.bfloat16),
        ("neither a basic nor a pre-activation block", (8, 64, 16, 16), "bottleneck", torch.bfloat16),
        ("24 channels", (8, 24, 8, 8), "preact", torch.bfloat16),
        ("52 pixels wide|at most 51", (8, 16, 52, 52), "basic", torch.bfloat16),
        ("more than half of an activation", (1, 64, 8, 8), "basic", torch.bfloat16),
        ("float32, float16 and bfloat16", (8, 16, 16, 16), "basic", torch.float64),
    ],
)
def test_what_is_refused(words, shape, form, dtype):
    stage = make_stage(form, "pad", shape[1], shape[1] // BLOCKS[form].expansion, 1, 1).to(dtype).train()
    for norm in (m for m in stage.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.float()
    reason = unfit(torch.rand(shape, dtype=dtype), specs(stage))
    assert reason is not None and re.search(words, reason), reason


def test_what_a_machine_lacks():
    x = torch.rand(2, 16, 17, 18)
    reason = refusal("stage_train", "cuda", {"cuda": supports_cuda}, x, specs(stage_of(torch.float32)))
    assert reason is not None and (extension.why_not("cuda") or "x is on cpu") in reason
    assert missing_memory((8, 0), torch.bfloat16, 64, 8, 8) is None
    lacks = missing_memory((8, 6), torch.float32, 64, 8, 8)
    assert lacks is not None and "KiB" in lacks


def test_a_small_batch_of_many_channels_is_left_to_the_split_form(monkeypatch):
    """128 images of 64 channels leave three thread blocks, those of 16 channels all of them."""
    module = importlib.import_module("pathnet.ops.stage_train_cuda")
    monkeypatch.setattr(module, "supports_triton", lambda *call: None)
    with torch.device("meta"):
        wide, narrow = torch.empty(128, 64, 8, 8).half(), torch.empty(128, 16, 32, 32).half()
    assert "3 thread blocks" in (loses_cuda(wide, specs(stage_of(torch.float16, 64))) or "")
    assert loses_cuda(narrow, specs(stage_of(torch.float16))) is None
    assert weight_slots(torch.float16, 128, 16, 32, 32) == 227
