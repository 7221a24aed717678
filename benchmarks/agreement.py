"""No number without agreement: before a case is timed, pathnet must compute what the plain net does."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.providers import Provider, Shared

BATCH = 4  # as many images as the check uses
DRAWS = 5  # of weights and images, at most
TIMES_EAGER = 4  # Winograd F(4x4) may err four times what eager errs (docs/numerics.md)
TIMES_EAGER_BF16 = 2


def gradients(provider: Provider) -> dict[str, Tensor]:
    """Return the gradients that the provider's last step left, the input's too, without those that are None."""
    tensors = {**dict(provider.module.named_parameters()), "input": provider.x}
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


def relative_error(got: list[Tensor], truth: list[Tensor]) -> float:
    """Return ||got - truth|| / ||truth|| over all tensors joined, in float64."""
    difference = sum(float((g.double() - t).square().sum()) for g, t in zip(got, truth, strict=True))
    return (difference / sum(float(t.square().sum()) for t in truth)) ** 0.5


def check(case: Case, backend: str | None = None) -> None:
    """Raise AssertionError unless pathnet gives the plain net's outputs and gradients, None included.

    Truth is the plain net in float64; the limit is four times the error of eager float32, or twice that of eager
    bf16 where pathnet's products are bf16, plus one rounding. `backend` None is pathnet's own choice.
    A value next to a ReLU's kink may fall on its other side in float32, on either side of the comparison, and its
    gradient with it: in a deep net most draws have one. So some draws are made, and one of them must agree.
    """
    for seed in range(DRAWS):
        try:
            return _check_draw(case, backend, seed)
        except AssertionError:
            if seed == DRAWS - 1:
                raise


def _check_draw(case: Case, backend: str | None, seed: int) -> None:
    shared = Shared.of(case.with_batch(min(case.batch, BATCH)), seed)
    dtype, times = (torch.float32, TIMES_EAGER) if case.precision is None else (torch.bfloat16, TIMES_EAGER_BF16)
    runs = (
        shared.eager(dtype=torch.float64, update=False),
        shared.eager(dtype=dtype, update=False),
        shared.pathnet(backend, update=False),
    )
    who = f"pathnet ({backend or 'its own choice'})"
    _compare(f"{case}: output of {who}", times, *([run.step().detach()] for run in runs))
    truth, plain, got = (gradients(run) for run in runs)
    assert got.keys() == truth.keys(), (
        f"{case}: {who} must train exactly the parameters that the plain net trains, "
        f"they differ in {sorted(got.keys() ^ truth.keys())}"
    )
    if truth:
        in_order = ([found[name] for name in truth] for found in (truth, plain, got))
        _compare(f"{case}: gradients of {who}", times, *in_order)


def _compare(what: str, times: int, truth: list[Tensor], plain: list[Tensor], got: list[Tensor]) -> None:
    error, eager_error = relative_error(got, truth), relative_error(plain, truth)
    limit = times * eager_error + torch.finfo(torch.float32).eps
    assert error <= limit, (
        f"{what} err {error:.2e} against float64, more than {limit:.2e} (eager errs {eager_error:.2e})"
    )
