"""Launches and bytes of the Triton kernels: the model of a block, and what the interpreter really loads and stores."""

from __future__ import annotations

import pytest
import torch
from cases import make_stage
from training_cases import route_of, step, stream
from triton_cases import DEVICE, assert_requested, interpreted, on_device, requests

from pathnet import PathResNet, profile, use_backend
from pathnet.kernels.catalogue import meta_run
from pathnet.kernels.launch import observed
from pathnet.kernels.stage_train_fwd import kept_tensors
from pathnet.kernels.traffic import Geometry

pytestmark = on_device

IMAGES, CHANNELS, SIDE = 128, 16, 32
STREAM = 2 * IMAGES * CHANNELS * SIDE * SIDE  # bytes of T in float16


def totals(gates: list[int]) -> tuple[int, float, float]:
    """Launches, unique bytes of activations and masks, and bytes of weight-gradient slots, in T, for meta tensors."""
    launches = meta_run(CHANNELS, gates, "float16", images=IMAGES, side=SIDE)
    large = [
        t.numel() * t.element_size()
        for launch in launches
        for side in (launch.reads, launch.writes)
        for name in side
        if (t := launch.arguments[name]).numel() >= IMAGES * SIDE * SIDE and name not in ("slots", "partial")
    ]
    slots = [launch.arguments["partial"].numel() * 4 for launch in launches if launch.name.startswith("weight")]
    return len(launches), sum(large) / STREAM, max(slots, default=0) / STREAM


@pytest.mark.parametrize(
    "block, launches, streams",
    [
        ([1], 6, 22),
        ([4], 6, 21),  # no skip in the last gradient
        ([3], 4, 22 - 6 - 1 + 2 / 16),  # no weight gradients; bits instead of x as the mask, written and read
        ([2, 1], 8, 22 + 6 - 1 + 4 / 16),  # bits, written, joined (read and written) and read, instead of x
        ([2, 2, 1], 10, 22 + 12 - 1 + 6 / 16),
    ],
    ids=str,
)
def test_a_block_costs_what_the_model_says(block, launches, streams):
    """Between two FULL blocks, against the same run without it."""
    without, more = totals([1, 1]), totals([1, *block, 1])
    assert more[0] - without[0] == launches
    assert more[1] - without[1] == pytest.approx(streams, abs=1e-9)


def test_a_run_of_full_blocks_has_three_launches_and_a_few_streams_at_its_ends():
    launches, streams, slots = totals([1])
    assert launches == 6 + 3  # merge, arrive and the sum of the weight gradients
    assert streams == 22 - 2 - 2 + 3 + 3 + 2 / 16  # x comes ready and unmasked; y is merged, its gradient arrives
    assert slots <= 0.5


@pytest.mark.parametrize(
    "gates, streams",
    [([2, 2, 2], 1 / 16), ([1], 2 + 1 / 16), ([1, 1], 5 + 1 / 16), ([1, 2, 2, 1], 5 + 2 / 16), ([3, 3], 4 + 2 / 16)],
    ids=str,
)
def test_what_is_kept(gates, streams):
    """Beside the run's own input, 1 T where block 0 trains, which the caller holds; and two states a block."""
    shape = Geometry(IMAGES, SIDE, SIDE, CHANNELS, CHANNELS, 1)
    x = torch.empty((IMAGES, CHANNELS, SIDE, SIDE), dtype=torch.float16, device="meta")
    kept = [t for t in kept_tensors(gates, x, [(shape, shape)] * len(gates)) if t is not None]
    large = [t.numel() * t.element_size() for t in kept if t.numel() > 1000]
    assert sum(large) / STREAM == pytest.approx(streams, abs=1e-9)


@interpreted
@pytest.mark.parametrize("stride, gates", [(1, [1, 2, 1]), (2, [1, 3])])
def test_requested_bytes_are_what_the_interpreter_loads_and_stores(stride, gates):
    inputs = 24 // stride
    stage = make_stage("basic", "pad", inputs, 24, stride, len(gates)).train()
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
