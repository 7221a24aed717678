"""Who runs a case: eager PyTorch in both memory formats, torch.compile, and pathnet as users meet it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import pathnet
from benchmarks.cases import BLOCKS, DROP_MASKED, RATE, RESTRICTED, TRAINING, Case, Step, make_step, part
from benchmarks.eager import FULL, OFF, Drop

NCHW, CHANNELS_LAST, COMPILED = "eager NCHW", "eager channels-last", "torch.compile"
ALL_BLOCKS, BFLOAT16 = "eager channels-last, all blocks", "eager bf16"
PATHNET = "pathnet"


class NotAvailableError(Exception):
    """This version of pathnet cannot run a case; the message is a sentence."""


@dataclass(frozen=True)
class Provider:
    """A net with the case's weights, the part of it that is measured, its input, and the step that runs it."""

    net: nn.Module
    module: nn.Module
    x: Tensor
    step: Step


@dataclass(frozen=True)
class Shared:
    """What all providers of a case have in common: the weights and the input."""

    case: Case
    weights: dict[str, Tensor]
    x: Tensor

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Shared:
        """Return seeded weights, an input, and running statistics that fit it, to keep activations small."""
        torch.manual_seed(seed)
        net, x = case.eager_net(), case.input()
        norms = [child for child in net.modules() if isinstance(child, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            part(net.train(), case)(x)
        return cls(case, net.state_dict(), x)

    def input(self, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        x = self.x.detach().to(dtype=dtype, memory_format=memory_format, copy=True)
        return x.requires_grad_(self.x.requires_grad)

    def eager(self, memory_format=torch.channels_last, dtype=torch.float32, *, compiled=False, update=True) -> Provider:
        """Return the plain PyTorch net, under torch.compile if asked for."""
        net = self.case.eager_net()
        net.load_state_dict(self.weights)
        module = part(net.to(dtype=dtype, memory_format=memory_format), self.case)
        forward = eager_forward(self.case, torch.compile(module) if compiled else module)
        x = self.input(dtype, memory_format)
        return Provider(net, module, x, make_step(self.case, module, forward, x, update=update))

    def pathnet(self, backend: str | None = None, *, update: bool = True) -> Provider:
        """Return pathnet's net, channels-last, on the backend that it chooses itself or on the one given.

        Raises NotAvailableError where this version has no such net.
        """
        net = pathnet_net(self.case)
        net.load_state_dict(self.weights)
        module = part(net.to(memory_format=torch.channels_last), self.case)
        x = self.input(torch.float32, torch.channels_last)
        step = make_step(self.case, module, pathnet_forward(self.case, module), x, update=update)

        def on_backend() -> Tensor:
            with pathnet.use_backend(backend) if backend else nullcontext():
                return step()

        return Provider(net, module, x, on_backend)


def eager_forward(case: Case, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward of the plain net or stage under the gates of the case."""
    gates = case.gates()
    return module if gates is None else lambda x: module(x, gates)


def pathnet_net(case: Case) -> nn.Module:
    """Return pathnet's twin of `case.eager_net()`."""
    if case.block == "imagenet":
        sizes = {"num_classes": 1000, "stem": "imagenet"}
    else:
        sizes = {"block": case.block, "bn": "all" if case.work == DROP_MASKED else "active"}
    try:
        return case.prepare(pathnet.PathResNet(case.depth, **sizes, precision=case.precision))
    except ValueError as error:
        if case.precision is None:
            raise
        raise NotAvailableError(f"{case}: {error}") from error


def pathnet_forward(case: Case, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward of pathnet's net or stage under the paths of the case."""
    gates = case.gates()
    if gates is None:
        return module
    if isinstance(gates[0], Drop):
        paths = _dropped(case)
    else:
        choose = pathnet.Paths.backward if case.work == RESTRICTED else pathnet.Paths.keep
        paths = choose(BLOCKS, case.chosen)
    return lambda x: module(x, paths=paths)


def _dropped(case: Case) -> pathnet.Paths:
    gates = torch.full((case.batch, BLOCKS), OFF)
    for block, kept in enumerate(case.kept_images):
        gates[kept, block] = FULL
    return pathnet.Paths(gates).scaled(1 / (1 - RATE))


def rivals(shared: Shared, *, compiled: bool = True) -> dict[str, Provider]:
    """Return the plain providers of a case; a step by paths also races the step on all blocks."""
    providers = {NCHW: shared.eager(torch.contiguous_format), CHANNELS_LAST: shared.eager()}
    if shared.case.gates() is not None:
        full = replace(shared, case=replace(shared.case, work=TRAINING))
        providers[ALL_BLOCKS] = full.eager()
    if shared.case.precision == "bf16":
        providers[BFLOAT16] = shared.eager(dtype=torch.bfloat16)
    if compiled and shared.case.compiled:
        providers[COMPILED] = shared.eager(compiled=True)
    return providers
