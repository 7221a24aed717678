"""The runtime that executes CUDA kernels on the host: thread blocks that meet through global memory."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host.host import SCHEDULES, KernelError, library

pytestmark = pytest.mark.cuda_host
BLOCKS, THREADS = 6, 64


def kernels(mode="values", without=None):
    return library("last_block.cpp", mode, () if without is None else (f"WITHOUT={without}",))


def sum_slots(mode="values", without=None, fences=False, **how):
    """The sums, and in which place each thread block arrived."""
    values = np.arange(BLOCKS * THREADS, dtype=np.float32)
    counter, arrival, total = np.zeros(1, np.int32), np.full(BLOCKS, -1, np.int32), np.full(THREADS, np.nan, np.float32)
    outputs = {"slots": np.full_like(values, np.nan), "counter": counter, "arrival": arrival, "sum": total}
    numbers = [BLOCKS, THREADS, fences]
    kernels(mode, without)("sum", {"values": values}, outputs, numbers, written=("counter",), **how)
    assert counter[0] == 0
    return total, arrival


@pytest.mark.parametrize("fences", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_thread_block_sees_what_all_have_left(schedule, fences):
    truth = 2 * np.arange(BLOCKS * THREADS).reshape(BLOCKS, THREADS).sum(0)
    for seed in range(3):
        total, arrival = sum_slots("check", fences=fences, schedule=schedule, seed=seed)
        assert (total == truth).all() and sorted(arrival) == list(range(BLOCKS))


@pytest.mark.parametrize("schedule", ["random", "skewed by warp", "skewed by thread", "skewed by block"])
def test_thread_blocks_arrive_in_many_orders(schedule):
    orders = {tuple(sum_slots(schedule=schedule, seed=seed, resident=BLOCKS)[1]) for seed in range(8)}
    assert len(orders) > 2


def test_in_order_they_come_one_after_the_other():
    assert (sum_slots()[1] == range(BLOCKS)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("resident", [1, 3, 8])
def test_as_many_thread_blocks_are_resident_as_were_asked_for(resident, schedule):
    most = 0
    for seed in range(5):
        there, seen = np.zeros(1, np.int32), np.zeros(8, np.int32)
        how = {"schedule": schedule, "seed": seed, "resident": resident}
        kernels()("company", {}, {"there": there, "most": seen}, [8, 32], written=("there",), **how)
        most = max(most, seen.max())
    assert most == 1 if schedule == "in order" or resident == 1 else 1 < most <= resident


BUGS = [
    ("BARRIER", False, "race between blocks"),
    ("BARRIER", True, "race between blocks"),
    ("LAST_BARRIER", False, "race|uninitialised"),
    ("RELEASE", False, "race between blocks"),
    ("RELEASE", True, "race between blocks"),
    ("ACQUIRE", True, "race between blocks"),
    ("OWN_SLOT", False, "race between blocks"),
]


@pytest.mark.parametrize("schedule", ["in order", "random"])
@pytest.mark.parametrize("without, fences, pattern", BUGS)
def test_what_is_left_out_is_found(without, fences, pattern, schedule):
    """A barrier before or after the arrival, a fence, a slot of one's own."""
    with pytest.raises(KernelError, match=pattern):
        sum_slots("check", without, fences, schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_write_over_what_another_thread_block_reads_is_a_race(schedule):
    x, y = np.arange(128, dtype=np.float32), np.full(128, np.nan, np.float32)
    how = {"schedule": schedule, "written": ("x",)}
    kernels("check")("shift", {}, {"x": x, "y": y}, [2, 64], **how)
    assert (y == np.roll(np.arange(128), -1)).all()
    with pytest.raises(KernelError, match="race between blocks"):
        kernels("check")("shift", {}, {"x": x, "y": x}, [2, 64], **how)
