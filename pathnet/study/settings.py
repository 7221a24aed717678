"""What a study is asked to do, and the net and the images that follow from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from pathnet import data as images
from pathnet.models import PathResNet
from pathnet.study.subject import net_of_weights

NET_NAME = re.compile(r"(preact|basic|bottleneck|preact_bottleneck|imagenet)([0-9]+)")
LARGEST_SAMPLES = 1000


def net_name(name: str) -> tuple[str, int]:
    """Block and depth of a net's name: `"preact110"` is `("preact", 110)`."""
    match = NET_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"net must be preact or basic followed by the depth, as in preact110 or basic32, not {name!r}")
    return match[1], int(match[2])


@dataclass(frozen=True)
class Settings:
    """One study. Two studies with equal settings, images, weights and version give equal results.

    `epochs` are those of full training; trainings on fewer blocks a step get more (`trainings`). `keep` is the number
    of blocks in each step of effective-path training; None keeps 23 of 54, or as many in proportion. `survival` is the
    probability with which stochastic depth keeps the last block. `images` caps the test images of lesions; `samples`
    counts the paths drawn for each length.
    """

    data: str = "digits"
    root: str | None = None
    image_size: int = 32
    net: str = "preact110"
    shortcut: str = "pad"
    weights: str | None = None
    epochs: int = 6
    batch_size: int = 32
    peak_lr: float = 0.1
    keep: int | None = None
    survival: float = 0.5
    deletions: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10, 12, 15, 20)
    swaps: tuple[int, ...] = (1, 2, 4, 6, 10, 16, 24)
    trials: int = 10
    samples: int = 20
    gradient_images: int = 32
    images: int = 1000
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= LARGEST_SAMPLES:
            raise ValueError(f"samples must lie in 1..{LARGEST_SAMPLES}, the paper's number, not {self.samples}")
        for name in ("epochs", "trials", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if not 0 < self.survival <= 1:
            raise ValueError(f"survival must be a probability above 0, not {self.survival}")
        net_name(self.net)


QUICK = Settings(
    net="preact56",
    epochs=4,
    deletions=(1, 2, 3, 4, 6, 8, 10),
    swaps=(1, 2, 4, 8, 12),
    trials=4,
    samples=5,
    images=250,
    quick=True,
)


def settings_from(quick: bool, **asked: Any) -> Settings:
    """The default or the quick study, with everything that was asked for (not None) in place of its own.

    Weights say themselves which net they belong to.
    """
    preset = QUICK if quick else Settings()
    wanted = {name: value for name, value in asked.items() if value is not None}
    if "weights" in wanted and "net" not in wanted:
        wanted["net"], _ = net_of_weights(wanted["weights"], wanted.get("shortcut", preset.shortcut))
    return replace(preset, **wanted)


def make_net(name: str, shortcut: str, data: images.ImageData, seed: int) -> PathResNet:
    """The net called `name` for these images, with weights drawn from `seed`."""
    kind, depth = net_name(name)
    imagenet = kind == "imagenet"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PathResNet(
            depth,
            data.classes,
            stem="imagenet" if imagenet else "cifar",
            block=None if imagenet else kind,
            shortcut=None if imagenet else shortcut,
            in_channels=data.channels,
        )


def blocks_to_keep(settings: Settings, blocks: int) -> int:
    """Blocks in each step of effective-path training: as asked for, or 23 of 54 (Veit et al. 2016) in proportion."""
    keep = max(1, round(blocks * 23 / 54)) if settings.keep is None else settings.keep
    if not 1 <= keep <= blocks:
        raise ValueError(f"keep must lie in 1..{blocks}, the blocks of {settings.net}, not {keep}")
    return keep
