"""Plain training of a classifier, resumable to the bit.

Nothing here knows of gates: a sampler attached with `net.paths = ...` acts inside `net(x)`.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from pathnet.data.augment import shift_and_mirror
from pathnet.data.images import ImageData
from pathnet.files import write_atomically


class Diverged(RuntimeError):
    """The loss is no longer a number; the last checkpoint is untouched."""


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, the learning rate one cycle (Smith and Topin 2018) up to `peak_lr`."""

    epochs: int
    batch_size: int = 32
    peak_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if not self.peak_lr > 0:  # NaN fails too
            raise ValueError(f"peak_lr must be above 0, not {self.peak_lr}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, for batch norm needs a spread, not {self.batch_size}")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: mean loss, accuracies in 0..1, seconds of wall time."""

    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


def fit(
    net: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    title: str = "training",
) -> list[Epoch]:
    """Train `net` in place and return its epochs; resume from the file `checkpoint` and renew it each epoch.

    A resumed training gives the bits of an uninterrupted one on the same machine and number of threads.
    Raises Diverged where the loss is not finite, ValueError where the checkpoint is unreadable or another's.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Run(net, data, recipe)
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint)
    steps = len(run.batches(0))
    with tqdm(total=recipe.epochs * steps, initial=len(run.history) * steps, desc=title, unit="step") as bar:
        while len(run.history) < recipe.epochs:
            run.epoch(bar)
            if checkpoint is not None:
                write_atomically(checkpoint, run.save)
    return run.history


def accuracy(net: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """Share of images `[N, C, H, W]` that `net`, put into `eval()`, classifies as `y` says."""
    net.eval()
    with torch.inference_mode():
        right = sum(int((net(part).argmax(1) == truth).sum()) for part, truth in _parts(x, y, batch_size))
    return right / len(y)


class _Run:
    """One training: its state, how it is saved and restored, and one epoch of it."""

    def __init__(self, net: nn.Module, data: ImageData, recipe: Recipe) -> None:
        self.net, self.data, self.recipe = net, data, recipe
        self.history: list[Epoch] = []
        self.optimizer = torch.optim.SGD(
            net.parameters(),
            lr=recipe.peak_lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=recipe.peak_lr,
            total_steps=recipe.epochs * len(self.batches(0)),
            cycle_momentum=False,
        )

    def batches(self, epoch: int) -> list[Tensor]:
        """Image indices of each step; a last batch of one image is left out, as batch norm needs a spread."""
        order = torch.randperm(len(self.data.train[1]), generator=self._generator(epoch))
        batches = order.split(self.recipe.batch_size)
        return [batch for batch in batches if len(batch) > 1]

    def epoch(self, bar: tqdm) -> None:
        """Run the next epoch and append it to the history."""
        self.net.train()
        epoch, started = len(self.history), time.perf_counter()
        augmentation = self._generator(epoch, stream=1)
        loss_sum, right, seen = 0.0, 0, 0
        for indices in self.batches(epoch):
            x, y = self.data.train[0][indices], self.data.train[1][indices]
            if self.data.augment:
                x = shift_and_mirror(x, augmentation)
            loss, correct = self._step(x, y)
            loss_sum, right, seen = loss_sum + loss * len(y), right + correct, seen + len(y)
            bar.set_postfix(epoch=f"{epoch + 1}/{self.recipe.epochs}", loss=f"{loss:.3f}", refresh=False)
            bar.update()
        test_accuracy = accuracy(self.net, *self.data.test)
        self.history.append(
            Epoch(loss_sum / seen, right / seen, test_accuracy, round(time.perf_counter() - started, 3))
        )

    def _step(self, x: Tensor, y: Tensor) -> tuple[float, int]:
        logits = self.net(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, y)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(
                f"the loss became {value} in epoch {len(self.history) + 1} of {self.recipe.epochs} "
                f"at peak_lr {self.recipe.peak_lr}; finished epochs are kept, so lower peak_lr or check the images"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return value, int((logits.detach().argmax(1) == y).sum())

    def _generator(self, epoch: int, stream: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + epoch) * 2 + stream)

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.recipe), "data": self.data.fingerprint}

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        state = {
            "identity": self._identity(),
            "history": [asdict(epoch) for epoch in self.history],
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(state, path)

    def restore(self, path: Path) -> None:
        """Continue from `path`; ValueError where it is unreadable or belongs to another training."""
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            identity, history = state["identity"], [Epoch(**epoch) for epoch in state["history"]]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {path} cannot be read ({error}); delete it to train anew") from error
        if identity != self._identity():
            different = sorted(key for key in self._identity() if identity.get(key) != self._identity()[key])
            raise ValueError(
                f"checkpoint {path} belongs to a training with other {', '.join(different)}; "
                "delete it to train anew, or choose another folder"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = history


def _parts(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(size), y.split(size), strict=True)
