"""ResNets in plain PyTorch, as users write them: the other side of every ratio.

Parameter names are pathnet's and torchvision's, so state dicts interchange. `gates` gives the eager forms
of training by paths: `FORWARD` computes the residual branch under `no_grad` (its detached value enters the
sum), `OFF` skips it in Python, `Drop` drops it for some images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OFF, FULL, FORWARD = 0, 1, 2


class Drop(NamedTuple):
    """A gate an image: the branch of the `kept` ones counts `scale` times, that of the others nothing."""

    kept: list[int]
    scale: float
    masked: bool  # the others compute it too, times 0; else it never sees them


Gate = int | Drop

IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps height and width up to its stride, without bias."""
    return nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. 2015: every second pixel, new channels zero, split over both sides."""

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """A residual block `activation(h(x) + f(x))`: pre-activation blocks have no activation."""

    expansion = 1

    def __init__(self, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def activation(self, z: Tensor) -> Tensor:
        return self.relu(z)

    def forward(self, x: Tensor, gate: Gate = FULL) -> Tensor:
        if gate == OFF:
            return x if self.downsample is None else self.activation(self.downsample(x))
        if isinstance(gate, Drop):
            skip = x if self.downsample is None else self.downsample(x)
            return self.activation(self.add_kept(skip, x, gate))
        if gate == FORWARD:
            with torch.no_grad():
                out = self.residual(x)
        else:
            out = self.residual(x)
        out += x if self.downsample is None else self.downsample(x)
        return self.activation(out)

    def add_kept(self, skip: Tensor, x: Tensor, drop: Drop) -> Tensor:
        """Return the sum with the branch of the kept images: masked as `torchvision.ops.StochasticDepth` does it."""
        kept = torch.tensor(drop.kept, dtype=torch.int64, device=x.device)
        if drop.masked:
            mask = x.new_zeros(len(x), 1, 1, 1).index_fill_(0, kept, drop.scale)
            return self.residual(x) * mask + skip
        return skip.index_add(0, kept, self.residual(x[kept]), alpha=drop.scale)


class BasicBlock(Block):
    """Two 3x3 convolutions, each followed by batch norm; ReLU between them and after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__(shortcut)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out))


class PreActBlock(Block):
    """Two 3x3 convolutions, each after batch norm and ReLU; nothing after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__(shortcut)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)

    def residual(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(out)))

    def activation(self, z: Tensor) -> Tensor:
        return z


class Bottleneck(Block):
    """1x1, 3x3 (with the stride, as torchvision) and 1x1 convolutions to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__(shortcut)
        self.conv1 = conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, 4 * channels, 1)
        self.bn3 = nn.BatchNorm2d(4 * channels)

    def residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))


class ResNet(nn.Module):
    """Both families: `conv1, bn1, layer1 ..., fc`; a pre-activation net has a final `bn` instead of `bn1`."""

    def __init__(
        self, kind: type[Block], blocks: Sequence[int], width: int, num_classes: int, *, imagenet: bool
    ) -> None:
        super().__init__()
        self.preact = kind is PreActBlock
        self.conv1 = conv(3, width, 7, 2) if imagenet else conv(3, width, 3)
        if not self.preact:
            self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        self.num_stages = len(blocks)
        channels = width
        for stage, count in enumerate(blocks):
            layer = make_layer(kind, channels, width << stage, count, 1 if stage == 0 else 2, project=imagenet)
            setattr(self, f"layer{stage + 1}", layer)
            channels = (width << stage) * kind.expansion
        if self.preact:
            self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, gates: Sequence[Gate] | None = None) -> Tensor:
        x = self.conv1(x) if self.preact else self.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(x)
        remaining = iter(gates) if gates is not None else None
        for stage in range(self.num_stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x) if remaining is None else block(x, next(remaining))
        if self.preact:
            x = self.relu(self.bn(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def make_layer(
    kind: type[Block], in_channels: int, channels: int, count: int, stride: int, *, project: bool
) -> nn.Sequential:
    """Return a stage of `count` blocks whose first one changes the shape, by projection or by padding."""
    out_channels = channels * kind.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or in_channels != out_channels:
        if project:
            shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        else:
            shortcut = PadShortcut(out_channels - in_channels)
    layer = [kind(in_channels, channels, stride, shortcut)]
    layer += [kind(out_channels, channels, 1, None) for _ in range(count - 1)]
    return nn.Sequential(*layer)


def cifar_resnet(depth: int, block: str = "basic", num_classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet of depth 6n + 2: three stages of n blocks with 16, 32 and 64 channels."""
    kind = PreActBlock if block == "preact" else BasicBlock
    return ResNet(kind, [(depth - 2) // 6] * 3, 16, num_classes, imagenet=False)


def imagenet_resnet(depth: int, num_classes: int = 1000) -> ResNet:
    """Return torchvision's ResNet-18, -34, -50, -101 or -152, key for key."""
    kind = BasicBlock if depth < 50 else Bottleneck
    return ResNet(kind, IMAGENET_BLOCKS[depth], 64, num_classes, imagenet=True)
