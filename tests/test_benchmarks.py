"""The benchmark harness: statistics, bounds, memory, and that both sides of every ratio compute the same."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks import agreement, memory, providers, report
from benchmarks.bounds import Bound, Ceilings, count_work
from benchmarks.cases import EFFECTIVE, EVALUATION, RESTRICTED, TRAINING, Case
from benchmarks.harness import Race, Spread
from pathnet.cli import bench

WORKS = (EVALUATION, TRAINING, RESTRICTED, EFFECTIVE)


def test_spread_of_a_known_sample():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_ratios_are_taken_round_by_round():
    """The machine slows down threefold in the second round: times spread, the ratio stays 2."""
    ticks = iter([0, 2, 2, 3, 0, 6, 6, 9])  # eager takes 2 and 6, ours 1 and 3
    race = Race({"eager": lambda: None, "ours": lambda: None}, clock=lambda: next(ticks))
    for _ in range(2):
        race.run_rivals()
        race.run_subject()
    assert race.seconds == {"eager": [2, 6], "ours": [1, 3]}
    assert race.ratios("eager") == {"ours": Spread(2.0, 2.0, 2.0, 2.0, 2.0)}
    assert race.summary(["eager"])["ratios"]["eager"]["ours"]["median"] == 2.0


def test_rivals_rotate_and_the_subject_comes_last():
    order = []
    race = Race({name: lambda name=name: order.append(name) for name in "abc"})
    race.warm_up(1)
    for _ in range(2):
        race.run_rivals()
        race.run_subject()
    assert "".join(order) == "abc" + "abc" + "bac"


def test_bound_is_the_larger_of_both_ceilings():
    ceilings = Ceilings(flops_per_second=100.0, bytes_per_second=10.0)
    assert Bound.of(1000, 50, ceilings) == Bound(1000, 50, 10.0, "arithmetic")
    assert Bound.of(1000, 500, ceilings) == Bound(1000, 500, 50.0, "memory")


def test_work_of_a_stage_by_hand():
    """Two blocks of two 3x3 convolutions, 16 channels at 32 x 32; a backward costs each of them twice."""
    images, plane = 5, 16 * 32 * 32 * 4
    flops = 4 * 2 * 9 * 16 * 16 * 32 * 32 * images
    parameters = 4 * (4 * 9 * 16 * 16 + 4 * 2 * 16)
    evaluation = count_work(Case(14, "basic", EVALUATION, images, stage=1))
    training = count_work(Case(14, "basic", TRAINING, images, stage=1))
    assert evaluation == (flops, 2 * images * plane + parameters)
    assert training == (3 * flops, 2 * images * plane + 6 * parameters + 2 * 4 * images * plane)


@pytest.mark.parametrize("block", ["basic", "preact"])
def test_work_of_steps_by_paths(block):
    """A FORWARD block saves its backward (2 of 3 units), an OFF block its forward too (3 of 3)."""
    flops = {work: count_work(Case(110, block, work, 2))[0] for work in WORKS}
    saved_by_forward, saved_by_off = (flops[TRAINING] - flops[work] for work in (RESTRICTED, EFFECTIVE))
    assert 0 < flops[EVALUATION] < flops[EFFECTIVE] < flops[RESTRICTED]
    assert 3 * saved_by_forward == 2 * saved_by_off


def test_saved_bytes_counts_storages_once_and_no_parameter():
    linear = nn.Linear(10, 10, bias=False)  # keeps its input (and its weight)
    x = torch.rand(6, 10, requires_grad=True)

    def step():
        y = linear(x).exp()  # keeps its output
        (y + y.view(60).tanh().view(6, 10)).sum().backward()  # keeps the output of tanh

    assert memory.saved_bytes(step, linear) == 3 * 6 * 10 * 4


def test_peak_bytes_of_known_allocations():
    def step():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(5000, dtype=torch.uint8)
        del first, second
        return torch.empty(3000, dtype=torch.uint8)

    assert memory.peak_bytes(step) == 6000


def test_steps_by_paths_need_less_memory_than_the_full_step():
    saved = {}
    for work in WORKS[1:]:
        eager = providers.Shared.of(Case(110, "basic", work, 2, size=8)).eager()
        saved[work] = memory.saved_bytes(eager.step, eager.module)
    assert saved[EFFECTIVE] < saved[RESTRICTED] < saved[TRAINING]


AGREEING = [Case(110, block, work, 2, size=8) for block in ("basic", "preact") for work in (RESTRICTED, EFFECTIVE)]
AGREEING += [Case(14, block, work, 4, size=8) for block in ("basic", "preact") for work in (EVALUATION, TRAINING)]
AGREEING += [Case(14, block, TRAINING, 4, 8, stage) for block in ("basic", "preact") for stage in (1, 2)]
AGREEING += [Case(depth, "imagenet", TRAINING, 4, 32) for depth in (18, 50)]


@pytest.mark.parametrize("case", AGREEING, ids=str)
def test_eager_net_equals_pathnet_with_the_same_state(case):
    assert case.eager_net().state_dict().keys() == providers.pathnet_net(case).state_dict().keys()
    agreement.check(case, "reference")


def test_disagreement_gets_no_number(monkeypatch):
    case = Case(14, "basic", TRAINING, 4, size=8)
    wrong = lambda case, module: lambda x: module(x) * 1.001  # noqa: E731 - one expression is the whole fake
    monkeypatch.setattr(providers, "pathnet_forward", wrong)
    with pytest.raises(AssertionError, match="output of reference"):
        agreement.check(case, "reference")


def test_an_extra_gradient_gets_no_number(monkeypatch):
    case = Case(110, "basic", RESTRICTED, 2, size=8)
    monkeypatch.setattr(providers, "pathnet_forward", lambda case, module: module)  # trains every block
    with pytest.raises(AssertionError, match="exactly the parameters"):
        agreement.check(case, "reference")


def _run(ratio: float) -> dict:
    """What pytest-benchmark leaves of a case in which the reference has this ratio to eager channels-last."""
    spread = asdict(Spread.of([ratio]))
    seconds = {
        providers.CHANNELS_LAST: asdict(Spread.of([ratio])),
        "pathnet reference": asdict(Spread.of([1.0])),
    }
    speed = {
        "kind": "speed",
        "case": asdict(Case(20, "basic", EVALUATION, 8)),
        "subject": "pathnet reference",
        "refused": {"cpu": "cpu cannot run stage_train: no kernel."},
        "bound": asdict(Bound(1, 1, 0.25, "arithmetic")),
        "seconds": seconds,
        "ratios": {providers.CHANNELS_LAST: {"pathnet reference": spread}},
    }
    kept = {providers.CHANNELS_LAST: {"saved": 4 << 20, "peak": 8 << 20}}
    kept["pathnet reference"] = {"saved": 3 << 20, "peak": 8 << 20}
    space = {"kind": "memory", "case": asdict(Case(20, "basic", TRAINING, 8)), "bytes": kept}
    return {
        "machine_info": {
            "cpu": {"brand_raw": "A CPU", "count": 2},
            "python_version": "3.11",
            "system": "Linux",
        },
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "pathnet": {
            "scale": "quick",
            "threads": 1,
            "torch": "2.13",
            "cpu_capability": "AVX2",
            "ceilings": {"flops_per_second": 1e11, "bytes_per_second": 2e10},
        },
        "benchmarks": [{"extra_info": speed}, {"extra_info": space}],
    }


def test_report_says_in_words_what_is_slower():
    page = report.markdown([_run(0.5)])
    assert "pathnet reference takes 2.00 times as long as eager channels-last" in page
    assert "0.50x [0.50, 0.50]" in page and "0.75x" in page and "25 %" in page
    assert "0123456789ab with uncommitted changes" in page and "Not run in 1 cases: no kernel." in page
    assert "times as long" not in report.markdown([_run(1.5)])


def test_bench_outside_a_checkout_is_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert bench.run(_arguments([])) == 2
    error = capsys.readouterr().err
    assert error.startswith("pathnet bench needs a checkout") and error.count("\n") == 1


@pytest.mark.parametrize("wrong", ["0", "-1", "two"])
def test_bench_refuses_thread_counts(wrong, capsys):
    with pytest.raises(SystemExit):
        _arguments(["--threads", wrong])
    assert "whole number of threads" in capsys.readouterr().err


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)
