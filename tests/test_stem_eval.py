"""Stems in evaluation: the ImageNet one as an op of its own, that of CIFAR nets as a block of `stage_eval`."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, assert_errs_like_eager, double
from torch import nn
from training_cases import WINOGRAD

from pathnet import PathResNet, extension, use_backend
from pathnet.blocks import run_cifar_stem, run_imagenet_stem
from pathnet.blocks.describe import describe
from pathnet.ops.stem_eval import supports_cpu

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

SHAPES = [(2, 32, 32), (1, 7, 5), (3, 33, 57), (1, 1, 1), (2, 2, 9), (1, 64, 27), (5, 12, 61)]
LAYOUTS = ["contiguous", "channels_last", "view"]


def make_images(shape: tuple[int, int, int], layout: str, channels: int = 3) -> torch.Tensor:
    n, h, w = shape
    x = torch.randn(n, channels, h, w)
    if layout == "view":
        around = torch.full((n, channels + 2, h + 3, 2 * w + 3), torch.nan)
        return around[:, 1 : 1 + channels, 2 : 2 + h, 1 : 1 + 2 * w : 2].copy_(x)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def lived(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.uniform_(norm.weight, -0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    return norm.eval()


def imagenet_stem(channels: int = 64) -> nn.ModuleList:
    conv = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
    return nn.ModuleList([conv, lived(nn.BatchNorm2d(channels)), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)])


def run(stem: nn.ModuleList, x: torch.Tensor, backend: str) -> torch.Tensor:
    with torch.no_grad(), use_backend(backend):
        return run_imagenet_stem(*stem, x, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_imagenet_stem(shape, layout, poisoned):
    stem, x = imagenet_stem(), make_images(shape, layout)
    truth = run(double(stem), x.double(), "reference")
    assert_errs_like_eager(run(stem, x, "cpu"), run(stem, x, "reference"), truth)


@pytest.mark.parametrize("channels", [32, 96])
def test_other_numbers_of_channels(channels):
    stem, x = imagenet_stem(channels), make_images((2, 21, 18), "contiguous")
    stem[0].weight.data = stem[0].weight.data.to(memory_format=torch.channels_last)
    truth = run(double(stem), x.double(), "reference")
    assert_errs_like_eager(run(stem, x, "cpu"), run(stem, x, "reference"), truth)


def test_bits_do_not_depend_on_threads_or_on_the_batch():
    stem, x = imagenet_stem(), make_images((3, 45, 38), "channels_last")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results += [run(stem, x, "cpu"), torch.cat([run(stem, image[None], "cpu") for image in x])]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_an_empty_batch():
    images, stem = torch.randn(0, 3, 32, 32), imagenet_stem()
    norm = [stem[1].weight, stem[1].bias, stem[1].running_mean, stem[1].running_var]
    with torch.no_grad():
        assert torch.ops.pathnet.stem_eval(images, stem[0].weight, norm, 1e-5).shape == (0, 64, 8, 8)
        assert run_imagenet_stem(*stem, images, False).shape == (0, 64, 8, 8)
        assert run_cifar_stem(nn.Conv2d(3, 16, 3, padding=1, bias=False), None, None, images, False).shape[1:] == (
            16,
            32,
            32,
        )


def test_nan_is_not_pooled_away():
    stem, x = imagenet_stem(), make_images((1, 32, 32), "contiguous")
    x[0, 1, 17, 9] = torch.nan
    assert torch.equal(run(stem, x, "cpu").isnan(), run(stem, x, "reference").isnan())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stem: setattr(stem, "0", nn.Conv2d(3, 64, 7, 2, padding=3)), "no bias"),
        (lambda stem: setattr(stem, "0", nn.Conv2d(3, 64, 7, 1, padding=3, bias=False)), "stride 2"),
        (lambda stem: setattr(stem, "0", nn.Conv2d(3, 40, 7, 2, padding=3, bias=False)), "multiple of 32"),
        (lambda stem: setattr(stem, "0", nn.Conv2d(3, 64, 5, 2, padding=2, bias=False)), "7"),
        (lambda stem: stem[1].train(), "batch statistics"),
    ],
)
def test_what_the_kernel_does_not_take(change, words):
    stem = imagenet_stem()
    change(stem)
    conv, norm = describe(stem[:2])
    with torch.no_grad():
        assert words in supports_cpu(make_images((1, 32, 32), "contiguous"), conv, norm)
    assert supports_cpu(make_images((1, 32, 32), "contiguous"), *describe(imagenet_stem()[:2])) is not None  # gradients


def test_schema_and_fake():
    stem, x = imagenet_stem(), make_images((2, 19, 22), "contiguous")
    norm = [stem[1].weight, stem[1].bias, stem[1].running_mean, stem[1].running_var]
    args = x, stem[0].weight.detach(), [t.detach() for t in norm], 1e-5
    torch.library.opcheck(torch.ops.pathnet.stem_eval.default, args)


def test_wrong_arguments_are_sentences():
    norm = [torch.ones(64)] * 4
    with pytest.raises(ValueError, match=r"x must have shape \[N, 3, H, W\]"):
        torch.ops.pathnet.stem_eval(torch.randn(1, 4, 8, 8), torch.randn(64, 3, 7, 7), norm, 1e-5)
    with pytest.raises(ValueError, match="multiple of 32"):
        torch.ops.pathnet.stem_eval(torch.randn(1, 3, 8, 8), torch.randn(40, 3, 7, 7), norm, 1e-5)
    with pytest.raises(ValueError, match="norm must hold"):
        torch.ops.pathnet.stem_eval(torch.randn(1, 3, 8, 8), torch.randn(64, 3, 7, 7), norm[:3], 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("with_norm", [True, False])
def test_cifar_stem(with_norm, channels, shape, layout, poisoned):
    compare_cifar_stem(with_norm, channels, shape, layout, factor=2.0)  # few channels: sums as in plain PyTorch


@pytest.mark.parametrize("with_norm", [True, False])
def test_cifar_stem_of_many_channels(with_norm, poisoned):
    compare_cifar_stem(with_norm, 17, (2, 30, 33), "contiguous", factor=WINOGRAD)


def compare_cifar_stem(with_norm, channels, shape, layout, factor):
    conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    stem = nn.ModuleList([conv, *([lived(nn.BatchNorm2d(16)), nn.ReLU(inplace=True)] if with_norm else [])])
    x = make_images(shape, layout, channels)

    def out(stem: nn.ModuleList, x: torch.Tensor, backend: str) -> torch.Tensor:
        with torch.no_grad(), use_backend(backend):
            return run_cifar_stem(*(*stem, None, None)[:3], x, False)

    before, truth = x.clone(), out(double(stem), x.double(), "reference")
    assert_errs_like_eager(out(stem, x, "cpu"), out(stem, x, "reference"), truth, factor)
    assert torch.equal(x, before)


@pytest.mark.parametrize("block", ["basic", "preact"])
def test_the_stem_of_a_cifar_net_is_one_call(block):
    net = PathResNet(depth=8, block=block).eval()
    with torch.no_grad(), Recorder() as recorder:
        net.stem(torch.randn(2, 3, 32, 32))
    assert [str(func) for func, _ in recorder.calls] == ["pathnet.stage_eval.default"]
