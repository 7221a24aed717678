"""A gradient back along one path, against float64, and the chains of blocks that the analysis makes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from analysis_cases import input_gradient, make_data, make_net
from training_cases import WINOGRAD, _joint_error

from pathnet import PathResNet, Paths, analysis, extension, use_backend
from pathnet.analysis.links import Link
from pathnet.analysis.tape import Tape
from pathnet.ops.path_bwd import loses_cpu, path_bwd, supports_cpu
from pathnet.reference.path_bwd import bits_of, mask_of
from pathnet.reference.path_bwd import path_bwd as reference

compiled = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

SHAPES = [(2, 16, 32, 32), (3, 32, 7, 5), (5, 64, 8, 8), (1, 21, 13, 2), (2, 4, 6, 9), (5, 100, 8, 7), (2, 3, 1, 1)]


def make_call(shape, convs=3, times=1, layout=torch.channels_last):
    n, channels, h, w = shape
    gradient = torch.randn(times * n, channels, h, w).contiguous(memory_format=layout)
    weights = [torch.randn(channels, channels, 3, 3) / (3 * channels**0.5) for _ in range(convs)]
    masks = [torch.rand(shape) < 0.7 for _ in range(convs + 1)]
    return gradient, weights, masks


def on_cpu(gradient, weights, masks):
    with use_backend("cpu"):
        return path_bwd(gradient, weights, packed(masks))


def packed(masks):
    return [bits_of(mask) for mask in masks]


def truth(gradient, weights, masks):
    gradient = gradient.double() * masks[0].repeat(len(gradient) // len(masks[0]), 1, 1, 1)
    for weight, mask in zip(weights, masks[1:], strict=True):
        gradient = F.conv2d(gradient, weight.double(), padding=1) * mask.repeat(len(gradient) // len(mask), 1, 1, 1)
    return gradient


def check(got, eager, exact):
    """At most 4 times the root mean square error of eager PyTorch, plus one rounding."""
    ours, allowed = (_joint_error({"g": values}, {"g": exact}, ["g"]) for values in (got, eager))
    assert got.isfinite().all() and ours <= WINOGRAD * allowed + torch.finfo(got.dtype).eps, f"{ours:.2e} {allowed:.2e}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_survive_packing(shape):
    mask = torch.rand(shape) < 0.5
    assert torch.equal(mask_of(bits_of(mask), shape[1]), mask)


@compiled
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, layout, poisoned):
    gradient, weights, masks = make_call(shape, layout=layout)
    before = gradient.clone()
    got = on_cpu(gradient, weights, masks)
    eager = reference(gradient, weights, packed(masks))
    check(got, eager, truth(gradient, weights, masks))
    assert got.stride() == gradient.stride() and torch.equal(gradient, before)
    assert not got[~masks[-1]].any()


@compiled
@pytest.mark.parametrize(("convs", "times"), [(0, 1), (1, 3), (6, 2)])
def test_other_lengths_and_several_gradients(convs, times, poisoned):
    gradient, weights, masks = make_call((2, 32, 9, 8), convs, times)
    got = on_cpu(gradient, weights, masks)
    eager = reference(gradient, weights, packed(masks))
    check(got, eager, truth(gradient, weights, masks))


@compiled
def test_views_of_the_gradient_and_of_the_weights(poisoned):
    gradient, weights, masks = make_call((2, 16, 9, 8))
    around = torch.full((2, 18, 12, 19), torch.nan)
    view = around[:, 1:17, 2:11, 1:17:2].copy_(gradient)
    turned = [weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights]
    got = on_cpu(view, turned, masks)
    check(got, reference(gradient, weights, packed(masks)), truth(gradient, weights, masks))


@compiled
def test_what_a_mask_cuts_is_not_read():
    gradient, weights, masks = make_call((2, 16, 9, 8))
    expected = on_cpu(gradient, weights, masks)
    gradient[~masks[0]] = torch.nan
    assert torch.equal(on_cpu(gradient, weights, masks), expected)


@compiled
def test_bits_do_not_depend_on_threads_or_on_the_batch():
    gradient, weights, masks = make_call((5, 32, 12, 9))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            alone = [on_cpu(gradient[i : i + 1], weights, [mask[i : i + 1] for mask in masks]) for i in range(5)]
            results += [on_cpu(gradient, weights, masks), torch.cat(alone)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@compiled
def test_schema_fake_and_an_empty_batch():
    gradient, weights, masks = make_call((2, 16, 9, 8))
    torch.library.opcheck(torch.ops.pathnet.path_bwd.default, (gradient, weights, packed(masks)))
    assert torch.ops.pathnet.path_bwd(gradient[:0], weights, packed(masks)).shape == (0, 16, 9, 8)


@compiled
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, w, m: (g[0], w, m), r"gradient must have shape \[N, C, H, W\]"),
        (lambda g, w, m: (g.double(), w, m), "gradient must have dtype Float"),
        (lambda g, w, m: (g, w[:2], m), "masks must hold one tensor more than weights, but they are 4 and 2"),
        (lambda g, w, m: (g[:3], w, m), "has 3 and they have 2"),
        (lambda g, w, m: (g, [w[0][:8], *w[1:]], m), r"weights must have shape \[16, 16, 3, 3\]"),
        (lambda g, w, m: (g, w, [m[0].int(), *m[1:]]), "masks must have dtype Short"),
        (lambda g, w, m: (g, w, [*m[:3], m[3][:, :, 1:]]), r"masks must have shape \[2, 1, 9, 8\]"),
    ],
)
def test_wrong_arguments_are_sentences(change, words):
    gradient, weights, masks = make_call((2, 16, 9, 8), times=2)
    with pytest.raises(ValueError, match=words):
        torch.ops.pathnet.path_bwd(*change(gradient, weights, packed(masks)))


@compiled
def test_what_the_kernel_does_not_take():
    gradient, weights, masks = make_call((2, 16, 9, 8))
    assert supports_cpu(gradient, weights, masks) is None
    assert "float64" in supports_cpu(gradient.double(), weights, masks)
    assert "float64" in supports_cpu(gradient, [weight.double() for weight in weights], masks)
    assert "144 values" in loses_cpu(gradient, weights, masks)
    assert loses_cpu(torch.zeros(2, 16, 9, 9), weights, masks) is None


# ---- chains of blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["basic", "preact"])
@pytest.mark.parametrize("chosen", [(), (1, 2), (0, 1, 3, 4, 7, 8), range(9)], ids=str)
def test_a_path_in_float32_errs_like_plain_pytorch(block, chosen):
    net, data = make_net(block, depth=20), make_data(8)
    with use_backend("reference"):
        gradients = [analysis.PathGradients(net, data).along(chosen)]
    gradients.append(analysis.PathGradients(net, data).along(chosen))
    eager, got = (gradient * 2.0**exponent for gradient, exponent in gradients)
    exact = input_gradient(net.double(), (data[0].double(), data[1]), Paths.single(9, chosen))
    check(got, eager, exact)


@pytest.mark.parametrize(
    ("net", "bn", "links"),
    [
        (PathResNet(20, 4, width=4), "running", 7),  # all but the two strided ones
        (PathResNet(20, 4, width=4, block="preact"), "running", 7),
        (PathResNet(20, 4, width=4), "batch", 0),
        (PathResNet(20, 4, width=4, block="bottleneck"), "running", 0),
    ],
)
def test_which_blocks_are_links(net, bn, links):
    tape = Tape(net, (torch.randn(4, 3, 8, 8), torch.arange(4)), bn=bn)
    assert sum(isinstance(block, Link) for block in tape.blocks) == links


def test_a_hooked_block_is_no_link():
    net, data, seen = make_net(), make_data(), []
    net.blocks[1].conv1.register_forward_hook(lambda *call: seen.append(call))
    tape = Tape(net, data)
    assert not isinstance(tape.blocks[1], Link) and seen


def test_chains_too_steep_for_float32_are_pulled_in_pieces():
    net, data = make_net(depth=20), make_data()
    for block in net.blocks:
        block.conv2.weight.data *= 1e-14
    norms = analysis.gradient_by_length(net, data, samples=1, lengths=[9])[0].log10_norms
    exact = analysis.gradient_by_length(net.double(), (data[0].double(), data[1]), 1, lengths=[9])[0].log10_norms
    assert norms == pytest.approx(exact, abs=1e-3) and norms[0] < -120
