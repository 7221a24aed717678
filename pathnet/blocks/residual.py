"""Residual blocks: parameters named as torchvision names them, run through the ops."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pathnet.blocks.describe import describe, why_as_module
from pathnet.blocks.shortcut import make_shortcut
from pathnet.ops import stage
from pathnet.reference import Block, Relu
from pathnet.route import Route


class ResidualBlock(nn.Module):
    """y = act(h(x) + s f(x)) for one gated block, x [N, C, H, W]."""

    expansion: ClassVar[int] = 1
    branch: ClassVar[tuple[str, ...]]  # the children of f, in the order in which they run
    post_activation: ClassVar[bool] = True

    zero_unused = False  # unused_grad="zero" of the net
    precision: str | None = None  # of the net
    recompute = False  # recompute="conv3" of the net

    def _add_shortcut(self, kind: str, in_channels: int, out_channels: int, stride: int) -> None:
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(kind, in_channels, out_channels, stride, norm=self.post_activation)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        return stage(x, [self.spec()], route, self.zero_unused, self.precision)

    def spec(self) -> Block:
        """The block as values; a child that was hooked or swapped stands in it as the module it is."""
        act: Relu | nn.Module | None = self.relu if self.post_activation else None
        if isinstance(act, nn.ReLU) and why_as_module(act) is None:
            act = Relu(act.inplace)
        branch = describe(getattr(self, name) for name in self.branch)
        return Block(branch, describe([self.downsample]), act, self.recompute)

    def why_as_module(self) -> str | None:
        """Why no kernel can run this block, naming the child, in a sentence; None if one may."""
        if self.forward_was_replaced():
            return "its forward was replaced"
        for name in (*dict.fromkeys(self.branch), "downsample"):
            child = getattr(self, name)
            for part in (child, *child) if isinstance(child, nn.Sequential) else (child,):
                reason = None if part is None else why_as_module(part)
                if reason:
                    return f"{name}: {reason}"
        return None

    def forward_was_replaced(self) -> bool:
        return type(self).forward is not ResidualBlock.forward or "forward" in vars(self)

    @property
    def has_identity_shortcut(self) -> bool:
        return self.downsample is None

    def residual(self, x: Tensor) -> Tensor:
        """f(x), by calling the children one after the other."""
        for name in self.branch:
            x = getattr(self, name)(x)
        return x

    def shortcut(self, x: Tensor) -> Tensor:
        """h(x)."""
        return x if self.downsample is None else self.downsample(x)

    def activation(self, z: Tensor) -> Tensor:
        """act(z): ReLU for post-activation blocks, z itself for pre-activation ones."""
        return self.relu(z) if self.post_activation else z


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, ReLU after the sum (He et al. 2015)."""

    branch = ("conv1", "bn1", "relu", "conv2", "bn2")

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self._add_shortcut(shortcut, in_channels, width, stride)


class PreActBlock(ResidualBlock):
    """Batch norm and ReLU before each 3x3 convolution, nothing after the sum (He et al. 2016; Veit et al. 2016).

    The shortcut takes the raw x, as the formula of Veit et al. has it; the Torch code of He et al. shares the first
    batch norm and ReLU of a stage with the shortcut.
    """

    branch = ("bn1", "relu", "conv1", "bn2", "relu", "conv2")
    post_activation = False

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self._add_shortcut(shortcut, in_channels, width, stride)


class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, the stride on the 3x3, ReLU after the sum (torchvision's ResNet v1.5)."""

    expansion = 4
    branch = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3")

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self._add_shortcut(shortcut, in_channels, out_channels, stride)


class PreActBottleneckBlock(ResidualBlock):
    """Batch norm and ReLU before 1x1, 3x3 and 1x1 convolutions, the stride on the 3x3 (He et al. 2016).

    The shortcut takes the raw x, as in `PreActBlock`.
    """

    expansion = 4
    branch = ("bn1", "relu", "conv1", "bn2", "relu", "conv2", "bn3", "relu", "conv3")
    post_activation = False

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self._add_shortcut(shortcut, in_channels, out_channels, stride)


BLOCKS: dict[str, type[ResidualBlock]] = {
    "basic": BasicBlock,
    "preact": PreActBlock,
    "bottleneck": BottleneckBlock,
    "preact_bottleneck": PreActBottleneckBlock,
}
