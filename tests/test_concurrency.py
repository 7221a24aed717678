"""Several Python threads at once, and forked data loader workers, get what one thread gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from cases import make_stage, specs
from torch.utils.data import DataLoader, Dataset

from pathnet import extension, use_backend
from pathnet.ops import stage
from pathnet.ops.stage_eval import SUPPORTS as EVALUATES
from pathnet.ops.stage_train import SUPPORTS as TRAINS
from pathnet.route import Route

THREADS, ROUNDS = 4, 5
GATES = ([1, 1, 1], [1, 0, 1], [2, 1, 3], [4, 0, 2])


def evaluate(net, x, route) -> list:
    with torch.no_grad():
        return [stage(x, specs(net), route)]


def train(net, x, route) -> list:
    """Output and gradients, which no other call adds to."""
    x = x.clone().requires_grad_()
    y = stage(x, specs(net), route)
    grads = torch.autograd.grad(y.square().sum(), [x, *net.parameters()], allow_unused=True)
    return [y.detach(), *grads]


def built(supports: dict) -> list[str]:
    """Those that run here. Triton's interpreter, which patches its language for a call, knows one thread."""
    return [name for name in supports if name in ("cpu", "reference") and (name != "cpu" or extension.available())]


WAYS = [
    pytest.param(way, on_batch_statistics, backend, id=f"{name}-{backend}")
    for name, way, on_batch_statistics, supports in (
        ("evaluate", evaluate, False, EVALUATES),
        ("running statistics", train, False, TRAINS),
        ("batch statistics", train, True, TRAINS),
    )
    for backend in built(supports)
]


def work(form: str) -> tuple[torch.nn.Module, list]:
    """A stage, and inputs and gates of unlike sizes for each thread, so that none finds another's memory fitting."""
    net = make_stage(form, "conv")
    inputs = [torch.randn(1 + i, 16, 8 + 2 * i, 12) for i in range(THREADS)]
    multiplier = torch.ones(3, dtype=torch.float64)
    return net, [
        (x, Route(torch.tensor(gates, dtype=torch.int8), multiplier, update=False))
        for x, gates in zip(inputs, GATES, strict=True)
    ]


def assert_same(got: list, want: list) -> None:
    assert [g is None for g in got] == [w is None for w in want]
    for g, w in zip(got, want, strict=True):
        assert g is None or torch.equal(g, w)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("form", ["basic", "preact"])
@pytest.mark.parametrize("way, on_batch_statistics, backend", WAYS)
def test_python_threads_do_not_disturb_each_other(way, on_batch_statistics, backend, form):
    net, jobs = work(form)
    net.train(on_batch_statistics)
    start = Barrier(THREADS)

    def repeat(job: tuple) -> list:
        start.wait()
        return [way(net, *job) for _ in range(ROUNDS)]

    with use_backend(backend):
        expected = [way(net, *job) for job in jobs]
        with ThreadPoolExecutor(THREADS) as pool:
            for found, want in zip(pool.map(repeat, jobs), expected, strict=True):
                for got in found:
                    assert_same(got, want)


class Features(Dataset):
    """Images that a stage has worked on, as a data set that extracts features computes them."""

    def __init__(self, net, jobs: list) -> None:
        self.net, self.jobs = net, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return evaluate(self.net, *self.jobs[index])[0]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("backend", built(EVALUATES))
def test_forked_workers_of_a_data_loader(backend):
    net, jobs = work("basic")
    with use_backend(backend):
        expected = [evaluate(net, *job)[0] for job in jobs]  # the parent's threads have worked before the fork
        loader = DataLoader(
            Features(net, jobs), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120
        )
        for got, want in zip(loader, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
