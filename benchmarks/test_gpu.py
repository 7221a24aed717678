"""`pytest benchmarks/ -m gpu`: whole nets on a GPU, pathnet's backends against eager and torch.compile in turns."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from benchmarks.gpu import BACKENDS, CASES, DTYPES, EventRace, contestants, disagreement
from benchmarks.providers import CHANNELS_LAST, PATHNET

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.fixture(autouse=True)
def tf32():
    """float32 products in TF32, for all alike."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gpu_case", CASES, ids=lambda case: case.name)
def test_speed_on_a_gpu(benchmark, gpu_case, dtype, rounds, compiled, capsys):
    torch._dynamo.reset()
    calls, refusals = contestants(
        gpu_case, DTYPES[dtype], "cuda", BACKENDS, compiled=compiled and gpu_case.gates() is None
    )
    ours = [name for name in calls if name.startswith(PATHNET)]
    for name in ours:
        own, eager = disagreement(gpu_case, DTYPES[dtype], "cuda", name.removeprefix(f"{PATHNET} "))
        assert own <= 2 * eager + torch.finfo(DTYPES[dtype]).eps, f"{name}: error {own:.1e}, eager's {eager:.1e}"
    if not ours:
        pytest.skip("; ".join(refusals.values()))
    race = EventRace(calls)
    race.warm_up(3)
    benchmark.pedantic(race.run_subject, setup=race.run_rivals, rounds=4 * rounds)
    summary = race.summary([CHANNELS_LAST])
    benchmark.extra_info.update(
        kind="gpu", case=asdict(gpu_case), dtype=dtype, gpu=torch.cuda.get_device_name(), refusals=refusals, **summary
    )
    with capsys.disabled():
        print(f"\n{gpu_case}, {dtype}, {torch.cuda.get_device_name()}")
        for name, seconds in summary["seconds"].items():
            print(f"  {name:<22} {1000 * seconds['median']:8.3f} ms")
        for backend, reason in refusals.items():
            print(f"  {PATHNET} {backend}: {reason}")
