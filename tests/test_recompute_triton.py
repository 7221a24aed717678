"""Bottlenecks of which nobody keeps the output of conv3: kernels rebuild it, or the backward makes it anew."""

from __future__ import annotations

import importlib
import weakref

import pytest
import torch
from cases import Recorder, make_stage
from training_cases import check, route_of, step
from triton_cases import DEVICE, DIRECT, assert_requested, compare, halves, interpreted, on_device, requests

from pathnet import PathResNet, Paths, profile, use_backend
from pathnet.kernels import block_run
from pathnet.kernels.catalogue import meta_kept, meta_run
from pathnet.kernels.launch import observed

pytestmark = on_device

AGAIN = "forward conv3 again"
forms = pytest.mark.parametrize("form", ["anew", "rebuilt"], indirect=True)
anew, rebuilt = (pytest.mark.parametrize("form", [name], indirect=True) for name in ("anew", "rebuilt"))


@pytest.fixture
def form(request, monkeypatch) -> str:
    """Who keeps no output of conv3 makes it "anew", or has it "rebuilt", whatever the table says."""
    monkeypatch.setattr(block_run, "rebuilds", lambda *call: request.param == "rebuilt")
    return request.param


def stage_of(
    shortcut: str = "pad", width: int = 4, stride: int = 1, blocks: int = 2, recompute: bool = True, channels: int = 16
):
    stage = make_stage("bottleneck", shortcut, channels, width, stride, blocks).train()
    for block in stage:
        block.recompute = recompute
    return stage


@forms
@pytest.mark.parametrize("training", [True, False], ids=["batch statistics", "running statistics"])
@pytest.mark.parametrize("shortcut, gates", [("conv", [1, 4, 3]), ("pad", [3, 2, 1])])
def test_a_strided_stage_on_odd_sides(shortcut, gates, training, form, poisoned):
    compare(stage_of(shortcut, 6, 2, len(gates)).train(training), (2, 16, 5, 7), gates)


@forms
@pytest.mark.parametrize("gates", [[1, 2, 2, 0, 3, 1], [2, 4, 3, 2]], ids=str)
def test_a_run_under_all_gates(gates, form, poisoned):
    """Running statistics too: a second forward would have moved them twice."""
    compare(stage_of(blocks=len(gates)), (2, 16, 4, 5), gates, [1.0, 0.5, 1.0, 1.0, -1.5, 2.0][: len(gates)])


@forms
def test_half_precision(form, poisoned):
    stage, x = halves(stage_of("conv", stride=2), torch.bfloat16), torch.rand(3, 16, 6, 6).bfloat16()
    check("triton", stage.to(DEVICE), x.to(DEVICE), route_of([1, 3], [0.5, 2.0]), DIRECT)


@rebuilt
def test_many_channels_and_pixels(form, poisoned):
    """More than a tile of each, and weights whose inputs do not lie side by side."""
    stage = stage_of(width=20, channels=80)
    for block in stage:
        weight = block.conv3.weight
        block.conv3.weight = torch.nn.Parameter(weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    compare(stage, (1, 80, 13, 11), [1, 1])


@anew
@pytest.mark.parametrize("vendor", [False, True])
def test_bits_are_those_of_keeping_it(monkeypatch, vendor, form, poisoned):
    """Between passes around the vendor's convolutions too."""
    monkeypatch.setattr(block_run, "calls_vendor", lambda *geometry: vendor)
    x, route = torch.randn(2, 16, 3, 5, device=DEVICE), route_of([1, 2, 3])
    with observed() as launches:
        anew = step("triton", stage_of(blocks=3).to(DEVICE), x, route)
    kept = step("triton", stage_of(blocks=3, recompute=False).to(DEVICE), x, route)
    assert [launch.name for launch in launches].count(AGAIN) == 2  # FORWARD has no backward
    for name, tensor in kept.items():
        assert (anew[name] is None) == (tensor is None), name
        assert tensor is None or torch.equal(anew[name], tensor), name


@anew
def test_one_is_there_at_a_time(monkeypatch, form):
    backward = importlib.import_module("pathnet.kernels.stage_train_bwd")
    make, made = backward.forward_again, []

    def forward_again(*call):
        assert all(each() is None for each in made), "what the block above had has gone"
        u = make(*call)
        made.append(weakref.ref(u))
        return u

    monkeypatch.setattr(backward, "forward_again", forward_again)
    step("triton", stage_of(blocks=3).to(DEVICE), torch.randn(1, 16, 2, 3, device=DEVICE))
    assert len(made) == 3


@forms
def test_several_gradients_share_what_is_made_anew(form):
    stage, x = stage_of(blocks=2).to(DEVICE), torch.randn(2, 16, 3, 4, device=DEVICE, requires_grad=True)
    with use_backend("triton"):
        y = stage(x)
    incoming = torch.randn(3, *y.shape, device=DEVICE)
    with observed() as launches:
        got = torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]
    assert [launch.name for launch in launches].count(AGAIN) == (2 if form == "anew" else 0)
    alone = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming]
    assert torch.equal(got, torch.stack(alone))


@forms
def test_the_fakes_know_what_is_kept(form):
    with Recorder() as recorder:
        step("triton", stage_of().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE), route_of([1, 3]))
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        torch.library.opcheck(func, detached, test_utils=("test_schema", "test_faketensor"))


# ---- what it costs ---------------------------------------------------------------------------------------------------

IMAGES, CHANNELS, SIDE = 128, 64, 32
STREAM = 2 * IMAGES * CHANNELS * SIDE * SIDE  # bytes of T in float16


def totals(gates: list[int]) -> tuple[int, float]:
    """Launches, and unique bytes of activations and masks in T, for meta tensors."""
    launches = meta_run(CHANNELS, gates, "float16", images=IMAGES, side=SIDE, form="recomputed_bottleneck")
    sides = [(launch, name) for launch in launches for side in (launch.reads, launch.writes) for name in side]
    named = [launch.tensors[name] for launch, name in sides if name not in ("slots", "partial")]
    large = [t.numel() * t.element_size() for t in named if t.numel() >= IMAGES * SIDE * SIDE]
    return len(launches), sum(large) / STREAM


COSTS = {
    "anew": {1: (10, 18.75), 4: (10, 17.75), 3: (7, 18.75 - 4.5 - 1 + 2 / 16), 2: (3, 5 - 1 + 4 / 16)},
    "rebuilt": {1: (9, 13), 4: (9, 12), 3: (6, 13 - 3.5 - 1 + 2 / 16), 2: (3, 3.25 - 1 + 4 / 16)},
}  # a gate's launches and streams


@forms
@pytest.mark.parametrize("gate", [1, 2, 3, 4])
def test_a_block_costs_what_the_model_says(gate, form):
    """Between two FULL blocks, against the same run without it."""
    launches, streams = COSTS[form][gate]
    without, more = totals([1, 1]), totals([1, gate, 1])
    assert more[0] - without[0] == launches
    assert more[1] - without[1] == pytest.approx(streams, abs=1e-9)


@pytest.mark.parametrize("gates, streams", [([1, 1], 1 + 2 * 0.5), ([1, 2, 3], 2 * 0.5 + 1 / 16), ([2, 2], 0)], ids=str)
def test_what_is_kept(gates, streams):
    """x of T, u1 and u2 of T / 4, and the run's masks; the input of the run is its caller's."""
    kept = meta_kept(CHANNELS, gates, IMAGES, SIDE, "recomputed_bottleneck")
    large = [t.numel() * t.element_size() for t in kept if t.numel() > 1000]
    assert sum(large) / STREAM == streams + 1 / 16


@anew
def test_profile_tells_what_a_net_saves(form):
    shape, nets = (2, 3, 8, 8), {}
    for recompute in (None, "conv3"):
        net = PathResNet(11, 3, width=8, block="bottleneck", recompute=recompute).to(DEVICE).train()
        with use_backend("triton"):
            nets[recompute] = profile(net, torch.rand(shape, device=DEVICE), backward=True)
    plain, anew = nets[None], nets["conv3"]
    outputs = sum(2 * 32 * 2**stage * (8 // 2**stage) ** 2 for stage in range(3))  # of conv3, a block a stage
    assert plain.saved - anew.saved == 4 * outputs
    again = anew.kernels[f"pathnet.triton {AGAIN}"]
    assert again.launches == anew.launches - plain.launches == 3 and again.written == 4 * outputs


@interpreted
@forms
def test_requested_bytes_are_what_the_interpreter_loads_and_stores(form):
    stage = stage_of(width=12, stride=2, blocks=2)
    with observed() as launches, requests(launches) as counted:
        step("triton", stage, torch.randn(2, 16, 7, 6), route_of([1, 3]))
    assert_requested(launches, counted, least=13)
    read = AGAIN if form == "anew" else "weight gradient conv3"
    (index, *_) = [place for place, launch in enumerate(launches) if launch.name == read]
    assert counted[index, "u_in", "read"] == launches[index].reads["u_in"] > 0


# ---- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner, dtype, vendor, form",
    [
        (64, "bfloat16", False, "rebuilt"),
        (64, "tf32", False, "rebuilt"),
        (128, "bfloat16", False, "anew"),
        (16, "ieee", False, "anew"),
        (16, "float16", True, "anew"),
    ],
)
def test_the_table_says_who_is_rebuilt(monkeypatch, inner, dtype, vendor, form):
    """What the vendor's convolutions read is stored for a while too."""
    monkeypatch.setattr(block_run, "calls_vendor", lambda *geometry: vendor)
    launches = meta_run(4 * inner, [1, 1], dtype, images=1, side=8, form="recomputed_bottleneck")
    names = [launch.name for launch in launches]
    assert (AGAIN in names) == (form == "anew")


@pytest.mark.parametrize("block", ["basic", "preact", "preact_bottleneck"])
def test_other_blocks_refuse_it(block):
    with pytest.raises(ValueError, match=f"block='bottleneck' alone, got block='{block}'"):
        PathResNet(11 if "bottleneck" in block else 8, block=block, recompute="conv3")
    with pytest.raises(ValueError, match="recompute must be one of None, 'conv3', got 'all'"):
        PathResNet(11, block="bottleneck", recompute="all")


@anew
def test_a_net_gives_what_it_gives_without(form):
    nets = [PathResNet(11, 3, width=8, block="bottleneck", recompute=choice).to(DEVICE) for choice in (None, "conv3")]
    nets[1].load_state_dict(nets[0].state_dict())
    x, paths = torch.rand(2, 3, 8, 8, device=DEVICE), Paths.backward(3, [0, 2])
    for backend in ("triton", "cpu" if DEVICE == "cpu" else "reference"):
        with use_backend(backend):
            plain, anew = (net(x, paths=paths) for net in nets)
        assert torch.equal(plain, anew)
