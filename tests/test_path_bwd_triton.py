"""path_bwd on the Triton kernels: values against float64, several gradients at once, and what a mask cuts."""

from __future__ import annotations

import pytest
import torch
from test_path_bwd import check, make_call, packed, truth
from triton_cases import DEVICE, assert_requested, interpreted, on_device, requests

from pathnet import use_backend
from pathnet.backend import refusal
from pathnet.kernels.launch import observed
from pathnet.ops.path_bwd import SUPPORTS, path_bwd
from pathnet.reference.path_bwd import path_bwd as reference

pytestmark = on_device


def call(shape, convs=3, times=1, layout=torch.channels_last, dtype=torch.float32):
    gradient, weights, masks = make_call(shape, convs, times, layout)
    return (
        gradient.to(DEVICE, dtype),
        [weight.to(DEVICE, dtype) for weight in weights],
        [mask.to(DEVICE) for mask in masks],
    )


def on_triton(gradient, weights, masks):
    with use_backend("triton"):
        return path_bwd(gradient, weights, packed(masks))


@pytest.mark.parametrize(
    ("shape", "convs", "times", "layout", "dtype"),
    [
        ((2, 16, 9, 8), 2, 3, torch.channels_last, torch.float32),
        ((1, 21, 13, 2), 3, 1, torch.contiguous_format, torch.bfloat16),
        ((2, 72, 3, 3), 1, 2, torch.channels_last, torch.float16),
        ((2, 3, 1, 1), 1, 1, torch.contiguous_format, torch.float32),
        ((2, 20, 5, 7), 0, 2, torch.channels_last, torch.float32),
    ],
    ids=str,
)
def test_values(shape, convs, times, layout, dtype, poisoned):
    gradient, weights, masks = call(shape, convs, times, layout, dtype)
    before = gradient.clone()
    got = on_triton(gradient, weights, masks)
    check(got, reference(gradient, weights, packed(masks)), truth(gradient, weights, masks))
    assert got.stride() == gradient.stride() and torch.equal(gradient, before)
    assert not got[~masks[-1].repeat(times, 1, 1, 1)].any()


def test_several_gradients_are_each_alone_and_what_a_mask_cuts_is_not_read():
    gradient, weights, masks = call((2, 16, 5, 4), times=3)
    together = on_triton(gradient, weights, masks)
    alone = [
        on_triton(part.contiguous(memory_format=torch.channels_last), weights, masks) for part in gradient.chunk(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    gradient[~masks[0].repeat(3, 1, 1, 1)] = torch.nan
    assert torch.equal(on_triton(gradient, weights, masks), together)


@interpreted
def test_requested_bytes_are_what_the_interpreter_loads_and_stores():
    gradient, weights, masks = call((3, 16, 9, 8), convs=2, times=2)
    masks = [torch.ones_like(mask) for mask in masks]  # what a mask cuts is claimed, and not read
    with observed() as launches, requests(launches) as counted:
        on_triton(gradient, weights, masks)
    assert len(launches) == 2
    assert_requested(launches, counted, least=6)


def test_the_registered_op_passes_opcheck():
    gradient, weights, masks = call((2, 16, 4, 4), convs=1)
    given = gradient, weights, packed(masks), "ieee"
    in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.pathnet.path_bwd_triton.default, given, test_utils=in_eager_mode)


def test_what_is_refused_says_why():
    gradient, weights, masks = call((2, 16, 4, 4))

    def why(gradient=gradient, weights=weights) -> str:
        return refusal("path_bwd", "triton", SUPPORTS, gradient, weights, masks) or ""

    assert why() == "" and "float64" in why(gradient.double()) and "no image" in why(gradient[:0])
    assert "weights are torch.float64" in why(weights=[weight.double() for weight in weights])
