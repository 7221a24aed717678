"""Top-1 of trained weights on real images: how many predictions pathnet keeps, in float32 and with bf16 products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import pathnet
from benchmarks.agreement import relative_error
from benchmarks.eager import cifar_resnet
from benchmarks.providers import NotAvailableError
from pathnet.data import load_cifar10

BATCH = 250


@dataclass(frozen=True)
class Trained:
    """A CIFAR net of post-activation blocks whose trained weights lie in a file."""

    depth: int
    file: Path

    @classmethod
    def parse(cls, text: str) -> Trained:
        """Read "32=resnet32.th"; raises ValueError."""
        depth, equals, file = text.partition("=")
        if not (depth.isdigit() and equals and Path(file).is_file()):
            raise ValueError(
                f"--weights must be DEPTH=FILE, such as 32=resnet32.th, with a file that is there; got {text!r}"
            )
        return cls(int(depth), Path(file))

    def __str__(self) -> str:
        return f"ResNet-{self.depth}, {self.file.name}"

    def eager(self) -> nn.Module:
        """Return the plain net with these weights."""
        net = cifar_resnet(self.depth)
        pathnet.load_weights(net, self.file)
        return net.eval().to(memory_format=torch.channels_last)

    def pathnet(self, precision: str | None) -> nn.Module:
        """Return pathnet's net with these weights; raises NotAvailableError where it has no such precision."""
        try:
            net = pathnet.PathResNet(self.depth, precision=precision)
        except ValueError as error:
            raise NotAvailableError(f"{self}, {precision} products: {error}") from error
        pathnet.load_weights(net, self.file)
        return net.eval().to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Predictions:
    """pathnet against eager float32; errors of logits are relative to eager float64, in the Frobenius norm."""

    net: str
    precision: str
    images: int
    agreeing: int
    correct: int
    correct_eager: int
    error: float
    error_eager: float


def load_images(file: Path, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Return all CIFAR-10 images of a file or folder, float32 [N, 3, 32, 32] and normalised, and their classes."""
    data = load_cifar10(file)
    x, y = (torch.cat(parts)[:limit] for parts in zip(data.train, data.test, strict=True))
    return x.contiguous(memory_format=torch.channels_last), y


@torch.no_grad()
def logits(net: nn.Module, x: Tensor) -> Tensor:
    """Return the net's logits [N, classes], computed in batches."""
    return torch.cat(list(_batches(net, x)))


def _batches(net: nn.Module, x: Tensor) -> Iterator[Tensor]:
    for batch in x.split(BATCH):
        yield net(batch)


def compare(trained: Trained, precision: str | None, images: tuple[Tensor, Tensor]) -> dict[str, object]:
    """Return the figures of `Predictions` as plain values."""
    x, classes = images
    ours, plain = logits(trained.pathnet(precision), x), logits(trained.eager(), x)
    truth = logits(trained.eager().double(), x.double())
    top, top_eager = ours.argmax(1), plain.argmax(1)
    return asdict(
        Predictions(
            net=str(trained),
            precision=precision or "float32",
            images=len(x),
            agreeing=int((top == top_eager).sum()),
            correct=int((top == classes).sum()),
            correct_eager=int((top_eager == classes).sum()),
            error=relative_error([ours], [truth]),
            error_eager=relative_error([plain], [truth]),
        )
    )
