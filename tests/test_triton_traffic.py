"""Launches and bytes of the Triton kernels: the model of a block, and what the interpreter really loads and stores."""

from __future__ import annotations

import pytest
import torch
from cases import make_stage
from training_cases import route_of, step, stream
from triton_cases import DEVICE, assert_requested, interpreted, on_device, requests

from pathnet import PathResNet, Paths, profile, use_backend
from pathnet.blocks import BLOCKS
from pathnet.kernels.catalogue import meta_kept, meta_run
from pathnet.kernels.launch import observed
from pathnet.kernels.stage_train_fwd import kept_tensors
from pathnet.kernels.traffic import Geometry

pytestmark = on_device

IMAGES, CHANNELS, SIDE = 128, 16, 32
STREAM = 2 * IMAGES * CHANNELS * SIDE * SIDE  # bytes of T in float16


def totals(gates: list[int], form: str = "basic") -> tuple[int, float, float]:
    """Launches, unique bytes of activations and masks, and bytes of weight-gradient slots, in T, for meta tensors."""
    wide = BLOCKS[form].expansion
    launches = meta_run(wide * CHANNELS, gates, "float16", images=IMAGES, side=SIDE, form=form)
    large = [
        t.numel() * t.element_size()
        for launch in launches
        for side in (launch.reads, launch.writes)
        for name in side
        if (t := launch.arguments[name]).numel() >= IMAGES * SIDE * SIDE and name not in ("slots", "partial")
    ]
    slots = [launch.arguments["partial"].numel() * 4 for launch in launches if launch.name.startswith("weight")]
    return len(launches), sum(large) / STREAM / wide, max(slots, default=0) / STREAM / wide


@pytest.mark.parametrize(
    "form, block, launches, streams",
    [
        ("basic", [1], 6, 22),
        ("basic", [4], 6, 21),  # no skip in the last gradient
        ("basic", [3], 4, 22 - 6 - 1 + 2 / 16),  # no weight gradients; bits instead of x as the mask, written and read
        ("basic", [2, 1], 8, 22 + 6 - 1 + 4 / 16),  # bits, written, joined (read and written) and read, instead of x
        ("basic", [2, 2, 1], 10, 22 + 12 - 1 + 6 / 16),
        ("preact", [1], 6, 20),
        ("preact", [4], 6, 19),
        ("preact", [3], 4, 20 - 5),
        ("preact", [2], 2, 5),
        ("bottleneck", [1], 9, 17.5),
        ("preact_bottleneck", [1], 9, 15.5),
        ("preact_bottleneck", [2], 3, 4),
        ("bottleneck", [4], 9, 16.5),
        ("bottleneck", [3], 6, 17.5 - 4.5 - 1 + 2 / 16),
        ("bottleneck", [2, 1], 12, 17.5 + 5 - 1 + 4 / 16),
    ],
    ids=str,
)
def test_a_block_costs_what_the_model_says(form, block, launches, streams):
    """Between two FULL blocks, against the same run without it."""
    without, more = totals([1, 1], form), totals([1, *block, 1], form)
    assert more[0] - without[0] == launches
    assert more[1] - without[1] == pytest.approx(streams, abs=1e-9)


def test_a_run_of_full_blocks_has_three_launches_and_a_few_streams_at_its_ends():
    launches, streams, slots = totals([1])
    assert launches == 6 + 3  # merge, arrive and the sum of the weight gradients
    assert streams == 22 - 2 - 2 + 3 + 3 + 2 / 16  # x comes ready and unmasked; y is merged, its gradient arrives
    assert slots <= 0.5


@pytest.mark.parametrize("form, launches, ends", [("preact", 6, 1 - 3 + 4), ("bottleneck", 9, -2 - 2 + 3 + 3 + 2 / 16)])
def test_other_runs_have_three_launches_and_a_few_streams_at_their_ends(form, launches, ends):
    """Pre-activation: the first norm reads x, the first gradient comes as it is, and the last leaves."""
    block = {"preact": 20, "bottleneck": 17.5}[form]
    assert totals([1], form)[:2] == (launches + 3, block + ends)
    assert totals([1, 1], form)[2] <= 0.5


@pytest.mark.parametrize(
    "gates, streams",
    [([2, 2, 2], 1 / 16), ([1], 2 + 1 / 16), ([1, 1], 5 + 1 / 16), ([1, 2, 2, 1], 5 + 2 / 16), ([3, 3], 4 + 2 / 16)],
    ids=str,
)
def test_what_is_kept(gates, streams):
    """Beside the run's own input, 1 T where block 0 trains, which the caller holds; and two states a block."""
    shape = Geometry(IMAGES, SIDE, SIDE, CHANNELS, CHANNELS, 1)
    x = torch.empty((IMAGES, CHANNELS, SIDE, SIDE), dtype=torch.float16, device="meta")
    kept = [t for t in kept_tensors(gates, x, [[shape, shape]] * len(gates)) if t is not None]
    large = [t.numel() * t.element_size() for t in kept if t.numel() > 1000]
    assert sum(large) / STREAM == pytest.approx(streams, abs=1e-9)


@pytest.mark.parametrize(
    "gates, streams", [([2, 2], 0), ([1], 1), ([1, 1], 3), ([1, 2, 2, 1], 3), ([3, 4], 3)], ids=str
)
def test_what_pre_activation_blocks_keep(gates, streams):
    """x and u1, beside the run's own input; FORWARD blocks nothing."""
    kept = meta_kept(CHANNELS, gates, IMAGES, SIDE, "preact")
    assert sum(t.numel() * t.element_size() for t in kept if t.numel() > 1000) == streams * STREAM


def test_what_bottlenecks_keep():
    """x and u3 of T, u1 and u2 of T / 4, and the run's mask."""
    kept = meta_kept(4 * CHANNELS, [1, 1], IMAGES, SIDE, "bottleneck")
    large = [t.numel() * t.element_size() for t in kept if t.numel() > 1000]
    assert sum(large) / STREAM / 4 == 1.5 + 2.5 + 1 / 16


@interpreted
@pytest.mark.parametrize(
    "form, stride, gates",
    [("basic", 1, [1, 2, 1]), ("basic", 2, [1, 3]), ("preact", 1, [1, 2, 1]), ("preact", 2, [4, 3]),
     ("bottleneck", 2, [1, 2])],
)  # fmt: skip
def test_requested_bytes_are_what_the_interpreter_loads_and_stores(form, stride, gates):
    width = 24 if BLOCKS[form].expansion == 1 else 12
    inputs = width * BLOCKS[form].expansion // stride
    stage = make_stage(form, "pad", inputs, width, stride, len(gates)).train()
    x = stream(requires_grad=False, channels=inputs)[..., :7, :6]
    with observed() as launches, requests(launches) as counted:
        step("triton", stage, x, route_of(gates))
    assert_requested(launches, counted, least=13)


def test_profile_counts_the_launches_of_the_kernels():
    net = PathResNet(8, num_classes=3, width=8).to(DEVICE).train()
    with use_backend("triton"):
        counted = profile(net, torch.randn(2, 3, 4, 4, device=DEVICE), backward=True)
    kernels, page = counted.kernels, str(counted)
    assert "requested" in page.splitlines()[0] and "pathnet.triton forward conv1" in page
    ours = {name.removeprefix("pathnet.triton "): kernel for name, kernel in kernels.items() if "triton" in name}
    expected = ["conv1", "conv2"]
    assert all(ours[f"forward {conv}"].launches == 3 for conv in expected)
    assert all(ours[f"data gradient {conv}"].launches == 3 for conv in expected)
    assert all(ours[f"weight gradient {conv}"].launches == 3 for conv in expected)
    assert ours["merge"].launches == ours["arrive"].launches == ours["sum of weight gradients"].launches == 3
    conv = ours["forward conv2"]
    assert conv.requested > conv.read + conv.written > 0 and conv.workspace > 0


def test_profile_counts_pre_activation_blocks_too():
    net = PathResNet(8, num_classes=3, width=8, block="preact").to(DEVICE).train()
    with use_backend("triton"):
        kernels = profile(net, torch.randn(2, 3, 4, 4, device=DEVICE), Paths.backward(3, [1]), backward=True).kernels
    launches = {name.removeprefix("pathnet.triton "): kernel.launches for name, kernel in kernels.items()}
    assert launches["first norm"] == launches["forward conv1"] == launches["forward conv2"] == 3
    assert launches["data gradient conv1"] == launches["weight gradient conv2"] == 1  # FORWARD blocks launch nothing
