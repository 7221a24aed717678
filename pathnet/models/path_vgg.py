"""The control of the lesion studies: a plain net, which has one path instead of 2^n."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pathnet.gates import Gate, Paths
from pathnet.models.resolve import check_images, resolve
from pathnet.route import Route

FEWEST_LAYERS = 6  # the first convolution, one more before each of three poolings and one behind, the classifier


class PlainLayer(nn.Module):
    """y = relu(bn(conv(x))), 3x3, without a shortcut; a layer that `halves` x does so first, deleted or not."""

    def __init__(self, width: int, halves: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if halves else None
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    @property
    def has_identity_shortcut(self) -> bool:
        """Whether the layer leaves the shape as it is."""
        return self.pool is None

    def forward(self, x: Tensor, on: bool = True) -> Tensor:
        x = x if self.pool is None else self.pool(x)
        return torch.relu(self.bn(self.conv(x))) if on else x


class PathVGG(nn.Module):
    """A plain net of 3x3 convolutions of one width, any of which but the first can be deleted or moved.

    x_i = relu(bn(conv_i(x_{i-1}))): one path, which every deletion cuts. `layers` counts the convolutions and the
    linear classifier; three max-poolings halve the images and are no layers. `Paths` count what can be deleted as
    blocks, from 0: the convolutions behind the first one, 13 of 15 layers. Gates are OFF (x passes) and FULL.
    Shapes: x [N, in_channels, H, W] with H, W >= 8 -> logits [N, num_classes].

    Raises ValueError for fewer than 6 layers, for other gates, for multipliers and for gates of single images.
    Source: Veit et al. 2016, section 4.1 (15 layers); width and batch norms are ours, for the text names neither.
    """

    paths = None  # lesions are given call by call
    row_statistics = "active"
    smallest_image = 8

    def __init__(self, num_classes: int = 10, *, layers: int = 15, width: int = 128, in_channels: int = 3) -> None:
        super().__init__()
        if layers < FEWEST_LAYERS:
            raise ValueError(f"layers must be at least {FEWEST_LAYERS}, got {layers}")
        self.in_channels, self.num_features = in_channels, width
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        count, stage = layers - 2, (layers - 3) // 3
        starts = (count - 3 * stage, count - 2 * stage, count - stage)
        self.layers = nn.Sequential(*(PlainLayer(width, halves=i in starts) for i in range(count)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        return (self.layers,)

    @property
    def blocks(self) -> tuple[PlainLayer, ...]:
        """The layers that can be deleted, in order."""
        return tuple(self.layers)  # type: ignore[arg-type]  # a Sequential of them

    @property
    def num_blocks(self) -> int:
        return len(self.layers)

    def swappable(self) -> list[list[int]]:
        """Groups of layers of equal shape: those between two poolings, and each that halves x alone."""
        groups: list[list[int]] = [[]]
        for index, layer in enumerate(self.blocks):
            groups += [[index], []] if layer.pool else []
            groups[-1] += [] if layer.pool else [index]
        return [group for group in groups if group]

    def forward(self, x: Tensor, paths: Paths | None = None) -> Tensor:
        """Logits [N, num_classes] of images x [N, in_channels, H, W], through `paths`."""
        check_images(x, self)
        route, order = resolve(self, x, paths)
        return self.head(self.through(self.stem(x), range(self.num_blocks) if order is None else order, route))

    def stem(self, x: Tensor) -> Tensor:
        """The first convolution."""
        return torch.relu(self.bn1(self.conv1(x)))

    def through(self, x: Tensor, order: Sequence[int], route: Route | None = None) -> Tensor:
        """Run the layers named in `order`, and no others."""
        gates = [int(Gate.FULL)] * self.num_blocks if route is None else _on_or_off(route)
        for index in order:
            x = self.layers[index](x, on=gates[index] == Gate.FULL)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Logits of what stands behind the layers."""
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _on_or_off(route: Route) -> list[int]:
    gates = [] if route.live else route.gates.tolist()
    others = route.live or route.gates.dim() > 1 or not {*gates} <= {Gate.OFF, Gate.FULL}
    if others or bool((route.multiplier != 1).any()):
        raise ValueError(
            "paths must hold one gate a layer on the host, OFF or FULL, and no multiplier, for a net without shortcuts "
            "has no more ways to run; use Paths.delete or Paths.keep"
        )
    return gates
