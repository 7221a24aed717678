"""One forward of a net, kept block by block, through which gradients are pulled back along chosen branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathnet.analysis.evaluate import evaluation_mode
from pathnet.analysis.links import Link
from pathnet.analysis.scaled import Scaled, parted
from pathnet.blocks import ResidualBlock
from pathnet.gates import Gate
from pathnet.models import PathResNet
from pathnet.route import Route
from pathnet.samplers import Sampler

COPIES = 8  # of a small batch side by side: gradients that one call pulls back
PIXELS = 1 << 15  # of all copies together: more would hardly be faster, only larger
PLACES = ("image", "stem")
STATISTICS = ("running", "batch")


class Tape:
    """The forward of the whole `net` over a batch `data`, block by block: links, or else small graphs.

    `data` is images `[N, C, H, W]` and classes `[N]`. `at="image"` pulls gradients to the images, "stem" to the output
    of the stem. `bn` says whose statistics normalise: the "running" ones, or those of the "batch", through which the
    images are coupled; running statistics do not move. Parameters are frozen meanwhile, so no weight gradient is
    computed. Several gradients are pulled at once, each through a copy of the batch.
    """

    def __init__(self, net: PathResNet, data: tuple[Tensor, Tensor], at: str = "image", bn: str = "running") -> None:
        x, y = data
        if len(y) == 0:
            raise ValueError("data must hold at least one image, but it is empty")
        if at not in PLACES or bn not in STATISTICS:
            raise ValueError(f"at must be one of {PLACES} and bn one of {STATISTICS}, but they are {at!r} and {bn!r}")
        with normalised_by(net, bn), frozen(net), torch.enable_grad():
            self.copies = copies = _copies(net, x)
            image = _last(x.detach().repeat(copies, 1, 1, 1)).requires_grad_()
            stem = net.stem(image, update=False)
            self.to_source = _Pull(stem, image, len(x)) if at == "image" else None
            self.blocks: list[Link | TapedBlock] = []
            last = _last(stem[: len(x)].detach())
            for block, multiplier in zip(net.blocks, whole_route(net).multiplier.tolist(), strict=True):
                link = Link.of(block, last, multiplier, copies)
                self.blocks.append(link or TapedBlock(block, last, multiplier, copies))
                last = self.blocks[-1].output
            last = last.detach().requires_grad_()
            loss = F.cross_entropy(net.head(last, update=False), y)
        (gradient,) = torch.autograd.grad(loss, last)
        self.from_head = Scaled(_last(gradient), 0)

    def at_source(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        """Pull gradients from the first block's input to where they are asked for."""
        return list(gradients) if self.to_source is None else self.to_source(gradients)


class TapedBlock:
    """One block y = act(h(x) + s f(x)): gradients go through f or through h, the mask of act on either way."""

    def __init__(self, block: ResidualBlock, x: Tensor, multiplier: float, copies: int) -> None:
        side_by_side = _last(x.repeat(copies, 1, 1, 1)).requires_grad_()
        y = block(side_by_side, route=_route(Gate.RESIDUAL, multiplier))
        self.output = y.detach()[: len(x)]
        self._residual, self._shortcut = _Pull(y, side_by_side, len(x)), None
        if block.post_activation or not block.has_identity_shortcut:
            around = block(side_by_side, route=_route(Gate.FORWARD, multiplier))
            self._shortcut = _Pull(around, side_by_side, len(x))

    def residual(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        """Through f."""
        return self._residual(gradients)

    def shortcut(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        """Through h; an identity without an activation behind it costs nothing."""
        return list(gradients) if self._shortcut is None else self._shortcut(gradients)


class _Pull:
    """Vector-Jacobian products of one recorded function, several at a time."""

    def __init__(self, output: Tensor, source: Tensor, images: int) -> None:
        self._output, self._source, self._images = output, source, images
        self._copies = len(source) // images

    def __call__(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        pulled: list[Scaled] = []
        for start in range(0, len(gradients), self._copies):
            pulled += self._together(gradients[start : start + self._copies])
        return pulled

    def _together(self, gradients: Sequence[Scaled]) -> list[Scaled]:
        values = [gradient.values for gradient in gradients]
        idle = values[:1] * (self._copies - len(values))
        (joint,) = torch.autograd.grad(self._output, self._source, torch.cat(values + idle), retain_graph=True)
        return parted(_last(joint), gradients)


def _last(x: Tensor) -> Tensor:
    """Channels last, as the kernels have it."""
    return x.contiguous(memory_format=torch.channels_last)


def _route(gate: Gate, multiplier: float) -> Route:
    return Route(torch.tensor([gate], dtype=torch.int8), torch.tensor([multiplier], dtype=torch.float64), update=False)


def _copies(net: PathResNet, x: Tensor) -> int:
    """How many copies of the batch run side by side; one where batch statistics would couple them."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if any(norm.training or norm.running_mean is None for norm in norms):
        return 1
    return max(1, min(COPIES, PIXELS // (len(x) * x.shape[2] * x.shape[3])))


def whole_route(net: PathResNet) -> Route:
    """Every block FULL, its residual branch multiplied as the rule of the net's sampler has it in evaluation."""
    rule = net.paths.test_multiplier(net.num_blocks) if isinstance(net.paths, Sampler) and not net.training else None
    multipliers = torch.tensor(rule or [1.0] * net.num_blocks, dtype=torch.float64)
    return Route(torch.full((net.num_blocks,), Gate.FULL, dtype=torch.int8), multipliers, update=False)


@contextmanager
def normalised_by(net: nn.Module, bn: str) -> Iterator[None]:
    """Batch norms use the "running" statistics inside, or those of the "batch"; each module's mode comes back."""
    with evaluation_mode(net):
        net.train(bn == "batch")
        try:
            yield
        finally:
            net.eval()


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
