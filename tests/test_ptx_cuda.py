"""The CUDA kernels as PTX for sm_80, executed: values and every gradient against float64, and bugs that are found."""

from __future__ import annotations

import json
import re

import pytest
import torch
from cuda_train_cases import TF32, stage_of
from net_eval_cases import DTYPES, make_net
from net_eval_cases import check as check_net
from net_eval_cases import run as run_net
from ptx.cuda_kernels import Edit, OnPtx, executed
from ptx.launch import launch
from ptx.parse import PtxError
from training_cases import check, route_of, step
from triton_cases import DIRECT, halves

from pathnet import Paths
from pathnet.ops.cuda_compile import launch_description, ptx_of, why_not
from pathnet.ops.cuda_kernels import KERNELS

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.usefixtures("cuda_anywhere"),
]


def case(dtype: torch.dtype = torch.bfloat16, shape=(3, 16, 14, 15), blocks: int = 1, form: str = "basic"):
    """A run of blocks, and images of which the weight gradient gets a slot."""
    return stage_of(dtype, shape[1], blocks, form), torch.rand(shape).to(dtype)


@pytest.mark.parametrize("block, dtype", [("basic", dtype) for dtype in DTYPES] + [("preact", torch.bfloat16)])
def test_a_net(block, dtype):
    """A block is OFF, and another has a multiplier."""
    paths = Paths(torch.tensor([[1, 0, 1]])).scaled(torch.tensor([[1.0, 1.0, 0.5]]))
    check_net(make_net(block=block, shortcut="conv"), torch.randn(1, 3, 9, 8).to(dtype), paths, kind=OnPtx)


@pytest.mark.parametrize(
    "form, dtype, shape, gates",
    [
        ("basic", torch.bfloat16, (3, 16, 14, 15), [1, 2, 4]),
        ("basic", torch.bfloat16, (2, 16, 20, 29), [3]),  # bands of 8, 8 and 4 rows, two slots
        ("basic", torch.float16, (5, 32, 15, 16), [1]),
        pytest.param("basic", torch.bfloat16, (37, 64, 8, 8), [1], marks=pytest.mark.slow),
        ("preact", torch.bfloat16, (3, 16, 14, 15), [4, 2, 1]),
        pytest.param("preact", torch.float16, (5, 32, 15, 16), [3, 1], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training(form, dtype, shape, gates):
    stage, x = case(dtype, shape, len(gates), form)
    with executed() as runner:
        check("cuda", stage, x, route_of(gates, torch.linspace(0.5, 1.5, len(gates))), DIRECT)
    trains = any(gate in (1, 4) for gate in gates)
    assert runner.launches == sum({2: 2}.get(gate, 4) for gate in gates) + 2 + trains


@pytest.mark.parametrize(
    "shape, gates",
    [((2, 16, 12, 13), [2, 1]), pytest.param((3, 32, 14, 15), [1], marks=pytest.mark.slow)],
    ids=str,
)
def test_training_in_tf32(shape, gates):
    stage, x = case(torch.float32, shape, len(gates))
    with executed():
        check("cuda", stage, x, route_of(gates), TF32, (halves(stage, torch.bfloat16), x.bfloat16()))


def test_the_order_of_blocks_changes_no_bit():
    stage, x = case(shape=(2, 16, 20, 29))
    got = []
    for backwards in (False, True):
        with executed(backwards=backwards):
            got.append(step("cuda", stage, x))
    assert all(torch.equal(value, got[1][name]) for name, value in got[0].items())


def described(function: str) -> tuple[str, dict]:
    """PTX and launch description as `pathnet kernels --ptx` writes them."""
    (kernel,) = (kernel for kernel in KERNELS if kernel.function == function)
    ptx = ptx_of(kernel, 80)
    return ptx, json.loads(json.dumps(launch_description(kernel, 80, ptx)))


def test_the_description_of_a_launch_is_enough_to_launch_it():
    ptx, description = described("pathnet::probe_kernel")
    launch(ptx, description, {"out": (out := torch.zeros(300, dtype=torch.int32))})
    assert (out == 800).all()


def test_a_struct_is_laid_out_as_described():
    """The sum of weight gradients in the order of their slots."""
    ptx, description = described("pathnet::train::stage_train_sum_kernel<pathnet::Bf16>")
    shapes = {field["name"]: field["shape"] for field in description["parameters"][0]["fields"] if "shape" in field}
    partial, total = torch.randn(shapes["partial"]), torch.zeros(shapes["total"]).bfloat16()
    launch(ptx, description, {"partial": partial, "total": total})
    expected = torch.zeros(shapes["total"])
    for slot in partial:
        expected += slot
    assert torch.equal(total, expected.bfloat16())


# ---- bugs in the text ------------------------------------------------------------------------------------------------


def instead(old: str, new: str) -> Edit:
    """The PTX with this in place of that, wherever it stands."""
    return lambda ptx: re.sub(old, new, ptx, flags=re.DOTALL)


def without(instruction: str, nth: int) -> Edit:
    """The PTX without the nth of these instructions, where there are so many."""

    def edit(ptx: str) -> str:
        places = [found.span() for found in re.finditer(instruction, ptx)]
        if nth >= len(places):
            return ptx
        begin, end = places[nth]
        return ptx[:begin] + ptx[end:]

    return edit


MMA = r"(mma\S+ \{[^}]*\}, \{)(%r\d+), (%r\d+), (%r\d+), (%r\d+)(\}, \{)(%r\d+), (%r\d+)"
PRODUCTS = {
    "rows of a swapped": instead(MMA, r"\1\3, \2, \5, \4\6\7, \8"),
    "depths of a swapped": instead(MMA, r"\1\4, \5, \2, \3\6\7, \8"),
    "registers of b swapped": instead(MMA, r"\1\2, \3, \4, \5\6\8, \7"),
    "matrices in another order": instead(
        r"(ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16 \{)(%r\d+), (%r\d+)", r"\1\3, \2"
    ),
    "halves packed the wrong way round": instead(r"(cvt\.rn\.bf16x2\.f32 %r\d+), (%f\d+), (%f\d+)", r"\1, \3, \2"),
}


@pytest.mark.parametrize("bug", PRODUCTS)
def test_a_wrong_product_is_found(bug):
    net, x = make_net(), torch.randn(1, 3, 9, 8).bfloat16()
    with pytest.raises(AssertionError, match="error"):
        check_net(net, x, kind=OnPtx, edit=PRODUCTS[bug])


def test_copies_that_are_not_waited_for_are_found():
    net, x = make_net().bfloat16(), torch.randn(1, 3, 9, 8).bfloat16()
    with pytest.raises(PtxError, match="not waited for|nobody has"):
        run_net(net, x, kind=OnPtx, edit=instead("cp.async.wait_group", "//"))


TRANSPOSED = r"(ldmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16 \{)(%r\d+), (%r\d+)"
TRAINING = {
    "transposed matrices in another order": (instead(TRANSPOSED, r"\1\3, \2"), "4-d weights: error"),
    "a counter that orders nothing": (instead("acq_rel", "relaxed"), "race with .* of block"),
    "no barrier before the arrival": (
        instead(r"bar\.sync\s+0;(?=(?:(?!bar\.sync).)*atom\.)", ""), "race"
    ),
    "no barrier behind a tile": (without(r"bar\.sync\s+0;", 1), "race|nobody has"),
    "a slot beyond the last": (instead(r"(st\.global\.f32\s+\[%rd\d+)\]", r"\1+67108864]"), "outside"),
}  # fmt: skip


@pytest.mark.parametrize("bug", TRAINING)
def test_a_bug_of_training_is_found(bug):
    edit, words = TRAINING[bug]
    stage, x = case(shape=(2, 16, 20, 29))
    with pytest.raises((AssertionError, PtxError), match=words), executed(edit):
        check("cuda", stage, x, None, DIRECT)
