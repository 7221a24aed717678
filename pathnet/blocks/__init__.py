"""Residual blocks and stages of them."""

from pathnet.blocks.describe import run_modules
from pathnet.blocks.residual import (
    BLOCKS,
    BasicBlock,
    BottleneckBlock,
    PreActBlock,
    PreActBottleneckBlock,
    ResidualBlock,
)
from pathnet.blocks.stage import Stage
from pathnet.blocks.stem import run_cifar_stem, run_imagenet_stem

__all__ = [
    "BLOCKS",
    "BasicBlock",
    "BottleneckBlock",
    "PreActBlock",
    "PreActBottleneckBlock",
    "ResidualBlock",
    "Stage",
    "run_cifar_stem",
    "run_imagenet_stem",
    "run_modules",
]
