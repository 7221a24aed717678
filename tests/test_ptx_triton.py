"""The Triton kernels as PTX for sm_80, executed: values and every gradient against float64, and bugs that are found."""

from __future__ import annotations

import re

import pytest
import torch
from cases import assert_errs_like_eager, double, make_stage, specs
from ptx.eager import Tf32Convolutions
from ptx.parse import PtxError
from ptx.triton_kernels import Edit, executed
from training_cases import check, images, route_of, step
from triton_cases import halves

from pathnet import use_backend
from pathnet.blocks import BLOCKS
from pathnet.kernels import block_run
from pathnet.kernels.launch import INTERPRETED
from pathnet.ops.stage_eval import stage_eval

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(INTERPRETED, reason="Triton compiles nothing here; set TRITON_INTERPRET=0"),
]
SHAPE = 1, 16, 16, 16  # sides are multiples of 16, as in the catalogue: Triton compiles for that
ROWS = [[2, 1, 2], [0, 0, 0], [1, 0, 0]]


@pytest.fixture
def tf32():
    settings = torch.backends.cudnn.conv
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    yield
    settings.fp32_precision = before


def train(form, gates, shape=SHAPE, dtype=torch.bfloat16, training=True, **stage) -> None:
    """A step against float64."""
    blocks = torch.as_tensor(gates).shape[-1]
    route = route_of(gates, [1.0, -0.5, 2.0, 1.0][:blocks])
    stage = make_stage(form, blocks=blocks, **({"stride": 1} | stage)).train(training)
    x = images(stage, shape, route) if dtype == torch.float32 else torch.rand(shape).to(dtype)
    with executed(), Tf32Convolutions():
        check("triton", stage if dtype == torch.float32 else halves(stage, dtype), x, route, 2.0)


@pytest.mark.parametrize("gates", [pytest.param([1, 3, 2, 2], marks=pytest.mark.slow), [3, 4]], ids=str)
def test_all_gates(gates, poisoned):
    train("basic", gates)


def test_running_statistics(poisoned):
    train("basic", [2, 1], training=False)


def test_a_strided_block(poisoned):
    train("basic", [1, 1], (1, 8, 32, 32), channels=8, stride=2)


@pytest.mark.slow
def test_gates_of_each_image(tf32, poisoned):
    train("basic", ROWS, (3, 16, 16, 16), torch.float32)


@pytest.mark.parametrize("form", ["preact", "bottleneck"])
def test_other_blocks(form, poisoned):
    train(form, [1, 2], **({"channels": 16, "width": 4} if form == "bottleneck" else {}))


@pytest.mark.parametrize("rebuilt", [False, True])
def test_an_output_that_nobody_keeps(monkeypatch, rebuilt, poisoned):
    monkeypatch.setattr(BLOCKS["bottleneck"], "recompute", True)
    monkeypatch.setattr(block_run, "rebuilds", lambda *call: rebuilt)
    train("bottleneck", [1, 2], channels=16, width=4)


@pytest.mark.parametrize("form, gates", [("basic", [1, 3]), ("preact", [4])], ids=str)
def test_passes_around_the_vendors_convolutions(monkeypatch, form, gates, poisoned):
    monkeypatch.setattr(block_run, "calls_vendor", lambda *call: True)
    train(form, gates, dtype=torch.float32)


@pytest.mark.parametrize("shape", [SHAPE, (2, 16, 5, 7)], ids=str)
def test_tf32(shape, tf32, poisoned):
    train("basic", [1, 2], shape, torch.float32)


def test_float16(poisoned):
    train("basic", [1], (1, 16, 9, 15), torch.float16)


@pytest.mark.parametrize("gates", [[1, 2], ROWS], ids=str)
def test_evaluation(gates, poisoned):
    blocks = torch.as_tensor(gates).shape[-1]
    stage = halves(make_stage("basic", stride=1, blocks=blocks), torch.bfloat16)
    x, route = torch.rand(len(gates), 16, 16, 16).bfloat16(), route_of(gates)
    with torch.no_grad(), executed(), use_backend("triton"):
        got = stage_eval(x, specs(stage), route)
    with torch.no_grad(), use_backend("reference"):
        eager, truth = stage_eval(x, specs(stage), route), stage_eval(x.double(), specs(double(stage)), route)
    assert_errs_like_eager(got, eager, truth)


def test_the_order_of_blocks_changes_no_bit():
    stage = halves(make_stage("basic", stride=1, blocks=1).train(), torch.bfloat16)
    x, got = torch.rand(SHAPE).bfloat16(), []
    for backwards in (False, True):
        with executed(backwards=backwards):
            got.append(step("triton", stage, x))
    assert all(torch.equal(value, got[1][name]) for name, value in got[0].items())


def without(line: str, nth: int = 0) -> Edit:
    """The PTX with the nth line that begins so left out."""

    def edit(ptx: str) -> str:
        lines = ptx.split("\n")
        places = [i for i, text in enumerate(lines) if text.strip().startswith(line)]
        del lines[places[nth]]
        return "\n".join(lines)

    return edit


def instead(old: str, new: str) -> Edit:
    def edit(ptx: str) -> str:
        assert re.search(old, ptx), old
        return re.sub(old, new, ptx, count=1)

    return edit


BUGS = {
    "copies not waited for": (lambda ptx: ptx.replace("cp.async.wait_group", "//"), "not waited for|nobody has"),
    "no barrier behind a copy": (without("bar.sync", 0), "race"),
    "no barrier before the counter": (
        lambda ptx: re.sub(r"bar\.sync\s+0;(?=(?:(?!bar\.sync).)*atom\.)", "", ptx, count=1, flags=re.DOTALL),
        "race",
    ),
    "the counter orders nothing": (instead("acq_rel", "relaxed"), "race with .* of block"),
    "another row of shared memory": (instead(r"(ldmatrix\S+ \{[^}]*\}, \[%r\d+)\]", r"\1+2048000]"), "outside"),
    "an address between two rows": (instead(r"(ldmatrix\S+ \{[^}]*\}, \[%r\d+)\]", r"\1+8]"), "aligned"),
    "a store beyond the tensor": (instead(r"(st\.global\S+ \[ %rd\d+ \+ )0", r"\g<1>1048576"), "outside"),
    "an unknown instruction": (instead("bar.sync", "bar.arrive"), "bar.arrive is not known"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_found(bug):
    edit, words = BUGS[bug]
    stage = halves(make_stage("basic", stride=1, blocks=1).train(), torch.bfloat16)
    with pytest.raises(PtxError, match=words), executed(edit):
        step("triton", stage, torch.rand(SHAPE).bfloat16())


def test_a_wrong_product_is_found():

    def swapped(ptx: str) -> str:
        return re.sub(r"(mma\S+ \{[^}]*\}, \{ ?)(%r\d+), (%r\d+)", r"\1\3, \2", ptx)

    stage = halves(make_stage("basic", stride=1, blocks=1).train(), torch.bfloat16)
    with pytest.raises(AssertionError, match="error"), executed(swapped):
        check("triton", stage, torch.rand(SHAPE).bfloat16(), None, 2.0)
