"""What is measured: nets, stages, batch sizes and kinds of step, at three scales."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.eager import FORWARD, FULL, OFF, ResNet, cifar_resnet, imagenet_resnet

EVALUATION = "evaluation"
TRAINING = "training step"
RESTRICTED = "path-restricted step"
EFFECTIVE = "effective-path step"

KEPT, BLOCKS = 23, 54  # the effective paths of the paper: 23 of the 54 blocks of ResNet-110

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table: a net or one of its stages, a batch and a kind of step.

    `block` is "basic" or "preact" (CIFAR) or "imagenet"; `stage` counts from 1, None is the whole net;
    `compiled` adds torch.compile to the providers.
    """

    depth: int
    block: str
    work: str
    batch: int
    size: int = 32
    stage: int | None = None
    compiled: bool = False

    def __str__(self) -> str:
        stage = "" if self.stage is None else f" stage {self.stage}"
        net = f"ResNet-{self.depth} {self.block}{stage}"
        return f"{net}, {self.size}x{self.size}, batch {self.batch}: {self.work}"

    @property
    def trains(self) -> bool:
        return self.work != EVALUATION

    @property
    def chosen(self) -> list[int]:
        """The FULL blocks of a step by paths; the same draw for every run."""
        return sorted(random.Random(0).sample(range(BLOCKS), KEPT))

    def gates(self) -> list[int] | None:
        """Return the eager net's gate of every block, None where the step is a plain one."""
        if self.work not in (RESTRICTED, EFFECTIVE):
            return None
        other = FORWARD if self.work == RESTRICTED else OFF
        return [FULL if block in self.chosen else other for block in range(BLOCKS)]

    def eager_net(self) -> ResNet:
        """Return the plain PyTorch net in the mode of the step."""
        if self.block == "imagenet":
            return imagenet_resnet(self.depth).train(self.trains)
        return cifar_resnet(self.depth, self.block).train(self.trains)

    def input(self) -> Tensor:
        """Return images [batch, 3, size, size], or the input of the stage: >= 0, as after a ReLU."""
        if self.stage is None:
            return torch.randn(self.batch, 3, self.size, self.size)
        halvings = max(self.stage - 2, 0)
        size = self.size >> halvings
        return torch.rand(self.batch, 16 << halvings, size, size, requires_grad=self.trains)

    def with_batch(self, batch: int) -> Case:
        return replace(self, batch=batch)


def part(net: nn.Module, case: Case) -> nn.Module:
    """Return the stage that the case measures, or the whole net."""
    return net if case.stage is None else getattr(net, f"layer{case.stage}")


def make_step(case: Case, module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, *, update: bool) -> Step:
    """Return the step of the case through `forward`, which runs `module`; it returns the output.

    Evaluation runs without gradients. A training step clears the gradients, runs forward, loss (cross
    entropy; for a stage ||y||^2 / 2, whose gradient is y) and backward, and with `update` one step of SGD
    with momentum.
    """
    if not case.trains:
        return torch.no_grad()(lambda: forward(x))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    classes = torch.arange(case.batch, device=x.device) % 10

    def step() -> Tensor:
        optimizer.zero_grad()
        x.grad = None
        y = forward(x)
        if case.stage is None:
            nn.functional.cross_entropy(y, classes).backward()
        else:
            y.backward(y.detach())
        if update:
            optimizer.step()
        return y

    return step


def _cifar(depth: int, batch: int, stage_depth: int, stage_batch: int, *, compiled: bool) -> list[Case]:
    nets = [
        Case(depth, block, work, batch)
        for block in ("basic", "preact")
        for work in (EVALUATION, TRAINING, RESTRICTED, EFFECTIVE)
    ]
    stages = [
        Case(stage_depth, block, work, stage_batch, stage=stage, compiled=compiled and block == "basic")
        for block in ("basic", "preact")
        for work in (EVALUATION, TRAINING)
        for stage in (1, 2, 3)
    ]
    return nets + stages


def _imagenet(depth: int, batch: int, size: int) -> list[Case]:
    return [Case(depth, "imagenet", work, batch, size) for work in (EVALUATION, TRAINING)]


def _small_nets(batch: int) -> list[Case]:
    return [Case(20, "basic", work, batch, compiled=True) for work in (EVALUATION, TRAINING)]


SCALES = {
    "quick": _cifar(110, 4, 14, 16, compiled=False) + [Case(8, "basic", EVALUATION, 16, compiled=True)],
    "default": _cifar(110, 16, 26, 32, compiled=True) + _small_nets(32) + _imagenet(18, 2, 224),
    "full": _cifar(110, 128, 26, 128, compiled=True)
    + _small_nets(128)
    + [Case(110, "basic", EVALUATION, batch) for batch in (1, 8)]
    + _imagenet(18, 16, 224)
    + _imagenet(50, 16, 224),
}
ROUNDS = {"quick": 3, "default": 5, "full": 7}
