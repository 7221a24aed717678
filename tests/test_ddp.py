"""Two ranks over gloo train as one process with the joined batch does: no hang, no search, no touched block moves."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from pathnet import Gate, PathResNet, Paths
from pathnet.ops import untouched
from pathnet.samplers import DropPath, KeepExactly

RANKS, ROWS = 2, 3
MASKS = [  # three different masks; 8 layers, 3 blocks
    Paths.keep(3, [0, 2]),
    Paths([Gate.FORWARD, Gate.FULL, Gate.FROZEN]),
    Paths([Gate.RESIDUAL, Gate.OFF, Gate.FULL]),
]


def make_net(block: str, paths=None, dtype: torch.dtype = torch.float64) -> PathResNet:
    torch.manual_seed(0)
    return PathResNet(8, 4, block=block, shortcut="conv", width=4, paths=paths).to(dtype)


def train(net, model, mask_steps, rows: slice) -> list[list[bool]]:
    """Train a few steps on running statistics; return which gradients were None after each."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    missing = []
    for paths in mask_steps:
        x = torch.randn(RANKS * ROWS, 3, 8, 8, generator=generator, dtype=net.fc.weight.dtype)[rows]
        y = torch.randint(0, 4, (RANKS * ROWS,), generator=generator)[rows]
        optimizer.zero_grad()
        F.cross_entropy(model(x) if paths is None else model(x, paths=paths), y).backward()
        missing.append([p.grad is None for p in net.parameters()])
        optimizer.step()
    return missing


CASES = {
    "masks": (("basic", None), {}),
    "masks, bucket view": (("preact", None), {"gradient_as_bucket_view": True}),
    "masks, kernels of the CPU": (("basic", None, torch.float32), {}),
    "batch draws": (("basic", KeepExactly(1)), {}),
    "row draws": (("basic", DropPath(0.7)), {}),
}


def masks_of(sampler) -> list:
    return MASKS if sampler is None else [None] * 4


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    rows = slice(rank * ROWS, (rank + 1) * ROWS)
    results = {}
    for name, (kind, options) in CASES.items():
        net = make_net(*kind)
        missing = train(net, DistributedDataParallel(net, **options), masks_of(net.paths), rows)
        results[name] = {"parameters": [p.detach() for p in net.parameters()], "missing": missing}
    untouched.keep_none = lambda *args: None  # the guard switched off
    net = make_net("basic")
    results["no guard"] = train(net, DistributedDataParallel(net), MASKS, rows)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process_with_the_joined_batch(ranks, case):
    net = make_net(*CASES[case][0])
    missing = train(net, net, masks_of(net.paths), slice(None))
    exact = net.fc.weight.dtype == torch.float64
    assert any(any(step) for step in missing), "the masks must leave some parameter untouched"
    for result in ranks:
        assert result[case]["missing"] == missing
        for joined, parallel in zip(net.parameters(), result[case]["parameters"], strict=True):
            tolerance = dict(rtol=1e-9, atol=1e-11) if exact else dict(rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(parallel, joined.detach(), **tolerance)


def test_without_the_guard_untouched_parameters_get_a_gradient(ranks):
    assert not any(any(step) for step in ranks[0]["no guard"])
