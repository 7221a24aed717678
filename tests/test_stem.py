"""Stems in training: batch norm, ReLU and an ImageNet net's max pooling as one op of the CPU kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, double
from torch import nn
from training_cases import WINOGRAD, Kinks, _joint_error

from pathnet import PathResNet, extension, use_backend
from pathnet.blocks import run_cifar_stem, run_imagenet_stem

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")

SHAPES = [(2, 16, 16, 16), (1, 16, 9, 14), (3, 32, 7, 5), (2, 48, 1, 1), (1, 16, 2, 1), (2, 16, 1, 6), (1, 16, 12, 11)]
KINDS = pytest.mark.parametrize("pool", [True, False], ids=["imagenet", "cifar"])
IN_EAGER_MODE = ("test_schema", "test_autograd_registration", "test_faketensor")


def make_stem(channels: int = 16, pool: bool = True) -> nn.ModuleList:
    """Behind a convolution that is the identity, a batch norm that has lived, and ReLU; an ImageNet net pools."""
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    nn.init.uniform_(norm.weight, -0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    pooling = [nn.MaxPool2d(3, 2, padding=1)] if pool else []
    return nn.ModuleList([nn.Identity(), norm, nn.ReLU(inplace=True), *pooling])


def run(stem: nn.ModuleList, u: torch.Tensor, update: bool = True) -> torch.Tensor:
    return (run_imagenet_stem if len(stem) == 4 else run_cifar_stem)(*stem, u, update)


def step(backend: str, stem: nn.ModuleList, u: torch.Tensor, update: bool = True) -> dict[str, torch.Tensor]:
    """One forward and backward of a copy: the output, every gradient and the buffers that are left."""
    stem, u = copy.deepcopy(stem), u.detach().requires_grad_()
    with use_backend(backend):
        y = run(stem, u, update)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape))
    grads = {name: p.grad for name, p in stem.named_parameters()}
    return {"y": y.detach(), "u": u.grad, **grads, **dict(stem.named_buffers())}


def images(stem: nn.ModuleList, shape: tuple[int, ...], mean: float = 0.0) -> torch.Tensor:
    """Random values that keep the ReLU away from its kink, where float32 may fall on either side."""
    for seed in range(1000):
        u = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
        with Kinks() as kinks, torch.no_grad():
            run(double(stem), u.double(), False)
        if kinks.nearest > 1e-5:
            return u
    raise AssertionError(f"every batch of shape {shape} has a ReLU near its kink; take a smaller one")


def check(stem: nn.ModuleList, u: torch.Tensor, update: bool = True) -> dict[str, torch.Tensor]:
    """Compare a step with float64: at most 4 times the joined error of eager PyTorch, plus one rounding."""
    got, eager = step("cpu", stem, u, update), step("reference", stem, u, update)
    truth = step("reference", double(stem), u.double(), update)
    for kind in (["y", "u"], ["1.weight", "1.bias"], ["1.running_mean", "1.running_var"]):
        ours, allowed = (_joint_error(values, truth, kind) for values in (got, eager))
        assert ours <= WINOGRAD * allowed + torch.finfo(u.dtype).eps, f"{kind}: error {ours:.2e}, eager's {allowed:.2e}"
    assert torch.equal(got["1.num_batches_tracked"], truth["1.num_batches_tracked"])
    return got


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@KINDS
def test_a_step_errs_like_eager(pool, shape, training, memory_format, poisoned):
    if training and shape == (2, 48, 1, 1):
        shape = (24, 48, 1, 1)  # over two values a batch norm's gradient is nothing but rounding
    stem = make_stem(shape[1], pool).train(training)
    if training and shape == (1, 16, 2, 1):
        shape = (16, 16, 2, 1)
    check(stem, images(stem, shape).to(memory_format=memory_format))


@KINDS
def test_a_mean_far_from_zero_costs_no_digits(pool):
    stem = make_stem(pool=pool)
    check(stem, images(stem, (2, 16, 9, 8), mean=100.0))


def test_statistics_stay_without_update():
    stem = make_stem()
    got = check(stem, images(stem, (2, 16, 9, 8)), update=False)
    assert all(torch.equal(got[name], buffer) for name, buffer in stem.named_buffers())


def test_the_first_of_equal_taps_gets_the_gradient_and_zeros_get_none():
    stem = make_stem().eval()
    nn.init.ones_(stem[1].weight), nn.init.zeros_(stem[1].bias)
    nn.init.zeros_(stem[1].running_mean), nn.init.ones_(stem[1].running_var)
    stem[1].eps = 0.0
    u = torch.randint(-3, 2, (2, 16, 11, 8)).float()
    got, eager = step("cpu", stem, u), step("reference", stem, u)
    assert torch.equal(got["y"], eager["y"]) and torch.equal(got["u"], eager["u"])
    dead = step("cpu", stem, -u.abs())
    assert not dead["y"].any() and not dead["u"].any() and not dead["1.bias"].any()


@KINDS
def test_nan_reaches_every_value_that_sees_it(pool):
    stem, u = make_stem(pool=pool).eval(), torch.randn(1, 16, 8, 7)
    u[0, 3, 2, 5] = torch.nan
    got, eager = (step(backend, stem, u)["y"].isnan() for backend in ("cpu", "reference"))
    assert torch.equal(got, eager) and got.any()


@KINDS
def test_views_into_larger_memory_are_read(pool):
    stem, memory = make_stem(pool=pool), torch.randn(2 * 8 * 8 * 16 + 1)
    u = memory[1:].view(2, 8, 8, 16).permute(0, 3, 1, 2)
    for name, value in step("cpu", stem, u).items():
        assert torch.equal(value, step("cpu", stem, u.clone())[name])


@KINDS
def test_the_number_of_threads_changes_no_bit(pool):
    stem, u = make_stem(pool=pool), torch.randn(3, 16, 65, 64)
    alone = step("cpu", stem, u)
    torch.set_num_threads(2)
    try:
        together = step("cpu", stem, u)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


# ---- under autograd's rules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_only_what_is_asked_for_gets_a_gradient(training):
    stem, u = make_stem().train(training), torch.randn(2, 16, 9, 8)
    whole = step("cpu", stem, u)
    stem[1].bias.requires_grad_(False)
    run(stem, u, False).backward(torch.linspace(-1, 2, whole["y"].numel()).sin().view(whole["y"].shape))
    assert stem[1].bias.grad is None and torch.equal(stem[1].weight.grad, whole["1.weight"])


@KINDS
def test_several_incoming_gradients_at_once(pool):
    stem, u = make_stem(pool=pool), torch.randn(2, 16, 9, 8, requires_grad=True)
    y = run(stem, u)
    incoming = torch.randn(3, *y.shape)
    one_by_one = torch.stack([torch.autograd.grad(y, u, g, retain_graph=True)[0] for g in incoming])
    together = torch.autograd.grad(y, u, incoming, is_grads_batched=True, retain_graph=True)[0]
    mapped = torch.func.vmap(lambda g: torch.autograd.grad(y, u, g, retain_graph=True)[0])(incoming)
    assert torch.equal(together, one_by_one) and torch.equal(mapped, one_by_one)


def test_a_second_derivative_is_refused_in_a_sentence():
    u = torch.randn(2, 16, 9, 8, requires_grad=True)
    first = torch.autograd.grad(run(make_stem(), u).sum(), u, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative; run the forward inside pathnet.use_backend"):
        first.square().sum().backward()


def test_the_registered_ops_pass_opcheck():
    with Recorder() as recorder:
        for training in (True, False):
            for needs_u in (True, False):
                u = torch.randn(3, 16, 10, 7, requires_grad=needs_u)
                for pool in (True, False):
                    run(make_stem(pool=pool).train(training), u).square().sum().backward()
    assert len(recorder.calls) == 16
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        torch.library.opcheck(func, detached, test_utils=IN_EAGER_MODE)


# ---- where it runs ---------------------------------------------------------------------------------------------------


def calls_of(net: nn.Module, x: torch.Tensor, backward: bool = True) -> list[str]:
    """The ops of a stem that a step calls."""
    with Recorder() as recorder:
        y = net(x)
        if backward:
            y.sum().backward()
    return [name for func, _ in recorder.calls if (name := func.overloadpacket.__name__).startswith("stem")]


def imagenet() -> PathResNet:
    return PathResNet(18, 5, stem="imagenet", width=16)


X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [imagenet, lambda: PathResNet(20, 5)], ids=["imagenet", "cifar"])
def test_a_net_that_trains_uses_it(make, training):
    assert calls_of(make().train(training), X) == ["stem_train_fwd", "stem_train_bwd"]


CHANGES = {
    "hook": lambda net: net.bn1.register_forward_hook(lambda *call: None),
    "pooling hook": lambda net: net.maxpool.register_forward_hook(lambda *call: None),
    "pooling": lambda net: setattr(net, "maxpool", nn.MaxPool2d(2)),
    "average": lambda net: setattr(net, "maxpool", nn.AvgPool2d(3, 2, 1)),
    "activation": lambda net: setattr(net, "relu", nn.GELU()),
    "norm": lambda net: setattr(net, "bn1", nn.GroupNorm(2, 16)),
    "momentum": lambda net: setattr(net.bn1, "momentum", None),
    "double": lambda net: net.double(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_stem_runs_as_its_modules(name):
    net = imagenet()
    CHANGES[name](net)
    assert calls_of(net, X.to(net.fc.weight.dtype)) == []


def test_other_calls_run_as_modules():
    with torch.no_grad():
        assert calls_of(imagenet().eval(), X, backward=False) == []
    with use_backend("reference"):
        assert calls_of(imagenet(), X) == []
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of(imagenet(), X) == []
    assert calls_of(PathResNet(18, 5, stem="imagenet", width=24), X) == []
    assert calls_of(PathResNet(18, 5, stem="imagenet", width=16, block="preact"), X) == []
    assert calls_of(PathResNet(20, 5, block="preact"), X) == []
