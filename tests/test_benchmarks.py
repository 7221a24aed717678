"""The benchmark harness: statistics, bounds, memory, and that both sides of every ratio compute the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import pathnet
import pathnet.analysis
from benchmarks import agreement, ceilings, memory, peak, predictions, providers, ran, studies
from benchmarks.bounds import Bound, Work, count_work
from benchmarks.cases import (
    DROP_ACTIVE,
    DROP_MASKED,
    EFFECTIVE,
    EVALUATION,
    INPUT_GRADIENT,
    RATE,
    RESTRICTED,
    SCALES,
    TRAINING,
    Case,
    names,
    select,
)
from benchmarks.ceilings import Ceilings
from benchmarks.harness import Race, Spread
from pathnet import extension

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


def test_names_of_rows_are_unique_and_found():
    for cases in SCALES.values():
        known = names(cases)
        assert len(set(known)) == len(known)
    known = names(SCALES["default"])
    assert select(known, ["eval", "preact-t*"]) == {"eval", "preact-train"}
    assert {"eval-bf16", "eval-batch1", "input-grad", "resnet50-train", "memory-restricted"} <= set(known)
    with pytest.raises(ValueError, match=r"got evil; there are eval, train"):
        select(known, ["eval", "evil"])


def test_floors_of_known_work():
    machine = Ceilings(100.0, {"DRAM read": 10.0, "DRAM write": 1.0, "DRAM stream": 5.0})
    assert Bound.of(Work(1000, 20, 30), machine) == Bound(arithmetic=10.0, memory=2.0 + 6.0)


def test_work_of_a_stage_by_hand():
    """Two blocks of two 3x3 convolutions, 16 channels at 32 x 32; a backward costs each of them twice."""
    images, plane = 5, 5 * 16 * 32 * 32 * 4
    multiply_adds = 4 * 36 * 16 * 16 * 8 * 8 * images
    parameters = 4 * (4 * 9 * 16 * 16 + 4 * 2 * 16)
    evaluation = count_work(Case(14, "basic", EVALUATION, images, stage=1))
    assert evaluation == Work(multiply_adds, plane + parameters, plane)
    basic, preact = (count_work(Case(14, block, TRAINING, images, stage=1)) for block in ("basic", "preact"))
    norms = 4  # read 1 + 2 + 1, written 1 + 1
    read, written = norms * 4 * plane + 4 * parameters + plane, norms * 2 * plane + 3 * parameters + 2 * plane
    assert basic == Work(3 * multiply_adds, read + 2 * 3 * plane, written + 2 * plane)
    assert preact == Work(3 * multiply_adds, read + 2 * 2 * plane, written + 2 * plane)


def test_work_of_layers_that_winograd_does_not_serve():
    """A strided block: the first convolution is direct, as are the stem of an ImageNet net and every 1x1."""
    strided = count_work(Case(8, "basic", EVALUATION, 1, stage=2)).multiply_adds
    assert strided == 9 * 16 * 32 * 16 * 16 + 36 * 32 * 32 * 4 * 4
    seven = count_work(Case(18, "imagenet", EVALUATION, 1, 224))  # 7 x 7 outputs: four tiles for 49
    assert seven.multiply_adds < 1.82e9 / 2


@pytest.mark.parametrize("block", ["basic", "preact"])
def test_work_of_steps_by_paths(block):
    """A FORWARD block saves its backward (2 of 3 units), an OFF block its forward too (3 of 3)."""
    works = {work: count_work(Case(110, block, work, 2)) for work in (*WORKS, INPUT_GRADIENT)}
    sums = {work: counted.multiply_adds for work, counted in works.items()}
    saved_by_forward, saved_by_off = (sums[TRAINING] - sums[work] for work in (RESTRICTED, EFFECTIVE))
    assert 0 < sums[EVALUATION] < sums[EFFECTIVE] < sums[RESTRICTED]
    assert 3 * saved_by_forward == 2 * saved_by_off
    assert sums[INPUT_GRADIENT] == 2 * sums[EVALUATION]
    assert works[INPUT_GRADIENT].read == works[EVALUATION].read < works[EFFECTIVE].read < works[RESTRICTED].read


def test_work_of_dropped_images():
    """A masked image costs what a kept one does; one that is left out costs stem and head alone."""
    plain, masked, active = (count_work(Case(110, "basic", work, 128)) for work in (TRAINING, DROP_MASKED, DROP_ACTIVE))
    assert masked == plain
    assert active.multiply_adds == pytest.approx((1 - RATE) * plain.multiply_adds, rel=0.01)
    assert (1 - RATE) * plain.read < active.read < 0.83 * plain.read


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr(ceilings, "working_sets", lambda caches: {"L1": 8 << 10, "DRAM": 1 << 20})
    machine = ceilings.measure.__wrapped__(2)
    assert isinstance(machine, Ceilings), machine
    assert 1e8 < machine.multiply_adds < 1e13
    assert set(machine.bytes_per_second) == {"L1 read", "L1 write", "DRAM read", "DRAM write", "DRAM stream"}
    assert machine.read > 0 and machine.write == max(machine.bytes_per_second[f"DRAM {w}"] for w in ("write", "stream"))


@pytest.mark.parametrize(("compiler", "words"), [("no-such-c++", "there is no C++ compiler"), ("false", "failed")])
def test_without_ceilings_there_is_a_sentence(monkeypatch, compiler, words):
    monkeypatch.setenv("CXX", compiler)
    reason = ceilings.measure.__wrapped__(1)
    assert isinstance(reason, str) and reason.startswith("The ceilings were not measured: ") and words in reason


def test_cache_sizes_come_from_the_system(tmp_path):
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2048K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    sizes = ceilings.cache_sizes(tmp_path)
    assert sizes == {"L1": 48 << 10, "L2": 2 << 20, "L3": ceilings.USUAL["L3"]}
    assert ceilings.working_sets(sizes) == {"L1": 24 << 10, "L2": 1 << 20, "L3": 16 << 20, "DRAM": 256 << 20}


def test_what_ran_shows_a_fall_back():
    for case in (Case(8, "basic", EVALUATION, 2, 8), Case(8, "basic", EVALUATION, 2, 32, stage=2)):
        blocks, convolutions = (3, 7) if case.stage is None else (1, 2)
        shared = providers.Shared.of(case)
        found = ran.what_ran(case, shared.pathnet())
        assert sum(found.blocks.values()) == blocks and bool(found.ops) == extension.available()
        with pathnet.use_backend("reference"):
            found = ran.what_ran(case, shared.pathnet())
        assert (found.blocks, found.ops, found.convolutions) == ({"reference": blocks}, {}, convolutions)
        assert str(found) == f"reference {blocks} (no op of pathnet, {convolutions} x convolution of PyTorch)"


def test_a_precision_that_does_not_exist_is_a_sentence(monkeypatch):
    def refuse(*args, **settings):
        raise ValueError("precision must be one of None")

    monkeypatch.setattr(pathnet, "PathResNet", refuse)
    with pytest.raises(providers.NotAvailableError, match=r"bf16 products: precision must be"):
        providers.pathnet_net(Case(8, "basic", EVALUATION, 2, precision="bf16"))
    with pytest.raises(ValueError, match="precision must be"):
        providers.pathnet_net(Case(8, "basic", EVALUATION, 2))


def test_saved_bytes_counts_storages_once_and_no_parameter():
    linear = nn.Linear(10, 10, bias=False)  # keeps its input (and its weight)
    x = torch.rand(6, 10, requires_grad=True)

    def step():
        y = linear(x).exp()  # keeps its output
        (y + y.view(60).tanh().view(6, 10)).sum().backward()  # keeps the output of tanh

    assert memory.saved_bytes(step, linear) == 3 * 6 * 10 * 4


def test_growth_sees_what_a_step_touched():
    mebibyte = 1 << 20
    grown = peak.growth(lambda: torch.ones(64 * mebibyte, dtype=torch.uint8))
    assert 60 * mebibyte < grown < 90 * mebibyte


def test_steps_by_paths_need_less_memory_than_the_full_step():
    saved = {}
    for work in WORKS[1:]:
        eager = providers.Shared.of(Case(110, "basic", work, 2, size=8)).eager()
        saved[work] = memory.saved_bytes(eager.step, eager.module)
    assert saved[EFFECTIVE] < saved[RESTRICTED] < saved[TRAINING]


def test_memory_by_gates_of_plain_blocks():
    """A plain FULL block keeps four activations (and its batch statistics); under `no_grad` only what ReLU keeps."""
    basic, preact = (memory.kept_by_gates(block, 2, 8)[providers.CHANNELS_LAST] for block in ("basic", "preact"))
    statistics = 3 * 4 * 16 * 4 / (2 * 16 * 8 * 8 * 4)
    assert basic == {"OFF": 0.0, "FULL": 12 + statistics, "FORWARD": 3.0}
    assert preact == {"OFF": 0.0, "FULL": 12 + statistics, "FORWARD": 0.0}


AGREEING = [Case(110, block, work, 2, size=8) for block in ("basic", "preact") for work in (RESTRICTED, EFFECTIVE)]
AGREEING += [Case(110, "basic", work, 6, size=8) for work in (DROP_MASKED, DROP_ACTIVE)]
AGREEING += [Case(14, block, work, 4, size=8) for block in ("basic", "preact") for work in (EVALUATION, TRAINING)]
AGREEING += [Case(14, block, TRAINING, 4, 8, stage) for block in ("basic", "preact") for stage in (1, 2)]
AGREEING += [Case(14, block, INPUT_GRADIENT, 4, 8) for block in ("basic", "preact")]
AGREEING += [Case(depth, "imagenet", TRAINING, 4, 32) for depth in (18, 50)]


@pytest.mark.parametrize("case", AGREEING, ids=str)
def test_eager_net_equals_pathnet_with_the_same_state(case):
    assert case.eager_net().state_dict().keys() == providers.pathnet_net(case).state_dict().keys()
    agreement.check(case, "reference")


def test_disagreement_gets_no_number(monkeypatch):
    case = Case(14, "basic", TRAINING, 4, size=8)
    wrong = lambda case, module: lambda x: module(x) * 1.001  # noqa: E731 - one expression is the whole fake
    monkeypatch.setattr(providers, "pathnet_forward", wrong)
    with pytest.raises(AssertionError, match=r"output of pathnet \(reference\)"):
        agreement.check(case, "reference")


def test_an_extra_gradient_gets_no_number(monkeypatch):
    case = Case(110, "basic", RESTRICTED, 2, size=8)
    monkeypatch.setattr(providers, "pathnet_forward", lambda case, module: module)  # trains every block
    with pytest.raises(AssertionError, match="exactly the parameters"):
        agreement.check(case, "reference")


def test_predictions_of_weights_from_a_file(tmp_path):
    trained = predictions.Trained(8, tmp_path / "weights.pth")
    torch.save(providers.pathnet_net(Case(8, "basic", EVALUATION, 2)).state_dict(), trained.file)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(100, dtype=np.uint8) % 10)
    data = predictions.load_images(tmp_path / "images.npz")
    assert data[0].shape == (100, 3, 32, 32) and torch.bincount(data[1]).tolist() == [10] * 10
    figures = predictions.compare(predictions.Trained.parse(f"8={trained.file}"), None, data)
    assert figures["agreeing"] == figures["images"] == 100 and figures["correct"] == figures["correct_eager"]
    assert 0 < figures["error_eager"] < 1e-5 and figures["error"] < 4 * figures["error_eager"]


@pytest.mark.parametrize("wrong", ["weights.pth", "x=weights.pth", "20=", "20=no/such/file"])
def test_weights_need_a_depth_and_a_file(wrong):
    with pytest.raises(ValueError, match="must be DEPTH=FILE"):
        predictions.Trained.parse(wrong)


# ---- whole experiments -------------------------------------------------------------------------------------


def test_block_evaluations_of_shared_lists():
    singles, doubles = [(i,) for i in range(54)], list(itertools.combinations(range(54), 2))
    assert studies.evaluations([(), *singles]) == 1485 and studies.evaluations(doubles) == 26234
    assert studies.evaluations([(), (2,)], blocks=3) == 3  # 0 1 2, whose beginning is 0 1


def test_rows_of_experiments_have_names_of_their_own():
    for scale, cases in SCALES.items():
        rows = [*names(cases), *studies.studies(scale)]
        assert len(set(rows)) == len(rows) and {"lesions", "preact-pairs", "paths", "spectrum"} <= set(rows)


@pytest.mark.parametrize("block", ["basic", "preact"])
def test_plain_nets_measure_the_same_lesions_and_paths(block):
    shared = providers.Shared.of(Case(14, block, EVALUATION, 6, size=8))
    data = shared.x.double(), torch.arange(6) % 10
    net, plain = (provider.net.double() for provider in (shared.pathnet(), shared.eager()))
    for deleted in ((), (0,), (2, 5)):
        (lesion,) = pathnet.analysis.evaluate(net, data, [pathnet.Paths.delete(6, deleted)])
        assert torch.equal(lesion.predictions, studies.eager_predictions(plain, data[0], deleted, batch=4))
    for chosen in ((), (2, 3), range(6)):
        gradient, exponent = pathnet.analysis.PathGradients(net, data).along(chosen)
        expected = studies.MaskedNet(plain).input_gradient(*data, chosen)
        assert (gradient * 2.0**exponent - expected).norm() <= 1e-10 * expected.norm()


def test_a_measured_part_stands_for_the_whole():
    ticks = iter([0, 2, 0, 3])
    calls = {providers.NCHW: lambda: None, providers.PATHNET: lambda: None}
    study = studies.Study(calls, lambda: None, "2 of 20 entries", {providers.NCHW: 10})
    race = Race(study.calls, clock=lambda: next(ticks))
    race.run_rivals()
    race.run_subject()
    summary = study.summary(race)
    assert summary["seconds"][providers.NCHW]["median"] == 20
    assert summary["ratios"][providers.NCHW][providers.PATHNET]["median"] == pytest.approx(20 / 3)
