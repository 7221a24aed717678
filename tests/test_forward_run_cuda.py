"""The CUDA kernels of a run of FORWARD blocks, executed on the host: values, races, bugs that must be found."""

from __future__ import annotations

import pytest
import torch
from cuda_host.host import SCHEDULES, Edit, KernelError, library
from cuda_host.ops import OPERANDS, array

from pathnet.reference.forward_run import _pack, _unpack

pytestmark = pytest.mark.cuda_host
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def kernels(dtype=torch.bfloat16, mode="values", edits=()):
    return library("forward_run.cpp", mode, (f"OPERAND={OPERANDS[dtype]}",), tuple(edits))


def merge(x, f, rows, scales, bits, first, down=2, schedule="in order", **how):
    """y and the run's bits; rows that do not run keep x."""
    y, bits = x.clone(), bits.clone()
    inputs = {"x": x, "f": f, "rows": rows, "scales": scales}
    kernels(x.dtype, **how)(
        "merge",
        {name: array(tensor) for name, tensor in inputs.items()},
        {"y": array(y), "bits": array(bits)},
        [len(rows), x[0].numel(), first, down],
        schedule,
        written=("y", "bits"),
    )
    return y, bits


def case(dtype=torch.bfloat16, count=3, shape=(16, 5, 5)):
    x, f = torch.randn(4, *shape).relu().to(dtype), torch.randn(count, *shape).to(dtype)
    rows = torch.tensor([2, 0, 3, 1][:count], dtype=torch.int32)
    bits = torch.randint(0, 256, (4, x[0].numel() // 8), dtype=torch.uint8)
    return x, f, rows, torch.rand(count) + 0.5, bits


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 5, 5), (8, 1, 1), (64, 8, 9)])
def test_merge(shape, dtype, first):
    x, f, rows, scales, bits = case(dtype, shape=shape)
    y, merged = merge(x, f, rows, scales, bits, first)
    index = rows.long()
    exact = (x[index].double() + scales.double().view(-1, 1, 1, 1) * f.double()).relu()
    truth = x.double().index_copy(0, index, exact)
    assert ((y.double() - truth).abs() <= truth.abs() * torch.finfo(dtype).eps).all()
    alive = _pack(exact > 0, channels_last=False).view(len(rows), -1)
    assert torch.equal(merged, bits.index_copy(0, index, alive if first else alive & bits[index]))


def test_nan_is_not_alive_and_stays():
    x, f, rows, scales, bits = case()
    f[0, 0, 0, 0] = torch.nan
    y, merged = merge(x, f, rows, scales, bits, True)
    assert y[2, 0, 0, 0].isnan() and merged[2, 0] & 1 == 0


def backward(grad, bits, schedule="in order", **how):
    out = torch.full_like(grad, torch.nan)
    kernels(grad.dtype, **how)(
        "backward", {"grad_y": array(grad), "bits": array(bits)}, {"grad_x": array(out)}, [bits.numel()], schedule
    )
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(dtype):
    grad = torch.randn(3, 16, 7, 5).to(dtype)
    bits = torch.randint(0, 256, (grad.numel() // 8,), dtype=torch.uint8)
    assert torch.equal(backward(grad, bits), grad * _unpack(bits, grad, channels_last=False))
    dead = torch.zeros_like(bits)
    assert torch.equal(backward(torch.full_like(grad, torch.inf), dead), torch.zeros_like(grad))


def row_tables(gates, schedule="in order", seed=1, **how):
    images, blocks = gates.shape
    rows, counts = torch.full((blocks, images), -9, dtype=torch.int32), torch.full((blocks,), -9, dtype=torch.int32)
    outputs = {"rows": array(rows), "counts": array(counts)}
    kernels(**how)("row_tables", {"gates": array(gates)}, outputs, [images, blocks], schedule, seed)
    return rows, counts


@pytest.mark.parametrize("images", [1, 31, 256, 257, 600])
def test_row_tables(images):
    gates = torch.randint(0, 5, (images, 3), dtype=torch.int8) * (torch.rand(images, 3) < 0.5)
    rows, counts = row_tables(gates)
    for block in range(3):
        on = torch.nonzero(gates[:, block]).flatten().int()
        assert counts[block] == len(on)
        assert torch.equal(rows[block], torch.nn.functional.pad(on, (0, images - len(on)), value=-1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_access_is_allowed_under_every_schedule(schedule):
    x, f, rows, scales, bits = case()
    how = {"mode": "check", "schedule": schedule}
    assert all(map(torch.equal, merge(x, f, rows, scales, bits, False, **how), merge(x, f, rows, scales, bits, False)))
    grad = torch.randn(2, 16, 5, 5).bfloat16()
    assert torch.equal(backward(grad, bits.flatten()[:100], **how), backward(grad, bits.flatten()[:100]))
    gates = torch.randint(0, 2, (600, 2), dtype=torch.int8)
    assert all(map(torch.equal, row_tables(gates, **how), row_tables(gates)))


FILE = "forward_run.cuh"
BUGS = {
    "last byte of a row and one more": (
        "out of bounds|race",
        "merge",
        "if (byte >= bytes) return;\n  for",
        "if (byte > bytes) return;\n  for",
    ),
    "image of the wrong row": ("differs|race", "merge", "nullptr ? r : __ldg(plan.rows + r)", "nullptr ? r : r"),
    "bits not merged": ("differs", "merge", "plan.first ? alive : alive & *bits", "alive"),
    "mask of zero": ("differs", "merge", "(y > 0.f) << i", "(y >= 0.f) << i"),
    "rows taken twice": ("race", "merge", "r += gridDim.y", "r += 1"),
    "bits of the neighbour": ("differs", "backward", "alive >> i & 1", "alive >> (i ^ 1) & 1"),
    "counts read before they stand": (
        "race|uninitialised",
        "tables",
        "__popc(of_warp);\n    __syncthreads();",
        "__popc(of_warp);",
    ),
    "counts overwritten while they are read": (
        "race",
        "tables",
        "    __syncthreads();  // the counts",
        "    // the counts",
    ),
    "warps in the wrong order": ("differs|race", "tables", "w == warp && on", "w == 7 - warp && on"),
    "one image too many": ("out of bounds", "tables", "image < images &&", "image <= images &&"),
}  # bug -> what is said, which kernel, the edit


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    pattern, kernel, text, replacement = BUGS[bug]
    how = {"mode": "check", "schedule": "skewed by warp", "edits": (Edit(FILE, text, replacement),)}
    x, f, rows, scales, bits = case()
    x[:, 0] = 0.0
    f[:, 0] = 0.0
    grad, gates = torch.randn(2, 16, 5, 5).bfloat16(), torch.randint(0, 2, (600, 2), dtype=torch.int8)
    calls = {
        "merge": lambda **how: merge(x, f, rows, scales, bits, False, **how),
        "backward": lambda **how: (backward(grad, bits.flatten()[:100], **how),),
        "tables": lambda **how: row_tables(gates, **how),
    }
    with pytest.raises(KernelError, match=pattern):
        if not all(map(torch.equal, calls[kernel](**how), calls[kernel]())):
            raise KernelError("differs")
