"""Who runs a case: eager PyTorch in both memory formats, torch.compile, and each pathnet backend that can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import pathnet
from benchmarks.cases import BLOCKS, RESTRICTED, TRAINING, Case, Step, make_step, part
from pathnet.backend import BACKENDS

NCHW, CHANNELS_LAST, COMPILED = "eager NCHW", "eager channels-last", "torch.compile"
ALL_BLOCKS = "eager channels-last, all blocks"


@dataclass(frozen=True)
class Provider:
    """A net with the case's weights, the part of it that is measured, and the step that runs it."""

    module: nn.Module
    step: Step


@dataclass(frozen=True)
class Shared:
    """What all providers of a case have in common: the weights and the input."""

    case: Case
    weights: dict[str, Tensor]
    x: Tensor

    @classmethod
    def of(cls, case: Case) -> Shared:
        """Return seeded weights, an input, and running statistics that fit it, to keep activations small."""
        torch.manual_seed(0)
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
        return Provider(module, make_step(self.case, module, forward, self.input(dtype, memory_format), update=update))

    def pathnet(self, backend: str, *, update: bool = True) -> Provider:
        """Return pathnet's net on one backend, channels-last."""
        net = pathnet_net(self.case)
        net.load_state_dict(self.weights)
        module = part(net.to(memory_format=torch.channels_last), self.case)
        step = make_step(
            self.case,
            module,
            pathnet_forward(self.case, module),
            self.input(torch.float32, torch.channels_last),
            update=update,
        )

        def on_backend() -> Tensor:
            with pathnet.use_backend(backend):
                return step()

        return Provider(module, on_backend)


def eager_forward(case: Case, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward of the plain net or stage under the gates of the case."""
    gates = case.gates()
    return module if gates is None else lambda x: module(x, gates)


def pathnet_net(case: Case) -> nn.Module:
    """Return pathnet's twin of `case.eager_net()`."""
    if case.block == "imagenet":
        net = pathnet.PathResNet(case.depth, num_classes=1000, stem="imagenet")
    else:
        net = pathnet.PathResNet(case.depth, block=case.block)
    return net.train(case.trains)


def pathnet_forward(case: Case, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward of pathnet's net or stage under the paths of the case."""
    if case.gates() is None:
        return module
    choose = pathnet.Paths.backward if case.work == RESTRICTED else pathnet.Paths.keep
    paths = choose(BLOCKS, case.chosen)
    return lambda x: module(x, paths=paths)


def accepted_backends(shared: Shared) -> tuple[dict[str, Provider], dict[str, str]]:
    """Return pathnet's providers, slowest backend first, and each refusal as a sentence."""
    accepted, refused = {}, {}
    for backend in reversed(BACKENDS):
        provider = shared.pathnet(backend)
        try:
            provider.step()
        except RuntimeError as error:
            if "cannot run" not in str(error):  # no refusal but a failure
                raise
            refused[backend] = str(error)
        else:
            accepted[f"pathnet {backend}"] = provider
    return accepted, refused


def rivals(shared: Shared) -> dict[str, Provider]:
    """Return the eager providers of a case; a step by paths also races the step on all blocks."""
    providers = {NCHW: shared.eager(torch.contiguous_format), CHANNELS_LAST: shared.eager()}
    if shared.case.gates() is not None:
        full = replace(shared, case=replace(shared.case, work=TRAINING))
        providers[ALL_BLOCKS] = full.eager()
    if shared.case.compiled:
        providers[COMPILED] = shared.eager(compiled=True)
    return providers
