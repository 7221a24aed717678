"""precision="bf16": rounded operands of the Winograd products, values against float64, and where it is refused."""

from __future__ import annotations

import ast
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import FORMS, SHORTCUTS, Recorder, assert_errs_like_eager, double, make_stage, specs
from test_stage_eval import route_of

from pathnet import PathResNet, Paths, explain, extension, use_backend
from pathnet.ops import stage_eval
from pathnet.ops.stage_eval import MULTIPLY_BF16

INSTRUCTIONS = extension.build_info().get("cpu", {}).get("instructions")
multiplies_bf16 = pytest.mark.skipif(INSTRUCTIONS not in MULTIPLY_BF16, reason="needs AVX512-BF16 or AMX")
compiled = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

ROUNDING = 2.0**-9  # the largest relative error of a number in bf16


def run(x, stage, route=None, precision="bf16"):
    with torch.no_grad(), use_backend("cpu"):
        return stage_eval(x, specs(stage), route, precision)


def reference(x, stage, route=None):
    with torch.no_grad(), use_backend("reference"):
        return stage_eval(x, specs(stage), route)


def winograd_matrices() -> list[torch.Tensor]:
    """B^T, G and A^T of F(4x4, 3x3) with our points: values and weights of polynomials at 5 points and infinity."""
    points = np.array([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])
    others = [np.delete(points, i) for i in range(5)]
    bt = [[*np.poly(q)[::-1], 0] for q in others] + [np.poly(points)[::-1]]
    g = [[p**i / np.prod(p - q) for i in range(3)] for p, q in zip(points, others, strict=True)] + [[0, 0, 1]]
    at = [[*points**i, i == 3] for i in range(4)]
    return [torch.tensor(np.array(matrix, dtype=float)) for matrix in (bt, g, at)]


def winograd(u, v, at, height: int, width: int):
    """y [N, K, H, W] = A^T (sum_c u v) A of u [K, C, 6, 6] and tiles v [N, C, rows, columns, 6, 6]."""
    y = at @ torch.einsum("kcpq,nctspq->nktspq", u, v) @ at.T
    return y.transpose(3, 4).flatten(4, 5).flatten(2, 3)[..., :height, :width]


def conv_and_variance(x, weight, variance):
    """y = conv3x3(x, weight) and the variance of its error where x errs by `variance`.

    Each factor of u v errs by at most 2^-9 of it, of which the variance is 2^-18 / 3 at most, independently of the
    others. Variances add up as the products do, with squared coefficients.
    """
    bt, g, at = winograd_matrices()
    height, width = x.shape[2:]
    tiles = F.pad(x, (1, 1 + -width % 4, 1, 1 + -height % 4)).unfold(2, 6, 4).unfold(3, 6, 4)
    u, v = g @ weight @ g.T, bt @ tiles @ bt.T
    y = F.conv2d(x, weight, padding=1)
    assert torch.allclose(winograd(u, v, at, height, width), y)
    rounded = 2 * ROUNDING**2 / 3 * winograd(u**2, v**2, at**2, height, width)
    return y, rounded + F.conv2d(variance, weight**2, padding=1)


def block_and_deviation(x, block):
    """A basic block in float64, and the standard deviation of its error with operands in bf16."""
    y, variance = x, torch.zeros_like(x)
    for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        y, variance = conv_and_variance(y, conv.weight * scale[:, None, None, None], variance)
        y = y + (norm.bias - norm.running_mean * scale)[:, None, None]
        y = y if norm is block.bn2 else y.relu()  # which never stretches a difference
    return (y + x).relu(), variance.sqrt()


@multiplies_bf16
@pytest.mark.parametrize("channels", [5, 8, 16, 20, 33, 48, 64, 80])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 7), (16, 16)])
@torch.no_grad()
def test_errors_are_those_of_rounded_operands(channels, size, poisoned):
    stage = make_stage("basic", channels=channels, width=channels, stride=1, blocks=1)
    x = torch.randn(20, channels, *size)
    truth, deviation = block_and_deviation(x.double(), double(stage)[0])
    error = (run(x, stage) - truth).abs() / deviation
    assert error.max() < 8  # wider than a normal distribution: neighbours share the errors of a few large factors
    assert 0.2 < error.square().mean().sqrt() < 1.2  # operands are rounded indeed, and ReLU hides some of it


def check(x, stage, route=None):
    half = copy.deepcopy(stage).bfloat16()
    y, eager = run(x, stage, route), reference(x.bfloat16(), half, route)
    assert_errs_like_eager(y, eager, reference(x.double(), double(stage), route))


@multiplies_bf16
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_block_errs_at_most_twice_as_much_as_eager_bf16(form, shortcut, poisoned):
    check(torch.randn(3, 16, 9, 7), make_stage(form, shortcut, width=24))
    check(torch.randn(2, 40, 12, 16), make_stage(form, shortcut, channels=40, width=144))


@multiplies_bf16
@pytest.mark.parametrize("gates", [[0, 0, 0], [1, 0, 1], [0, 2, 3], [4, 1, 0], [[0, 1, 0], [1, 0, 3], [2, 4, 1]]])
@pytest.mark.parametrize("form", FORMS)
def test_gates_and_multipliers(form, gates, poisoned):
    x = torch.randn(3, 16, 8, 8)
    check(x, make_stage(form, "conv"), route_of(gates))
    check(x, make_stage(form, "pad"), route_of(gates, torch.rand(torch.tensor(gates).shape)))


@multiplies_bf16
def test_bits_do_not_depend_on_threads_or_batch():
    stage, x, threads = make_stage("basic", width=48), torch.randn(7, 16, 12, 12), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(x, stage))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(run(x[:3], stage), results[0][:3])


@multiplies_bf16
def test_the_registered_op_passes_opcheck():
    with Recorder() as recorder:
        run(torch.randn(2, 16, 8, 8), make_stage("preact", "conv").requires_grad_(False), route_of([1, 0, 1]))
    ((op, args),) = recorder.calls
    assert args[-1] == "bf16"
    torch.library.opcheck(op, args)
    with pytest.raises(ValueError, match='precision must be "float32" or "bf16", but it is "int4"'):
        torch.ops.pathnet.stage_eval(*args[:-1], "int4")


STAGES = """
import torch, pathnet
torch.manual_seed(0)
net = pathnet.PathResNet(depth=8, width=24, precision="bf16").eval()
with torch.no_grad(), pathnet.use_backend("cpu"):
    inputs = [torch.randn(2, channels, 9, 14) for channels in (24, 24, 48)]
    print([stage(x).flatten().tolist() for stage, x in zip(net.stages, inputs)])
"""


def outputs(instructions: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, extension.CPU_ISA: instructions}
    return subprocess.run([sys.executable, "-c", STAGES], env=environ, capture_output=True, text=True)


@pytest.mark.skipif(INSTRUCTIONS != "amx", reason="needs AMX")
def test_both_units_multiply_the_same_numbers():
    by_amx, by_avx512 = (ast.literal_eval(outputs(unit).stdout) for unit in ("amx", "avx512_bf16"))
    for a, b in zip(map(torch.tensor, by_amx), map(torch.tensor, by_avx512), strict=True):
        assert (a - b).norm() < 1e-3 * a.norm()  # sums differ in their last bits, which few roundings to bf16 show


@compiled
def test_instructions_without_bf16_refuse_it():
    assert (
        'precision="bf16" needs AVX512-BF16 or AMX, and the kernels here run on portable' in outputs("portable").stderr
    )


@multiplies_bf16
def test_a_net_uses_it_in_evaluation_alone():
    net, plain = PathResNet(8, precision="bf16").eval(), PathResNet(8).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert {row.precision for row in explain(net, x).blocks} == {"bf16"}
        assert {row.precision for row in explain(plain, x).blocks} == {"float32"}
        assert not torch.equal(net(x), plain(x))
        torch.testing.assert_close(net(x), plain(x), rtol=0.05, atol=0.05)
        with use_backend("reference"):
            assert torch.equal(net(x), plain(x))
    assert {row.precision for row in explain(net, x).blocks} == {"float32"}  # gradients are wanted
    assert torch.equal(net(x), plain(x))


@multiplies_bf16
@torch.no_grad()
def test_wide_blocks_stay_with_the_kernel_that_was_asked_for():
    net = PathResNet(8, width=32, precision="bf16").eval()  # up to 128 channels
    assert {row.backend for row in explain(net, torch.randn(2, 3, 8, 8)).blocks} == {"cpu"}
    assert net(torch.randn(2, 3, 8, 8), paths=Paths.delete(3, [1])).isfinite().all()
