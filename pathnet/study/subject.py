"""Trained weights and the images that they are tried on: what `pathnet lesion` and `pathnet gradients` take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathnet import data as images
from pathnet.files import sha256_of_file
from pathnet.models import PathResNet
from pathnet.models.path_resnet import EXTRA_STATE
from pathnet.models.recognise import recognise
from pathnet.models.weights import load_weights, read_weights
from pathnet.samplers import Sampler
from pathnet.samplers.base import parse
from pathnet.study.environment import pathnet_version

TITLE = "trained"  # what the net is called in the results
PARTS = ("test", "train", "all")


@dataclass(frozen=True)
class SubjectSettings:
    """A file of weights, and which images: at most `images` of the `part` of the data, drawn from `seed`."""

    weights: str
    data: str = "digits"
    root: str | None = None
    image_size: int = 32
    shortcut: str = "pad"
    part: str = "test"
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, not {self.part!r}")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images must be at least 1, not {self.images}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")


class Subject:
    """The net of a file of weights, in evaluation, and its images and classes, read and checked."""

    def __init__(self, settings: SubjectSettings) -> None:
        self.name, self.net = net_of_weights(settings.weights, settings.shortcut)
        data = images.load(settings.data, settings.root, settings.image_size)
        check_fit(self.net, data)
        parts = {"test": [data.test], "train": [data.train], "all": [data.train, data.test]}[settings.part]
        x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.images: tuple[Tensor, Tensor] = drawn_images((x, y), settings.images, settings.seed)
        self._data, self._settings = data, settings

    def header(self, command: str) -> dict[str, Any]:
        """What the results of `command` depend on, and what they are about."""
        data, settings = self._data, self._settings
        return {
            "command": command,
            "settings": asdict(settings),
            "identity": identity(data, settings.weights),
            "net": {"name": self.name, "sampler": self.net.paths and repr(self.net.paths)} | about_net(self.net),
            "data": about_data(data, len(self.images[1])),
        }


def drawn_images(images: tuple[Tensor, Tensor], wanted: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """`wanted` of the images and classes, drawn from `seed`, in order; all of them where there are no more, or None."""
    x, y = images
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:wanted].sort().values
    return x[chosen], y[chosen]


def net_of_weights(file: str, shortcut: str) -> tuple[str, PathResNet]:
    """Name of the net that the weights in `file` belong to, and that net, in evaluation.

    Weights that were trained under a sampler say so, and its rule for evaluation holds.
    """
    weights = read_weights(file)
    name, net = recognise(weights, shortcut)
    trained = weights.get(EXTRA_STATE)
    if trained is not None:
        net.paths = _sampler(trained, file)
    load_weights(net, weights)
    return name, net.eval()


def _sampler(trained: Any, file: str) -> Sampler:
    try:
        return parse(trained["sampler"])
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"weights in {file} were trained under a sampler that is not known here: {trained}") from error


def check_fit(net: PathResNet, data: images.ImageData) -> None:
    """ValueError where the images have other channels than `net`, or classes that it does not know."""
    if data.channels != net.in_channels:
        raise ValueError(
            f"data must have images of {net.in_channels} channels, which the net of these weights takes, "
            f"but those of {data.name} have {data.channels}"
        )
    if data.classes > net.fc.out_features:
        raise ValueError(
            f"data must have no more than {net.fc.out_features} classes, those of the net of these weights, "
            f"but {data.name} has {data.classes}"
        )


def identity(data: images.ImageData, weights: str | None) -> dict[str, str | None]:
    """Version, images and weights, by their content."""
    return {
        "pathnet": pathnet_version(),
        "data": data.fingerprint,
        "weights": None if weights is None else sha256_of_weights(Path(weights)),
    }


def about_net(net: PathResNet) -> dict[str, Any]:
    """What the results say of a net."""
    return {
        "blocks": net.num_blocks,
        "stage_starts": [i for i, block in enumerate(net.blocks) if not block.has_identity_shortcut],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }


def about_data(data: images.ImageData, evaluated: int) -> dict[str, Any]:
    """What the results say of the images."""
    _, channels, height, width = data.test[0].shape
    return {
        "description": data.description,
        "train": len(data.train[1]),
        "test": len(data.test[1]),
        "evaluated": evaluated,
        "classes": data.classes,
        "channels": channels,
        "height": height,
        "width": width,
    }


def sha256_of_weights(path: Path) -> str:
    """SHA-256 of a weights file; ValueError where it cannot be read."""
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise ValueError(f"weights must be a readable file, but {path} is not ({error.strerror})") from error
