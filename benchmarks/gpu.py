"""Who runs a case on a GPU: eager PyTorch in both memory formats, torch.compile, and each backend of pathnet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

import pathnet
from benchmarks.cases import EVALUATION, RESTRICTED, TRAINING, Case, Step, make_step
from benchmarks.harness import Race
from benchmarks.providers import (
    CHANNELS_LAST,
    COMPILED,
    NCHW,
    PATHNET,
    Shared,
    eager_forward,
    pathnet_forward,
    pathnet_net,
)

BACKENDS = ("triton", "cuda")
CASES = [Case(110, block, work, 128) for block in ("basic", "preact") for work in (EVALUATION, TRAINING, RESTRICTED)]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}


class EventRace(Race):
    """A race on a GPU: each call is timed by two events on the stream, and nothing else runs meanwhile."""

    def _time(self, name: str) -> None:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        self.calls[name]()
        end.record()
        end.synchronize()
        self.seconds[name].append(begin.elapsed_time(end) / 1000)


def contestants(
    case: Case, dtype: torch.dtype, device: str, backends: Sequence[str], *, compiled: bool
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps of all who can run the case, pathnet's last, and the reasons of the backends that cannot.

    Evaluation runs a net in `dtype`, training a float32 net under autocast to it.
    """
    shared = Shared.of(case)
    layouts = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
    calls = {name: _eager(shared, dtype, device, layout) for name, layout in layouts.items()}
    if compiled:
        calls[COMPILED] = _eager(shared, dtype, device, torch.channels_last, torch.compile)
    refusals = {}
    for backend in backends:
        step = _pathnet(shared, dtype, device, backend)
        try:
            step()
        except RuntimeError as reason:  # a backend that is forced and cannot run says why
            refusals[backend] = str(reason)
        else:
            calls[f"{PATHNET} {backend}"] = step
    return calls, refusals


def disagreement(case: Case, dtype: torch.dtype, device: str, backend: str) -> tuple[float, float]:
    """Relative errors of pathnet's and of eager's output against eager float64."""
    shared = Shared.of(case)
    true = _eager(shared, torch.float64, device, torch.channels_last)().double()
    ours = _pathnet(shared, dtype, device, backend)().double()
    theirs = _eager(shared, dtype, device, torch.channels_last)().double()
    return tuple(((y - true).norm() / true.norm()).item() for y in (ours, theirs))  # type: ignore[return-value]


def _eager(
    shared: Shared, dtype: torch.dtype, device: str, layout: torch.memory_format,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Step:  # fmt: skip
    net = shared.case.eager_net()
    net.load_state_dict(shared.weights)
    net, x = _placed(shared, net, dtype, device, layout)
    return _step(shared.case, net, eager_forward(shared.case, wrap(net)), x, dtype)


def _pathnet(shared: Shared, dtype: torch.dtype, device: str, backend: str) -> Step:
    net = pathnet_net(shared.case)
    net.load_state_dict(shared.weights)
    net, x = _placed(shared, net, dtype, device, torch.channels_last)
    step = _step(shared.case, net, pathnet_forward(shared.case, net), x, dtype)

    def forced() -> Tensor:
        with pathnet.use_backend(backend):
            return step()

    return forced


def _placed(
    shared: Shared, net: nn.Module, dtype: torch.dtype, device: str, layout: torch.memory_format
) -> tuple[nn.Module, Tensor]:
    """Net and input on the device; in training the weights stay in float32, but for truth in float64."""
    own = dtype if shared.case.work == EVALUATION or dtype == torch.float64 else torch.float32
    x = shared.x.detach().to(device=device, dtype=own).to(memory_format=layout)
    return net.to(device=device, dtype=own).to(memory_format=layout), x


def _step(case: Case, net: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Step:
    step, half = make_step(case, net, forward, x, update=True), dtype in (torch.float16, torch.bfloat16)

    def context() -> AbstractContextManager:
        return torch.autocast(x.device.type, dtype) if half and case.work != EVALUATION else nullcontext()

    def run() -> Tensor:
        with context():
            return step()

    return run
