"""Batch norm statistics of the net that is tested, where another one was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pathnet.analysis.evaluate import BATCH_SIZE, Data, pairs
from pathnet.analysis.tape import normalised_by
from pathnet.gates import Paths
from pathnet.models import PathNet
from pathnet.models.resolve import check_images
from pathnet.samplers import Sampler

Norm = nn.modules.batchnorm._BatchNorm


def reestimate_batch_norm(net: PathNet, data: Data, batch_size: int = BATCH_SIZE) -> None:
    """Replace the running statistics of `net`, in place, by those of its own forward in evaluation over `data`.

    A net trained on some of its blocks a step has statistics of shallow nets. Here all blocks run as they do in
    evaluation, with the test-time rule of the net's sampler or its fixed paths, but batch norms normalise by the batch,
    and mean and variance become the averages over all batches of `batch_size` images. Weights do not move, classes in
    `data` are not looked at. Take training images: those that the net is tested on would leak into it.

    Raises ValueError for no images, a batch of one, and for a net whose batch norms keep no running statistics.
    """
    norms = [module for module in net.modules() if isinstance(module, Norm) and module.running_mean is not None]
    if not norms:
        raise ValueError("net must have batch norms that keep running statistics, but none does")
    paths = _in_evaluation(net)
    with normalised_by(net, "batch"), _averaging(norms), torch.no_grad():
        for x in _batches(net, data, batch_size):
            net(x, paths=paths)


def _in_evaluation(net: PathNet) -> Paths | None:
    """What `net` runs in evaluation, as paths, which a sampler's draw would replace in training."""
    if not isinstance(net.paths, Sampler):
        return net.paths
    return Paths.delete(net.num_blocks, []).scaled(net.paths.test_multiplier(net.num_blocks) or 1.0)


def _batches(net: PathNet, data: Data, batch_size: int) -> Iterator[Tensor]:
    seen = 0
    for x, _ in pairs(data):
        for part in x.to(net.conv1.weight.device).split(batch_size):
            if len(part) == 1:
                raise ValueError("data must come in batches of two images at least, for one has no spread")
            if len(part):
                check_images(part, net)
                seen += len(part)
                yield part.contiguous(memory_format=torch.channels_last)
    if not seen:
        raise ValueError("data must hold at least two images, but it is empty")


@contextmanager
def _averaging(norms: list[Norm]) -> Iterator[None]:
    """Running statistics begin anew and become plain averages over the batches; each momentum comes back."""
    momenta = [norm.momentum for norm in norms]
    kept = [[value.clone() for value in norm.buffers()] for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    try:
        yield
    except BaseException:
        for norm, values in zip(norms, kept, strict=True):
            for buffer, value in zip(norm.buffers(), values, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
