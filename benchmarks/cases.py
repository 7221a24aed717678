"""What is measured: nets, stages, batch sizes and kinds of step, at three scales."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from benchmarks.eager import FORWARD, FULL, OFF, Drop, Gate, ResNet, cifar_resnet, imagenet_resnet

EVALUATION = "evaluation"
TRAINING = "training step"
RESTRICTED = "path-restricted step"
EFFECTIVE = "effective-path step"
DROP_MASKED = 'DropPath step, bn="all"'
DROP_ACTIVE = 'DropPath step, bn="active"'
INPUT_GRADIENT = "input gradient"

SHORT = {
    EVALUATION: "eval",
    TRAINING: "train",
    RESTRICTED: "restricted",
    EFFECTIVE: "effective",
    DROP_MASKED: "droppath",
    DROP_ACTIVE: "droppath-active",
    INPUT_GRADIENT: "input-grad",
}
FEW = (1, 8)  # batch sizes with rows of their own
KEPT, BLOCKS = 23, 54  # the effective paths of the paper: 23 of the 54 blocks of ResNet-110
RATE = 0.2  # at which an image drops a block of a DropPath step

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table: a net or one of its stages, a batch and a kind of step.

    `block` is "basic" or "preact" (CIFAR) or "imagenet"; `stage` counts from 1, None is the whole net;
    `precision` is pathnet's, the plain nets compute in float32; `compiled` adds torch.compile to the rivals.
    """

    depth: int
    block: str
    work: str
    batch: int
    size: int = 32
    stage: int | None = None
    compiled: bool = False
    precision: str | None = None

    def __str__(self) -> str:
        stage = "" if self.stage is None else f" stage {self.stage}"
        net = f"ResNet-{self.depth} {self.block}{stage}"
        precision = "" if self.precision is None else f", {self.precision} products"
        return f"{net}, {self.size}x{self.size}, batch {self.batch}: {self.work}{precision}"

    @property
    def name(self) -> str:
        """What `--only` knows the row by, such as "eval", "preact-train", "resnet18-eval" or "eval-batch1"."""
        parts = [
            "preact" if self.block == "preact" else "",
            f"stage{self.stage}" if self.stage is not None else f"resnet{self.depth}" if self.depth != 110 else "",
            SHORT[self.work],
            self.precision or "",
            f"batch{self.batch}" if self.batch in FEW else "",
        ]
        return "-".join(filter(None, parts))

    @property
    def trains(self) -> bool:
        return self.work in (TRAINING, RESTRICTED, EFFECTIVE, DROP_MASKED, DROP_ACTIVE)

    @property
    def is_net_step(self) -> bool:
        """Whether this is a training step of a whole net, whose memory is measured."""
        return self.trains and self.stage is None

    @property
    def chosen(self) -> list[int]:
        """The FULL blocks of a step by paths; the same draw for every run."""
        return sorted(random.Random(0).sample(range(BLOCKS), KEPT))

    @property
    def kept_images(self) -> list[list[int]]:
        """The images that run each block of a DropPath step; the same draw for every run."""
        draw = random.Random(0)
        return [[image for image in range(self.batch) if draw.random() >= RATE] for _ in range(BLOCKS)]

    def gates(self) -> list[Gate] | None:
        """Return the eager net's gate of every block, None where the step is a plain one."""
        if self.work in (DROP_MASKED, DROP_ACTIVE):
            return [Drop(kept, 1 / (1 - RATE), self.work == DROP_MASKED) for kept in self.kept_images]
        if self.work not in (RESTRICTED, EFFECTIVE):
            return None
        other = FORWARD if self.work == RESTRICTED else OFF
        return [FULL if block in self.chosen else other for block in range(BLOCKS)]

    def eager_net(self) -> ResNet:
        """Return the plain PyTorch net in the mode of the step."""
        net = imagenet_resnet(self.depth) if self.block == "imagenet" else cifar_resnet(self.depth, self.block)
        return self.prepare(net)

    def prepare(self, net: nn.Module) -> nn.Module:
        """Put a net into the mode of the step: training or not, parameters with or without a gradient."""
        return net.train(self.trains).requires_grad_(self.work != INPUT_GRADIENT)

    def input(self) -> Tensor:
        """Return images [batch, 3, size, size], or the input of the stage: >= 0, as after a ReLU."""
        if self.stage is None:
            return torch.randn(self.batch, 3, self.size, self.size, requires_grad=self.work == INPUT_GRADIENT)
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

    Evaluation runs without gradients. An input gradient runs forward, loss (cross entropy) and backward to the
    images. A training step clears the gradients, runs forward, loss (for a stage ||y||^2 / 2, whose gradient is y)
    and backward, and with `update` one step of SGD with momentum.
    """
    if case.work == EVALUATION:
        return torch.no_grad()(lambda: forward(x))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9) if case.trains else None
    classes = torch.arange(case.batch, device=x.device) % 10

    def step() -> Tensor:
        if optimizer is not None:
            optimizer.zero_grad()
        x.grad = None
        y = forward(x)
        if case.stage is None:
            nn.functional.cross_entropy(y, classes).backward()
        else:
            y.backward(y.detach())
        if optimizer is not None and update:
            optimizer.step()
        return y

    return step


STEPS = (EVALUATION, TRAINING, RESTRICTED, EFFECTIVE)


def _resnet110(batch: int, gradient_batch: int, *, compiled: bool) -> list[Case]:
    basic = [Case(110, "basic", work, batch, compiled=compiled and work in (EVALUATION, TRAINING)) for work in STEPS]
    return [
        *basic,
        Case(110, "basic", EVALUATION, batch, precision="bf16"),
        *(Case(110, "basic", EVALUATION, few) for few in FEW),
        Case(110, "basic", INPUT_GRADIENT, gradient_batch),
        *(Case(110, "basic", work, batch) for work in (DROP_MASKED, DROP_ACTIVE)),
        *(Case(110, "preact", work, batch) for work in STEPS),
    ]


def _imagenet(depth: int, batch: int, size: int) -> list[Case]:
    return [Case(depth, "imagenet", work, batch, size) for work in (EVALUATION, TRAINING)]


def _small(depth: int, batch: int, works: Sequence[str] = (EVALUATION, TRAINING)) -> list[Case]:
    return [Case(depth, "basic", work, batch, compiled=True) for work in works]


def _stages(depth: int, batch: int) -> list[Case]:
    return [
        Case(depth, block, work, batch, stage=stage)
        for block in ("basic", "preact")
        for work in (EVALUATION, TRAINING)
        for stage in (1, 2, 3)
    ]


_MAIN = [*_resnet110(128, 32, compiled=True), *_imagenet(18, 16, 224), *_imagenet(50, 16, 224), *_small(20, 128)]
SCALES = {
    "quick": [*_resnet110(4, 2, compiled=False), *_imagenet(18, 2, 64), *_small(8, 16, [EVALUATION]), *_stages(14, 4)],
    "default": _MAIN,
    "full": [*_MAIN, *_stages(26, 128)],
}
ROUNDS = {"quick": 3, "default": 5, "full": 9}


def names(cases: Sequence[Case]) -> list[str]:
    """Return the name of everything that can be measured: rows, memory of their steps, memory a block, predictions."""
    steps = [f"memory-{case.name}" for case in cases if case.is_net_step]
    return [*(case.name for case in cases), *steps, "memory-blocks", "predictions"]


def select(known: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """Return the known names that were wanted, where * and ? mean what they mean in a shell.

    Raises ValueError, with all names, for one that fits none.
    """
    lost = [pattern for pattern in wanted if not any(fnmatchcase(name, pattern) for name in known)]
    if lost:
        raise ValueError(f"--only must hold names of this scale, got {', '.join(lost)}; there are {', '.join(known)}")
    return {name for name in known if any(fnmatchcase(name, pattern) for pattern in wanted)}
