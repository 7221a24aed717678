"""Gates of each image in training on the Triton kernels: values, every gradient and running statistics, and bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, make_stage, specs
from training_cases import check, images, route_of, step
from triton_cases import DEVICE, DIRECT, assert_requested, halves, interpreted, on_device, requests

from pathnet import PathResNet, use_backend
from pathnet.backend import refusal
from pathnet.kernels.launch import observed
from pathnet.kernels.rows_catalogue import meta_rows_run
from pathnet.ops.stage_train import SUPPORTS
from pathnet.samplers import DropPath

pytestmark = on_device

# An image without a block, runs of FORWARD blocks at both ends and between, skips that are cut, a block that is FROZEN.
GATES = [[1, 0, 2, 3, 1], [0, 0, 0, 0, 0], [2, 4, 0, 3, 2], [2, 2, 1, 0, 0], [0, 1, 4, 2, 1]]


def compare(stage, shape, gates, multiplier=None):
    route = route_of(gates, multiplier)
    x = images(stage, shape, route)
    return check("triton", stage.to(DEVICE), x.to(DEVICE), route, DIRECT)


@pytest.mark.parametrize("training", [True, False])
def test_all_gates(training, poisoned):
    stage = make_stage("basic", stride=1, blocks=5).train(training)
    compare(stage, (5, 16, 3, 4), GATES, [1.0, 0.5, -1.5, 1.0, 2.0])


@pytest.mark.parametrize(
    "shape, gates",
    [((3, 24, 5, 5), [[1, 1], [0, 0], [1, 0]]), ((2, 40, 3, 3), [[0], [1]]), ((2, 5, 9, 9), [[2, 2], [0, 2]])],
    ids=str,
)
def test_sizes(shape, gates, poisoned):
    """Channels beside the blocks' sizes, an image a tile and several, and a run without a gradient of its weights."""
    compare(make_stage("basic", "pad", shape[1], shape[1], stride=1, blocks=len(gates[0])).train(), shape, gates)


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_a_shortcut_that_is_no_identity(shortcut, poisoned):
    compare(make_stage("basic", shortcut, blocks=2).train(), (3, 16, 6, 6), [[0, 1], [1, 1], [1, 0]])


def test_half_precision(poisoned):
    stage, route = make_stage("basic", stride=1, blocks=2).train(), route_of([[1, 1], [0, 4], [1, 2]])
    x = torch.rand(3, 16, 6, 6).bfloat16()
    stage = halves(stage, torch.bfloat16).bfloat16()  # norms too: the reference mixes no dtypes where images differ
    check("triton", stage.to(DEVICE), x.to(DEVICE), route, DIRECT)


def test_memory_formats_and_only_what_is_asked_for(poisoned):
    stage, x = make_stage("basic", stride=1, blocks=2).train().to(DEVICE), torch.randn(3, 16, 5, 4, device=DEVICE)
    route = route_of([[1, 2], [0, 1], [4, 0]])
    expected = step("triton", stage, x, route)
    got = step("triton", stage, x.contiguous(memory_format=torch.channels_last), route)
    assert not got["y"].is_contiguous()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    for name, p in stage.named_parameters():
        p.requires_grad_("1.conv1" in name)
    part = step("triton", stage, x, route)
    assert all((part[name] is None) != p.requires_grad for name, p in stage.named_parameters())
    assert torch.equal(part["1.conv1.weight"], expected["1.conv1.weight"]) and torch.equal(part["x"], expected["x"])


def test_a_net_under_drop_path():
    x, target = torch.randn(4, 3, 8, 8, device=DEVICE), torch.arange(4, device=DEVICE) % 3
    nets = {name: PathResNet(14, num_classes=3, width=8, paths=DropPath(0.5, seed=3)).to(DEVICE) for name in "ab"}
    nets["b"].load_state_dict(nets["a"].state_dict())
    truth = copy.deepcopy(nets["b"]).double()
    for backend, net in (("triton", nets["a"]), ("reference", nets["b"]), ("reference", truth)):
        optimizer = torch.optim.SGD(net.train().parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            with use_backend(backend):
                y = net(x.to(net.fc.weight.dtype))
            torch.nn.functional.cross_entropy(y, target).backward()
            optimizer.step()
    ours, eager, exact = (
        torch.cat([p.detach().double().flatten() for p in net.parameters()]) for net in (*nets.values(), truth)
    )
    assert float((ours - exact).norm()) <= 4 * float((eager - exact).norm()) + 1e-6


BUGS = {
    "statistics of the images with a gradient": (
        "rows_train.py", "inputs, values, slots, counter", "inputs, count, slots, counter"),
    "a mask that begins shut": ("rows_train.py", " | ~joins[:, None]", ""),
    "the skip's gradient under RESIDUAL": ("rows_train.py", "(pixels < skipped)", "(pixels < count)"),
    "a kept value that is overwritten": (
        "rows_train_plan.py", "np.where(stays, images + kept + stays.cumsum() - 1, own)", "own"),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(plant, bug, poisoned):
    stage, route = make_stage("basic", stride=1, blocks=3).train(), route_of([[1, 2, 1], [2, 4, 0], [2, 0, 1]])
    x = images(stage, (3, 16, 3, 4), route)
    plant(*BUGS[bug])
    with pytest.raises(AssertionError):
        check("triton", stage, x, route, DIRECT)


# ---- bytes -----------------------------------------------------------------------------------------------------------


IMAGES = 4


def streams(gates) -> tuple[int, float]:
    """Launches, and unique bytes of activations and masks in T, of a training step."""
    launches = meta_rows_run(16, gates, torch.float16)
    size = launches[0].tensors["x_in"].numel()
    large = (
        launch.unique({name: claimed})
        for launch in launches
        for side in (launch.reads, launch.writes)
        for name, claimed in side.items()
        if launch.tensors[name].numel() >= size // 16 and name not in ("partial", "slots", "total")
    )
    return len(launches), sum(large) / (2 * size)


@pytest.mark.parametrize(
    "gate, launches, streams_of_images",
    [
        (1, 8, 24 + 2 / 16),
        (4, 8, 23 + 2 / 16),  # no skip in the gradient of x
        (3, 6, 24 - 6 + 2 / 16),  # no weight gradients
        (2, 3, 7 + 2 / 16),  # its mask joins that of the block before, which is read and written
    ],
)
def test_a_block_costs_what_its_images_cost(gate, launches, streams_of_images):
    """Half of the images, between two FULL blocks of all."""
    without, more = streams([[1, 1]] * IMAGES), streams([[1, gate, 1], [1, 0, 1]] * (IMAGES // 2))
    assert more[0] - without[0] == launches
    assert more[1] - without[1] == pytest.approx(streams_of_images / 2, abs=1e-9)


@interpreted
def test_requested_bytes_are_what_the_interpreter_loads_and_stores():
    stage = make_stage("basic", "pad", 24, 24, 1, 4).train()
    with observed() as launches, requests(launches) as counted:
        step(
            "triton",
            stage,
            torch.randn(4, 24, 7, 6),
            route_of([[1, 0, 1, 2], [0, 0, 0, 0], [2, 1, 2, 1], [2, 0, 0, 4]]),
        )
    assert {"rows: mask", "copy of rows"} <= {launch.name for launch in launches}
    assert_requested(launches, counted, least=70)


# ---- what PyTorch and a user see -------------------------------------------------------------------------------------


def test_the_registered_ops_pass_opcheck():
    stage, x = make_stage("basic", stride=1, blocks=2).train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    with Recorder() as recorder:
        step("triton", stage, x, route_of([[1, 2], [0, 1]]))
    assert [func.name() for func, _ in recorder.calls] == [
        "pathnet::rows_train_triton_fwd", "pathnet::rows_train_triton_bwd",
    ]  # fmt: skip
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(func, detached, test_utils=in_eager_mode)


def test_what_is_refused_says_why():
    stage, x = make_stage("basic").train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)

    def why(gates, x=x, **changes) -> str:
        return refusal("stage_train", "triton", SUPPORTS, x, specs(stage), route_of(gates)._replace(**changes)) or ""

    assert why([[1, 2, 4], [0, 1, 1]]) == ""
    assert "FROZEN for one image" in why([[1, 1, 1], [1, 3, 1]])
    assert "at least two values" in why([[1, 1, 1], [1, 0, 1]], x[..., :1, :1])
    assert 'bn="all"' in why([[1, 1, 1], [1, 0, 1]], mask_rows=True)
    assert "multipliers differ" in why([[1, 1, 1], [1, 0, 1]], multiplier=torch.rand(2, 3, dtype=torch.float64))
