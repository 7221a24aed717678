"""A net's error under a list of paths: lesions, reorderings, multipliers. What they have in common runs once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from pathnet.analysis.plan import Plan
from pathnet.gates import Paths
from pathnet.models import PathNet
from pathnet.models.resolve import check_images

BATCH_SIZE = 500
MEMORY = 1 << 30  # bytes
Data = tuple[Tensor, Tensor] | Iterable[Sequence[Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Error in 0..1, mean cross-entropy in nats, the predicted class of each image, int64 `[N]`, and the error on the
    images of each class, float64 `[classes]`, NaN for a class without images."""

    error: float
    loss: float
    predictions: Tensor
    class_errors: Tensor

    def agreement(self, other: Evaluation) -> float:
        """Share of images on which both predict the same class."""
        return (self.predictions == other.predictions).double().mean().item()

    def error_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the error on all images of this kind lies, judged by these: Wilson's interval of a proportion."""
        images = len(self.predictions)
        wrong = round(self.error * images)
        interval = binomtest(wrong, images).proportion_ci(level, method="wilson")
        return float(interval.low), float(interval.high)


def evaluate(
    net: PathNet,
    data: Data,
    paths: Iterable[Paths | None],
    batch_size: int = BATCH_SIZE,
    memory: int = MEMORY,
) -> list[Evaluation]:
    """Evaluate `net` on images `[N, C, H, W]` and classes `[N]` once for each of `paths`; None: the net as it is.

    `data` is a tuple of images and classes or a DataLoader of such batches. Blocks with which several of `paths` begin
    run once for all of them, and equal ones are one evaluation: the n deletions of one block each and the whole net
    cost n (n + 1) / 2 block evaluations instead of n^2. Results are those of `net(x, paths=...)` on batches of
    `batch_size` images, to the bit; fewer images go at a time where the activations that forks keep would exceed
    `memory` bytes.

    Batch norms use their running statistics; the training mode is left as it was. Hooks of the net and its stages see
    one whole forward for each of `paths`, so such nets share nothing.
    Raises ValueError for no images, for paths of another net or with a gate for each image, and for too little memory.
    """
    entries = list(paths)
    with evaluation_mode(net), torch.inference_mode():
        plan = Plan(net, entries)
        tallies = [_Tally() for _ in entries]
        for x, y in _batches(net, data, batch_size, plan, memory):
            for ending, logits in plan.logits(x):
                score = _Score(logits, y)
                for index in ending:
                    tallies[index].scores.append(score)
        if entries and not tallies[0].scores:
            raise ValueError("data must hold at least one image, but it is empty")
        return [tally.evaluation() for tally in tallies]


@contextmanager
def evaluation_mode(net: nn.Module):
    """Put `net` into `eval()` and give every module its mode back afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# ---- the images ---------------------------------------------------------------------------------------------------


def _batches(net: PathNet, data: Data, batch_size: int, plan: Plan, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the net's device, channels-last, none of them empty."""
    device = net.conv1.weight.device
    for x, y in pairs(data):
        if len(y):
            x, y = x.to(device), y.to(device)
            check_images(x, net)
            size = min(batch_size, images_within(memory, net, x[:1], plan))
            x = x.contiguous(memory_format=torch.channels_last)
            yield from zip(x.split(size), y.split(size), strict=True)


def pairs(data: Data) -> Iterable[Sequence[Tensor]]:
    """The batches of images and classes that `data` holds."""
    if isinstance(data, tuple):
        x, y = data
        return [(x, y)]
    return data


def images_within(memory: int, net: PathNet, image: Tensor, plan: Plan) -> int:
    """Images whose activations, as many as `plan` keeps, fit; those of the first stage are the largest of a net."""
    kept = plan.kept
    expansion = net.num_features // (net.conv1.out_channels << (len(net.stages) - 1))
    stem = net.stem(image)
    need = kept * expansion * stem.numel() * stem.element_size()
    if need > memory:
        raise ValueError(
            f"memory must hold {kept} activations of an image, {need} bytes for these images and paths, "
            f"but it is {memory}; give more, or shorter lists"
        )
    return memory // need


# ---- the scores ---------------------------------------------------------------------------------------------------


class _Score:
    """What one batch adds to the evaluation of every entry that has these logits."""

    def __init__(self, logits: Tensor, y: Tensor) -> None:
        self.predictions = logits.argmax(1)
        self.loss = F.cross_entropy(logits.double(), y, reduction="sum").item()
        classes = logits.shape[1]
        self.images = torch.bincount(y, minlength=classes)
        self.wrong = torch.bincount(y[self.predictions != y], minlength=classes)


class _Tally:
    """The scores of one entry, batch after batch."""

    def __init__(self) -> None:
        self.scores: list[_Score] = []

    def evaluation(self) -> Evaluation:
        images = torch.stack([score.images for score in self.scores]).sum(0)
        wrong = torch.stack([score.wrong for score in self.scores]).sum(0)
        count = int(images.sum())
        loss = sum(score.loss for score in self.scores) / count
        predictions = torch.cat([score.predictions for score in self.scores])
        return Evaluation(int(wrong.sum()) / count, loss, predictions, wrong.double() / images)
