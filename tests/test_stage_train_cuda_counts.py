"""Launches and bytes of the CUDA kernels of training: the model, whole nets, and what threads really ask for."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder
from cuda_host.ops import on_host
from cuda_train_cases import stage_of
from training_cases import route_of, step

from pathnet import use_backend
from pathnet.ops.stage_train_cuda_count import Traffic, launches, launches_of
from pathnet.ops.stage_train_cuda_rules import kept_tensors
from pathnet.ops.stage_train_forms import BASIC, PREACT
from pathnet.profile import count

pytestmark = pytest.mark.cuda_host

IMAGES, FORMS = 128, {"basic": BASIC, "preact": PREACT}
STAGES = ((16, 32, 18), (32, 16, 17), (64, 8, 17))  # channels, side and blocks that keep their shape: ResNet-110
STREAM = 2 * IMAGES * 16 * 32 * 32  # bytes of T with 16 channels, in float16
ENDS = ("first norm", "merge", "arrive", "depart", "sum of weight gradients")


def counted(form: str, gates: list[int], channels: int = 16, side: int = 32) -> list[Traffic]:
    """A step of a run in float16 whose weights are float32 and whose gradients are all asked for."""
    weights = [torch.empty(channels, channels, 3, 3, device="meta")] * (2 * len(gates))
    blocks = [number for gate in gates for number in (FORMS[form], 1, gate)]
    flags, shape = [True] * (4 * len(gates)), (IMAGES, channels, side, side)
    trained = [gate in (1, 4) for gate in gates for _ in range(2)]
    needs = [True, False, *trained, *trained, *trained]
    with on_host():
        return [*launches(shape, 2, weights, blocks, flags), *launches(shape, 2, weights, blocks, flags, False, needs)]


def streams(traffic: list[Traffic]) -> float:
    """Unique bytes of activations and masks, in T: without weights, which T/16 holds many times."""
    return round(sum(launch.read + launch.written for launch in traffic) / STREAM * 16 - 0.5) / 16


@pytest.mark.parametrize(
    "form, block, launched, size",
    [
        ("basic", [1], 4, 16),
        ("basic", [4], 4, 15),  # no skip in the last gradient
        ("basic", [3], 4, 16 - 1 + 2 / 16),  # no x; bits as the mask, written and read
        ("basic", [2, 1], 6, 16 + 6 + 4 / 16),  # bits, written, joined (read and written) and read
        ("preact", [1], 4, 15),
        ("preact", [4], 4, 14),
        ("preact", [3], 4, 15),
        ("preact", [2], 2, 5),
    ],
    ids=str,
)
def test_a_block_costs_what_the_model_says(form, block, launched, size):
    """Between two FULL blocks, against the same run without it."""
    without, more = counted(form, [1, 1]), counted(form, [1, *block, 1])
    assert len(more) - len(without) == launched
    assert streams(more) - streams(without) == pytest.approx(size, abs=1 / 16)


@pytest.mark.parametrize("form, size", [("basic", 16 - 2 - 1 + 3 + 3 + 2 / 16), ("preact", 15 + 1 - 3 + 4)])
def test_a_run_has_three_launches_and_a_few_streams_at_its_ends(form, size):
    """Basic: x comes ready and no norm stands before; y is merged, its gradient arrives. Pre-activation: the first norm
    reads x, the first gradient comes as it is, and the last departs."""
    traffic = counted(form, [1])
    assert len(traffic) == 4 + 3 and sum(launch.name in ENDS for launch in traffic) == 3
    assert streams(traffic) == pytest.approx(size, abs=1 / 16)


@pytest.mark.parametrize("form, kept", [("basic", 3), ("preact", 2)])
def test_what_a_block_keeps(form, kept):
    x = torch.empty(IMAGES, 16, 32, 32, dtype=torch.float16, device="meta")
    two, three = (
        sum(t.nbytes for t in kept_tensors(x, [FORMS[form], 1, 1] * blocks) if t is not None and t.numel() > 1000)
        for blocks in (2, 3)
    )
    assert three - two == kept * STREAM


def chosen(block: int) -> bool:
    return block % 3 == 0 and block < 51  # 17 of 52


@pytest.mark.parametrize(
    "form, full, expected",
    [
        ("basic", lambda block: True, (208, 1.91, 49)),  # 52 x 16 T are 1.92 GiB; each run's first block reads less
        ("basic", chosen, (138, 1.12, 45)),
        ("preact", lambda block: True, (208, 1.79, 41)),
        ("preact", chosen, (138, 0.99, 37)),
    ],
)
def test_a_resnet_110(form, full, expected):
    """The 52 blocks that keep their shape: launches and GiB, and MiB of three launches at the ends of each run."""
    first, traffic = 0, list[Traffic]()
    for channels, side, blocks in STAGES:
        gates = [1 if full(first + block) else 2 for block in range(blocks)]
        traffic, first = traffic + counted(form, gates, channels, side), first + blocks
    ends = [launch for launch in traffic if launch.name in ENDS]
    of_ends, total = (sum(launch.read + launch.written for launch in some) for some in (ends, traffic))
    assert len(ends) == 3 * len(STAGES)
    assert (len(traffic) - len(ends), round((total - of_ends) / 2**30, 2), round(of_ends / 2**20)) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels, side", [stage[:2] for stage in STAGES])
def test_the_merged_backward_asks_for_little_twice(form, channels, side):
    for launch in counted(form, [1, 1, 1], channels, side):
        if launch.name.startswith("backward"):
            assert launch.requested <= 1.3 * (launch.read + launch.written), launch
            weights = launch.workspace - min(IMAGES * 4, 256) * channels * 8  # beside the sums of the norm
            assert 0 < weights <= STREAM * 16 // channels // 2


@pytest.mark.usefixtures("cuda_anywhere")
@pytest.mark.parametrize("form, gates", [("basic", [1, 2, 3, 4]), ("preact", [1, 2, 3, 4])])
def test_what_is_counted_is_what_threads_ask_for(form, gates):
    """To the byte, in bands of 8, 8 and 1 rows; and as many launches."""
    stage, x = stage_of(torch.bfloat16, blocks=len(gates), form=form), torch.rand(2, 16, 17, 29).bfloat16()
    with on_host("check") as host, Recorder() as recorder:
        step("cuda", stage, x, route_of(gates))
        calls = [(op.overloadpacket.__name__, arguments) for op, arguments in recorder.calls]
        told = [launch for name, arguments in calls if "cuda" in name for launch in launches_of(name, arguments)]
    assert len(told) == host.launches
    assert sum(launch.requested for launch in told) == host.requested


@pytest.mark.usefixtures("cuda_anywhere")
def test_profile_counts_the_launches_of_the_kernels():
    stage, x = stage_of(torch.bfloat16, blocks=2, form="preact"), torch.randn(2, 16, 17, 18).bfloat16()
    x.requires_grad_()
    with on_host(), use_backend("cuda"):
        kernels = count(stage, x, route_of([1, 2]), backward=True).kernels
    ours = {name.removeprefix("pathnet.cuda "): k for name, k in kernels.items() if "pathnet.cuda" in name}
    assert {name: kernel.launches for name, kernel in ours.items()} == {
        "first norm": 1, "forward conv1": 2, "forward conv2": 2, "backward conv2": 1, "backward conv1": 1, "depart": 1,
        "sum of weight gradients": 1,
    }  # fmt: skip
    conv = ours["backward conv1"]
    assert conv.requested > conv.read + conv.written > 4 * x.nbytes and conv.workspace > 0
