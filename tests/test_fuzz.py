"""Random stages on every backend against the reference in float64: values, gradients, running statistics."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from statistics import median

import pytest
import torch
from fuzz_cases import Case, draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pathnet import extension, use_backend
from pathnet.backend import BACKENDS
from pathnet.blocks import Stage
from pathnet.ops import stage
from pathnet.ops.stage_eval import supports_cpu
from pathnet.ops.stage_train_cpu import loses_cpu

COUNT = int(os.environ.get("PATHNET_FUZZ", 40))
FUZZED = [name for name in BACKENDS if name != "triton"]  # Triton's interpreter is too slow for hundreds of stages
KINK = 1e-5  # of a tensor's largest value: what lies closer to 0 before a ReLU may fall on its other side
DRAWS = 4  # of a case's values, where the first seems to err
FACTOR = {"float32": 4, "float64": 2}  # times the error of plain PyTorch: Winograd F(4x4) and anything else

Results = dict[str, "Tensor | None"]


class Kinks(TorchDispatchMode):
    """Finds values other than 0 before a ReLU that rounding may carry to its other side."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default) and args[0].numel():
            sizes = args[0].detach().abs()
            self.found |= bool(((sizes > 0) & (sizes < KINK * sizes.max())).any())
        return func(*args, **(kwargs or {}))


def run(case: Case, backend: str | None = None, mkldnn: bool = True) -> Results:
    """Output, gradients and running statistics of one forward and, where something needs it, one backward."""
    net, x = case.make_stage(), case.make_x()
    before, threads = x.detach().clone(), torch.get_num_threads()
    flags = torch.backends.mkldnn.set_flags(mkldnn)
    torch.set_num_threads(case.threads)
    try:
        y = forward(case, net, x, backend)
        if y.requires_grad:
            y.backward(case.make_grad(y))
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(flags[0])
    assert torch.equal(x.detach(), before), "x has changed"
    grads = {f"grad of {name}": p.grad for name, p in (("x", x), *net.named_parameters())}
    return {"y": y.detach(), **grads, **dict(net.named_buffers())}


def forward(case: Case, net: Stage, x: Tensor, backend: str | None) -> Tensor:
    blocks = [block.spec() for block in net]
    with nullcontext() if backend is None else use_backend(backend):
        return stage(x, blocks, case.route(), case.zero_unused)


def away_from_kinks(case: Case) -> Case:
    """The case with other values of x if need be, so that no mask of a ReLU hangs on a rounding.

    Without a gradient, where that cannot be had: values do not jump.
    """
    for seed in range(case.seed, case.seed + 20, 2):
        case = replace(case, seed=seed)
        net, x = in_float64(case).make_stage(), in_float64(case).make_x()
        with torch.no_grad(), Kinks() as kinks:
            forward(case, net, x, "reference")
        if not kinks.found:
            return case
    return replace(case, needs=tuple(0 for _ in case.needs))


def in_float64(case: Case) -> Case:
    return replace(case, dtype="float64", threads=1)


def errors(got: Results, truth: Results) -> dict[str, float]:
    """The error of each tensor, root mean square, relative to the tensor's own."""
    found = {}
    for name, want in truth.items():
        have = got[name]
        assert (have is None) == (want is None), f"{name} is {'not ' if want is None else ''}None"
        if have is None or want is None:
            continue
        assert have.shape == want.shape, f"{name} has shape {tuple(have.shape)}, not {tuple(want.shape)}"
        assert have.isfinite().all(), f"{name} is not finite"
        if want.numel():
            found[name] = float((have.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    return found


def check(case: Case) -> None:
    """Hold every backend to eager's error; where one seems to err more, over several draws of the values.

    Errors of tensors are joined by their root mean square, as in tests/training_cases.py: of thousands of tensors of a
    few values each some are nearly exact in eager by luck.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for attempt in range(DRAWS):
        for who, by_name in measure(replace(case, seed=case.seed + 1000 * attempt)).items():
            for name, error in by_name.items():
                found[who, "gradient" if "grad" in name else "output"].append(error)
        faults = excesses({who: root_mean_square(many) for who, many in found.items()}, case)
        if not faults:
            return
    raise AssertionError(faults[0])


def root_mean_square(values: list[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5


def excesses(joined: dict[tuple[str, str], float], case: Case) -> list[str]:
    """Whose error is too large, a sentence each.

    A kernel that the choice of backends passes over, since batches of a few pixels suit it ill, may be forced: then its
    documented error there is twice as large (docs/numerics.md).
    """
    factor, rounding = FACTOR[case.dtype], torch.finfo(getattr(torch, case.dtype)).eps
    passed_over = loses_cpu(case.make_x(), [block.spec() for block in case.make_stage()]) is not None
    forced = 2 * factor if passed_over else factor
    faults = []
    for (backend, kind), error in joined.items():
        allowed = (factor if backend == "default" else forced) * joined["eager", kind] + rounding
        if not error <= allowed:
            faults.append(f"{backend}: its {kind} errs by {error:.1e}, {allowed:.1e} is allowed")
    return faults


def measure(case: Case) -> dict[str, dict[str, float]]:
    """The error of each tensor by eager and by each backend; empty where all refuse the case alike."""
    try:
        case = away_from_kinks(case) if any(case.needs) else case
        truth = run(in_float64(case), "reference")
    except ValueError as refused:  # fewer than two values a channel for batch statistics
        with pytest.raises(ValueError, match=re.escape(str(refused))):
            run(case)
        return {}
    found = {"eager": eager_errors(case, truth)}
    for backend in (None, *FUZZED):
        try:
            found[backend or "default"] = errors(run(case, backend), truth)
        except RuntimeError as error:
            if "was asked for, but cannot run" not in str(error):
                raise
    return found


def eager_errors(case: Case, truth: Results) -> dict[str, float]:
    """How far plain PyTorch errs, by tensor: the worst of its ways, so that it is no matter of luck."""
    ways = [run(case, "reference"), run(case, "reference", mkldnn=False)]
    if case.layout != "expanded":  # else the values would be others
        other = "contiguous" if case.layout == "channels_last" else "channels_last"
        ways.append(run(replace(case, layout=other), "reference"))
    found = [errors(way, truth) for way in ways]
    typical = median(error for errors in found for error in errors.values()) if found[0] else 0.0
    return {name: max(typical, *(errors[name] for errors in found)) for name in found[0]}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("number", range(COUNT))
def test_a_random_stage_is_right_on_every_backend(number, training, poisoned):
    case = draw(number, training)
    try:
        check(case)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\nrun it again: check({case})") from error


@pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")
def test_most_of_what_is_drawn_suits_the_cpu_kernel():
    cases = [draw(number, training=False) for number in range(50)]
    suits = [supports_cpu(case.make_x(), [block.spec() for block in case.make_stage()]) is None for case in cases]
    assert sum(suits) > len(suits) / 2
