"""Cases of stage_train: stages, images away from kinks, one step of a backend, and its comparison with float64."""

from __future__ import annotations

import copy

import torch
from cases import double, make_stage, specs
from torch.utils._python_dispatch import TorchDispatchMode

from pathnet import use_backend
from pathnet.blocks import BLOCKS
from pathnet.ops.stage_train import stage_train
from pathnet.ops.stage_train_forms import PROJECTION
from pathnet.route import Route

TRAINED_FORMS = ("basic", "preact", "bottleneck", "preact_bottleneck")
N, C, SIDE = 2, 16, 16  # of `stream`
WINOGRAD = 4.0  # how much more than eager PyTorch F(4x4) may err


def route_of(gates, multiplier=None, update: bool = True) -> Route:
    gates = torch.as_tensor(gates, dtype=torch.int8)
    ones = torch.ones(gates.shape[-1], dtype=torch.float64)
    factor = ones if multiplier is None else torch.as_tensor(multiplier, dtype=torch.float64)
    return Route(gates, factor, None, update)


def step(backend: str, stage, x, route=None) -> dict[str, torch.Tensor | None]:
    """One forward and backward of a copy: the output, every gradient and the buffers that are left."""
    stage, x = copy.deepcopy(stage), x.detach().requires_grad_()
    with use_backend(backend):
        y = stage_train(x, specs(stage), route, zero_unused=False)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).sin().view(y.shape))
    grads = {name: p.grad for name, p in stage.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(stage.named_buffers())}


class Kinks(TorchDispatchMode):
    """How near to 0 a ReLU was asked, relative to its largest input; exact zeros are 0 in any arithmetic."""

    def __init__(self):
        super().__init__()
        self.nearest = 1.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default) and args[0].any():
            z = args[0].abs()
            self.nearest = min(self.nearest, float(z[z > 0].min() / z.max()))
        return func(*args, **(kwargs or {}))


def images(stage, shape, route=None, mean: float = 0.0) -> torch.Tensor:
    """Random images that keep every ReLU away from its kink, where float32 may fall on either side."""
    for seed in range(1000):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
        with Kinks() as kinks, torch.no_grad(), use_backend("reference"):
            stage_train(x.double(), specs(double(stage)), route, zero_unused=False)
        if kinks.nearest > 1e-5:
            return x
    raise AssertionError(f"every batch of shape {shape} has a ReLU near its kink; take a smaller one")


def check(
    backend: str, stage, x, route=None, factor: float = WINOGRAD, eager_as=None
) -> dict[str, torch.Tensor | None]:
    """Compare a step with float64: at most `factor` times the error of eager PyTorch, plus one rounding.

    Eager PyTorch runs the stage and x, or those of `eager_as`, where it multiplies in another dtype.
    Errors are root mean squares relative to the tensor's, and joined over the tensors of a kind: a single number, or
    the few of a batch norm, is luck, in eager PyTorch too.
    """
    got, eager = step(backend, stage, x, route), step("reference", *(eager_as or (stage, x)), route)
    truth = step("reference", double(stage), x.double(), route)
    kinds: dict[str, list[str]] = {}
    for name, wanted in truth.items():
        if wanted is None or not wanted.is_floating_point():
            assert (got[name] is None) == (wanted is None), name
            assert wanted is None or torch.equal(got[name], wanted), name
        else:
            assert got[name].shape == wanted.shape and got[name].isfinite().all(), name
            kind = "stream" if name in "xy" else "statistics" if "running" in name else f"{wanted.dim()}-d weights"
            kinds.setdefault(kind, []).append(name)
    for kind, names in kinds.items():
        ours, allowed = (_joint_error(values, truth, names) for values in (got, eager))
        assert ours <= factor * allowed + torch.finfo(x.dtype).eps, f"{kind}: error {ours:.2e}, eager's {allowed:.2e}"
    return got


def _joint_error(values: dict, truth: dict, names: list[str]) -> float:
    """The root mean square over tensors of |y - truth| / |truth|."""
    errors = [(values[name].double() - truth[name]).norm() / truth[name].norm().clamp_min(1e-30) for name in names]
    return float(torch.stack(errors).square().mean().sqrt())


def blocks_of(args) -> int:
    """How many blocks a call of stage_train_fwd runs, from its arguments."""
    return sum(form != PROJECTION for form in args[6][::3])


def stage_of(form: str = "basic", blocks: int = 4, channels: int = C):
    """Blocks whose shortcut is the identity."""
    return make_stage(form, "pad", channels, channels // BLOCKS[form].expansion, 1, blocks).train()


def stream(requires_grad: bool = True, channels: int = C):
    return torch.randn(N, channels, SIDE, SIDE, requires_grad=requires_grad)


def train(stage, x, gates=None, **kwargs):
    return stage_train(x, specs(stage), None if gates is None else route_of(gates, **kwargs), zero_unused=False)
