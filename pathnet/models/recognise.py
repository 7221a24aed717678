"""Which net a file of weights belongs to, from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pathnet.models.path_resnet import PathResNet
from pathnet.models.sizes import IMAGENET, stage_sizes

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_PROJECTION = re.compile(r"layer\d+\.0\.downsample\.0\.weight")


def recognise(weights: Mapping[str, Tensor], shortcut: str = "pad") -> tuple[str, PathResNet]:
    """The name of the net that has these weights, and such a net, its own weights not loaded yet.

    `weights` is a state dict in torchvision's names (`read_weights`). The name is the block and the depth, as in
    "preact110", or "imagenet50" for a net with an ImageNet stem. `shortcut` decides between "pad" and "pad_end", which
    have no weights. Raises ValueError for weights of a net that `PathResNet` is not.
    """
    sizes = _sizes(weights)
    first = weights.get("conv1.weight")
    if not sizes or first is None or "fc.weight" not in weights or "layer1.0.conv1.weight" not in weights:
        raise ValueError(
            "weights must be those of a residual net in torchvision's names (conv1, layer1.0.conv1, ..., fc), "
            f"but they hold {', '.join(list(weights)[:5])}, ..."
        )
    stem = "imagenet" if first.shape[-1] == 7 else "cifar"
    block = _block(weights)
    projected = any(_PROJECTION.fullmatch(name) for name in weights)
    depth = _depth(sizes, block, stem)
    net = PathResNet(
        depth,
        len(weights["fc.weight"]),
        stem=stem,
        block=block,
        shortcut="conv" if projected else shortcut,
        width=len(first),
        in_channels=first.shape[1],
    )
    return f"{'imagenet' if stem == 'imagenet' else block}{depth}", net


def _sizes(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage."""
    found = {tuple(map(int, match.groups())) for match in map(_BLOCK.match, weights) if match}
    stages = max((stage for stage, _ in found), default=0)
    return tuple(sum(stage == wanted for stage, _ in found) for wanted in range(1, stages + 1))


def _block(weights: Mapping[str, Tensor]) -> str:
    preact, bottleneck = "bn.weight" in weights, "layer1.0.conv3.weight" in weights
    return ("preact_" if preact and bottleneck else "preact" if preact else "") + (
        "bottleneck" if bottleneck else "" if preact else "basic"
    )


def _depth(sizes: tuple[int, ...], block: str, stem: str) -> int:
    each = 3 if "bottleneck" in block else 2
    depth = each * sum(sizes) + 2
    known = depth in IMAGENET if stem == "imagenet" else len(set(sizes)) == 1 and len(sizes) == 3
    if not known or stage_sizes(depth, block, stem) != sizes:
        raise ValueError(
            f"weights must be those of a CIFAR net with three equal stages or of ResNet-18 to 152, "
            f"but they have stages of {', '.join(map(str, sizes))} blocks ({block}, {stem} stem)"
        )
    return depth
