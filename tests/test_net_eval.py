"""net_eval: values of its CUDA kernel, executed on the host, against float64; races; bugs that must be found."""

from __future__ import annotations

import pytest
import torch
from cuda_host.host import SCHEDULES, Edit, KernelError
from cuda_host.ops import on_host
from net_eval_cases import DTYPES, check, make_net, run
from torch import nn

from pathnet import Paths
from pathnet.models.whole import whole_net
from pathnet.ops.net_eval import net_eval_masks

pytestmark = pytest.mark.cuda_host


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "block, shortcut", [("basic", "pad"), ("basic", "conv"), ("preact", "pad_end"), ("preact", "conv")]
)
def test_values(block, shortcut, dtype):
    check(make_net(block=block, shortcut=shortcut), torch.randn(1, 3, 16, 16).to(dtype))


@pytest.mark.parametrize("size", [(32, 32), (31, 32), (15, 13), (4, 4), (4, 40), (7, 5)])
def test_sizes(size):
    check(make_net(), torch.randn(1, 3, *size).bfloat16())


@pytest.mark.parametrize("block", ["basic", "preact"])
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_gates_orders_and_multipliers(block, shortcut):
    net, x = make_net(depth=20, block=block, shortcut=shortcut), torch.randn(2, 3, 8, 8).bfloat16()
    check(net, x, Paths(torch.randint(0, 5, (9,))).scaled(torch.rand(9) * 2 - 0.5))
    check(net, x, Paths.delete(9, [0, 3, 6]).reordered([2, 1, 0, 3, 5, 4, 6, 8, 7]))
    check(net, x, Paths(torch.randint(0, 2, (2, 9))).scaled(torch.rand(2, 9)))
    check(net, x, Paths.keep(9, []))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("block, shortcut", [("basic", "conv"), ("preact", "pad"), ("preact", "conv")])
def test_twice_the_channels(block, shortcut, dtype):
    net, x = make_net(block=block, shortcut=shortcut, width=32), torch.randn(2, 3, 9, 12).to(dtype)
    check(net, x, Paths(torch.tensor([[1, 0, 1], [0, 1, 1]])).scaled(torch.rand(2, 3)))


def test_twice_the_channels_of_large_images():
    check(make_net(width=32), torch.randn(1, 3, 32, 32).bfloat16())


def test_off_blocks_are_not_read():
    net, x = make_net(depth=14), torch.randn(1, 3, 8, 8).bfloat16()
    paths = Paths.delete(6, [1, 3])
    clean = run(net.bfloat16(), x, paths)
    for number in (1, 3):
        nn.init.constant_(net.blocks[number].conv1.weight, torch.nan)
    assert torch.equal(run(net, x, paths), clean)
    assert run(net, x).isnan().all()  # and the weights are those that were changed


def test_a_batch_of_lesions_is_one_launch():
    net, x = make_net(depth=14).bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    lesions = [Paths.delete(6, [i]) for i in range(6)] + [Paths.keep(6, range(6)).reordered([1, 0, 2, 3, 4, 5])]
    gates = torch.stack([paths.gates for paths in lesions])
    with on_host():
        got = net_eval_masks(x, whole_net(net), gates, torch.ones(7, 6), [paths.order for paths in lesions])
    for i, paths in enumerate(lesions):
        assert torch.equal(got[:, i], run(net, x, paths))


@pytest.mark.parametrize("layout", ["channels_last", "view"])
def test_layouts(layout):
    net, x = make_net().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    dense = run(net, x)
    other = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else torch.zeros(2, 4, 9, 17)
    if layout == "view":
        other = other.bfloat16()[:, 1:, 1:, 1::2].copy_(x)
    assert torch.equal(run(net, other), dense)


def test_no_image_is_no_launch():
    assert run(make_net().bfloat16(), torch.randn(0, 3, 8, 8).bfloat16()).shape == (0, 10)


def test_more_classes_than_threads():
    check(make_net(num_classes=600), torch.randn(1, 3, 4, 4).bfloat16())


# ---- schedules and checks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("block", ["basic", "preact"])
def test_every_schedule_gives_the_same_bits(block, schedule):
    net, x = make_net(block=block, shortcut="conv").bfloat16(), torch.randn(2, 3, 16, 16).bfloat16()
    first = run(net, x, Paths.delete(3, [1]))
    for seed in (1, 2):
        assert torch.equal(run(net, x, Paths.delete(3, [1]), schedule=schedule, seed=seed), first)


@pytest.mark.parametrize("schedule", ["random", "skewed by warp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "block, shortcut, width", [("basic", "pad", 16), ("preact", "conv", 16), ("preact", "pad", 32)]
)
def test_every_access_is_allowed(block, shortcut, width, dtype, schedule):
    """No race, nothing read that was not written, nothing outside its buffer, no barrier that some threads miss."""
    net, x = (
        make_net(depth=14, block=block, shortcut=shortcut, width=width).to(dtype),
        torch.randn(2, 3, 9, 8).to(dtype),
    )
    gates = torch.tensor([[1, 0, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1]])
    assert torch.equal(run(net, x, Paths(gates), mode="check", schedule=schedule), run(net, x, Paths(gates)))


BUGS = {
    "image read before all of it stands": (
        "race|uninitialised",
        Edit("net_eval_weights.cuh", "    __syncthreads();\n    fetch", "    fetch"),
    ),
    "weights not waited for": (
        "asynchronous copy not waited for",
        Edit("net_eval_weights.cuh", "copy_async_wait<kSlots - 2>", "copy_async_wait<kSlots - 1>"),
    ),
    "slot refilled while it is read": (
        "race|not waited for",
        Edit("net_eval_weights.cuh", "fetch(slot_ == 0 ? kSlots - 1 : slot_ - 1)", "fetch(slot_)"),
    ),
    "inner tile written over x too early": (
        "race",
        Edit("net_eval.cuh", "inner);\n    __syncthreads();\n    write_inner", "inner);\n    write_inner"),
    ),
    "halo not cleared at a stage's end": (
        "uninitialised|differs",
        Edit("net_eval.cuh", "    zero_halo(tile<2 * S::kChannels>(), to.height, to.width);\n", ""),
    ),
    "last column of the halo missed": (
        "race|uninitialised",
        Edit("net_eval_tile.cuh", "side % 2 * (width + 1)", "side % 2 * width"),
    ),
    "pooling before everybody has read the tile": (
        "race",
        Edit(
            "net_eval.cuh",
            "    __syncthreads();\n#pragma unroll\n    for (int c = 0",
            "#pragma unroll\n    for (int c = 0",
        ),
    ),
    "one class too many": ("out of bounds", Edit("net_eval.cuh", "i < plan_.classes;", "i <= plan_.classes;")),
    "barrier that half of the threads miss": (
        "divergence|deadlock",
        Edit(
            "net_eval.cuh",
            "    if (threadIdx.x < kWidest) {\n",
            "    if (threadIdx.x < kWidest) {\n      __syncthreads();\n",
        ),
    ),
    "gate of the wrong block": (
        "differs|not waited for",
        Edit("net_eval.cuh", "static_cast<int64_t>(opaque(mask_)) * plan_.blocks() + position;", "position;"),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    pattern, edit = BUGS[bug]
    net, x = make_net(depth=14).bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    paths = Paths(torch.tensor([[1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1]]))
    with pytest.raises(KernelError, match=pattern):
        got = run(net, x, paths, mode="check", schedule="skewed by warp", edits=(edit,))
        if not torch.equal(got, run(net, x, paths)):
            raise KernelError("differs")
