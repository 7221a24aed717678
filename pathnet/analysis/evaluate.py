"""A net's error under a list of paths."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pathnet.gates import Paths
from pathnet.models import PathResNet

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evaluation:
    """Error in 0..1, mean cross-entropy, and the predicted class of each image, int64 `[N]`."""

    error: float
    loss: float
    predictions: Tensor


def evaluate(
    net: PathResNet, data: tuple[Tensor, Tensor], paths: Iterable[Paths | None], batch_size: int = BATCH_SIZE
) -> list[Evaluation]:
    """Evaluate `net` on images `[N, C, H, W]` and classes `[N]` once for each of `paths`; None: the whole net.

    Batch norms use their running statistics; the training mode is left as it was. ValueError for no images.
    """
    x, y = data
    if len(y) == 0:
        raise ValueError("data must hold at least one image, but it is empty")
    x = x.contiguous(memory_format=torch.channels_last)
    with evaluation_mode(net), torch.inference_mode():
        return [_evaluate_one(net, x, y, entry, batch_size) for entry in paths]


@contextmanager
def evaluation_mode(net: PathResNet):
    """Put `net` into `eval()` and give every module its mode back afterwards."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _evaluate_one(net: PathResNet, x: Tensor, y: Tensor, paths: Paths | None, batch_size: int) -> Evaluation:
    logits = torch.cat([net(part, paths=paths) for part in x.split(batch_size)])
    predictions = logits.argmax(1)
    wrong = (predictions != y).double().mean().item()
    return Evaluation(wrong, F.cross_entropy(logits.double(), y).item(), predictions)
