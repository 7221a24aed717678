"""The separate-pass form of convolutions on the Triton kernels: the vendor's, between elementwise passes."""

from __future__ import annotations

import importlib

import pytest
import torch
from cases import Recorder, assert_errs_like_eager, double, make_stage, specs
from torch import nn
from training_cases import check, images, route_of, step
from triton_cases import DEVICE, DIRECT, assert_requested, compare, halves, interpreted, on_device, requests

from pathnet import PathResNet, Paths, profile, use_backend
from pathnet.backend import refusal
from pathnet.blocks import BLOCKS
from pathnet.kernels.catalogue import meta_run
from pathnet.kernels.launch import observed
from pathnet.ops.stage_eval import stage_eval
from pathnet.ops.stage_train import SUPPORTS

pytestmark = on_device

SIDES = {"all": (1, 3), "3x3": (3,), "1x1": (1,)}


def take(monkeypatch, which: str = "all") -> None:
    """Convolutions of these sides are the vendor's."""
    blocks = importlib.import_module("pathnet.kernels.block_run")  # that of planted bugs too
    monkeypatch.setattr(blocks, "calls_vendor", lambda geometry, *rest: geometry.side in SIDES[which])


@pytest.mark.parametrize(
    "form, width, shortcut, training, gates",
    [
        ("basic", 24, "conv", True, [1, 4, 3]),
        ("basic", 24, "pad", False, [3, 0, 4]),
        ("preact", 24, "conv", True, [1, 4, 3]),
        ("preact", 24, "pad_end", False, [2, 2, 1]),
        ("bottleneck", 6, "conv", True, [1, 4, 3]),
        ("preact_bottleneck", 6, "conv", True, [1, 4, 3]),
    ],
)
def test_a_strided_stage_on_odd_sides(monkeypatch, form, width, shortcut, training, gates, poisoned):
    take(monkeypatch)
    compare(make_stage(form, shortcut, width=width, blocks=len(gates)).train(training), (2, 16, 5, 7), gates)


@pytest.mark.parametrize("form", ["basic", "preact", "bottleneck"])
def test_a_run_under_all_gates(monkeypatch, form, poisoned):
    take(monkeypatch)
    stage = make_stage(form, width=4 if form == "bottleneck" else 16, stride=1, blocks=6).train()
    compare(stage, (2, 16, 4, 5), [1, 2, 2, 0, 3, 4], [1.0, 0.5, 1.0, 1.0, -1.5, 2.0])


@pytest.mark.parametrize("which", ["3x3", "1x1"])
def test_both_forms_in_one_block(monkeypatch, which, poisoned):
    take(monkeypatch, which)
    compare(make_stage("bottleneck", "conv", 24, 20, blocks=2).train(), (1, 24, 3, 13), [4, 1])


@pytest.mark.parametrize("form, dtype", [("basic", torch.float16), ("preact", torch.bfloat16)], ids=str)
def test_half_precision(monkeypatch, form, dtype, poisoned):
    take(monkeypatch)
    stage, x = make_stage(form, "conv", blocks=2).train(), torch.rand(3, 16, 6, 6).to(dtype)
    check("triton", halves(stage, dtype).to(DEVICE), x.to(DEVICE), route_of([1, 3], [0.5, 2.0]), DIRECT)


def test_autocast_casts_the_weights_of_a_run_at_once(monkeypatch, poisoned):
    take(monkeypatch)
    stage, x = make_stage("basic", stride=1, blocks=2).train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    low = halves(stage, torch.bfloat16)
    expected = step("triton", low, x.bfloat16())
    with torch.autocast(DEVICE, torch.bfloat16), observed() as launches:
        got = step("triton", low.float(), x.bfloat16())
    assert [launch.name for launch in launches].count("cast of weights") == 2  # forward and backward
    for name, tensor in expected.items():
        assert torch.equal(got[name].to(tensor.dtype), tensor), name


def test_only_what_is_asked_for_is_computed(monkeypatch, poisoned):
    take(monkeypatch)
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.rand(2, 16, 3, 3, device=DEVICE)
    whole = step("triton", stage, x)
    stage[0].conv2.weight.requires_grad_(False)
    with observed() as launches:
        part = step("triton", stage, x)
    assert "weight gradient conv2" not in [launch.name for launch in launches] and part["0.conv2.weight"] is None
    assert all(tensor is None or torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_memory_formats(monkeypatch, poisoned):
    take(monkeypatch)
    stage, x = make_stage("basic", blocks=2).train().to(DEVICE), torch.randn(2, 16, 5, 4, device=DEVICE)
    plain = step("triton", stage, x)
    last = step("triton", stage.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last))
    for name, tensor in plain.items():
        torch.testing.assert_close(last[name], tensor)


@pytest.mark.parametrize("form", ["basic", "preact_bottleneck"])
def test_the_fakes_know_what_is_kept(monkeypatch, form):
    take(monkeypatch)
    stage = make_stage(form, width=16 // BLOCKS[form].expansion, stride=1, blocks=2).train().to(DEVICE)
    with Recorder() as recorder:
        step("triton", stage, torch.rand(2, 16, 4, 4, device=DEVICE), route_of([1, 3]))
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        torch.library.opcheck(func, detached, test_utils=("test_schema", "test_faketensor"))


@interpreted
@pytest.mark.parametrize("form, gates", [("basic", [1, 2, 1]), ("preact", [4, 3]), ("bottleneck", [1, 2])])
def test_requested_bytes_are_what_the_interpreter_loads_and_stores(monkeypatch, form, gates):
    take(monkeypatch)
    width = 6 if form == "bottleneck" else 24
    stage = make_stage(form, "pad", 24, width, 1, len(gates)).train()
    with observed() as launches, requests(launches) as counted:
        step("triton", stage, torch.randn(2, 24, 7, 6), route_of(gates))
    assert_requested(launches, counted, least=13)


def totals(gates: list[int], form: str) -> tuple[int, float]:
    """Launches, and unique bytes of activations and masks in T, for meta tensors; weights are cast and copied."""
    wide = 4 if form == "bottleneck" else 1
    launches = meta_run(wide * 16, gates, "float16", images=128, side=32, form=form)
    sides = [(launch, name) for launch in launches for side in (launch.reads, launch.writes) for name in side]
    named = [launch.tensors[name] for launch, name in sides if name != "slots"]
    large = [t.numel() * t.element_size() for t in named if t.numel() >= 128 * 32 * 32]
    return len(launches), sum(large) / (2 * 16 * wide * 128 * 32 * 32)


@pytest.mark.parametrize(
    "form, gate, launches, streams",
    [
        ("basic", 1, 14, 34),
        ("basic", 4, 14, 33),
        ("basic", 3, 12, 34 - 5 - 1 + 2 / 16),
        ("preact", 1, 14, 35),
        ("preact", 3, 12, 35 - 6),
        ("preact", 2, 6, 12),
        ("bottleneck", 1, 21, 26),
    ],
)
def test_a_block_costs_what_the_model_says(monkeypatch, form, gate, launches, streams):
    """Between two FULL blocks, against the same run without it."""
    take(monkeypatch)
    without, more = totals([1, 1], form), totals([1, gate, 1], form)
    assert more[0] - without[0] == launches
    assert more[1] - without[1] == pytest.approx(streams, abs=1e-9)


def test_profile_counts_the_vendors_convolutions(monkeypatch):
    take(monkeypatch)
    net = PathResNet(8, num_classes=3, width=8).to(DEVICE).train()
    with use_backend("triton"):
        counted = profile(net, torch.randn(2, 3, 4, 4, device=DEVICE), Paths.backward(3, [1, 2]), backward=True)
    kernels = counted.kernels
    assert kernels["pathnet.vendor forward conv2"].launches == kernels["pathnet.triton statistics of conv2"].launches
    assert kernels["pathnet.vendor data gradient conv2"].launches == 2
    assert kernels["pathnet.vendor forward conv2"].read > 0 == kernels["pathnet.vendor forward conv2"].requested


BUGS = {
    "a value that is not rectified": ("basic", "state, channels, CHANNELS), 0.0)", "state, channels, CHANNELS), -9.0)"),
    "a gradient without its mask": ("basic", "tl.where(value > 0, gradient, 0.0)", "gradient"),
    "a multiplier that the sums do not see": ("preact", "gradient = scale * tl.load", "gradient = tl.load"),
    "a skip that is forgotten": ("preact", " + tl.load(skip + at, within, 0.0).to(tl.float32)", ""),
    "weights that read what stands before the norm": ("bottleneck", "if ACTIVATES:\n        tl.store(v + at, value.to",
                                                      "if ACTIVATES:\n        tl.store(v + at, own.to"),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(plant, monkeypatch, bug, poisoned):
    form, *words = BUGS[bug]
    stage = make_stage(form, width=4 if form == "bottleneck" else 16, stride=1, blocks=2).train()
    route = route_of([1, 4], [0.5, 2.0])
    x = images(stage, (2, 16, 3, 4), route)
    plant("separate.py", *words)
    take(monkeypatch)
    with pytest.raises(AssertionError):
        check("triton", stage, x, route, DIRECT)


# ---- groups ----------------------------------------------------------------------------------------------------------


def resnext(shortcut: str, blocks: int, width: int = 8, groups: int = 4):
    """Bottlenecks whose 3x3 convolution has groups."""
    stage = make_stage("bottleneck", shortcut, width=width, blocks=blocks)
    for block in stage:
        block.conv2 = nn.Conv2d(width, width, 3, block.conv2.stride, 1, groups=groups, bias=False)
    return stage


@pytest.mark.parametrize("shortcut, gates", [("conv", [1, 4, 3]), ("pad", [1, 2, 0, 1])])
def test_grouped_convolutions_are_the_vendors(shortcut, gates, poisoned):
    stage = resnext(shortcut, len(gates)).train()
    with observed() as launches:
        compare(stage, (2, 16, 5, 7), gates)
    vendors = {launch.name for launch in launches if launch.kernel is None}
    assert {"forward conv2", "data gradient conv2", "weight gradient conv2"} <= vendors
    assert "forward conv1" not in vendors and "data gradient conv3" not in vendors


def test_grouped_convolutions_in_evaluation(poisoned):
    stage, x, route = resnext("conv", 3).to(DEVICE), torch.rand(2, 16, 7, 5, device=DEVICE), route_of([1, 2, 0])
    with torch.no_grad():
        with use_backend("triton"):
            got = stage_eval(x, specs(stage), route)
        with use_backend("reference"):
            eager, truth = stage_eval(x, specs(stage), route), stage_eval(x.double(), specs(double(stage)), route)
    assert_errs_like_eager(got, eager, truth)


def test_other_groups_are_refused():
    stage = make_stage("basic", stride=1, blocks=1).train().to(DEVICE)
    stage[0].conv2 = nn.Conv2d(16, 16, 3, 1, 1, groups=2, bias=False).to(DEVICE)
    why = refusal("stage_train", "triton", SUPPORTS, torch.rand(2, 16, 4, 4, device=DEVICE), specs(stage), None)
    assert why is not None and "groups" in why
