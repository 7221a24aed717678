"""The images of one study: split, normalised and checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

SPLIT_SEED = 0
SMALLEST_SIDE = 8
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageData:
    """Training and test images with their classes.

    `train` and `test` are pairs of images, float32 `[N, C, H, W]` in channels-last layout and normalised,
    and classes, int64 `[N]`. `augment` says whether shifted and mirrored images keep their class.
    """

    name: str
    description: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    augment: bool

    @property
    def channels(self) -> int:
        return self.train[0].shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all images and classes: equal data have equal fingerprints."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.test):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def split(x: np.ndarray, y: np.ndarray, test_size: float | int) -> tuple[np.ndarray, ...]:
    """Split into (x_train, y_train, x_test, y_test) by a fixed seed, keeping the share of every class."""
    try:
        parts = train_test_split(x, y, test_size=test_size, stratify=y, random_state=SPLIT_SEED)
    except ValueError as error:
        raise ValueError(
            f"data without a test part are split by class and need several images of each class, but: {error}"
        ) from error
    x_train, x_test, y_train, y_test = parts
    return x_train, y_train, x_test, y_test


def build(name: str, description: str, parts: tuple[np.ndarray, ...], classes: int, *, augment: bool) -> ImageData:
    """Check and normalise uint8 images `[N, H, W, C]`: one channel by its own, three by ImageNet's statistics."""
    x_train, y_train, x_test, y_test = parts
    for part, x in (("training", x_train), ("test", x_test)):
        _check_images(name, part, x)
    channels = x_train.shape[3]
    if channels == 3:
        mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    else:
        mean, std = x_train.mean((0, 1, 2)) / 255, np.maximum(x_train.std((0, 1, 2)) / 255, 1e-6)

    def normalised(x: np.ndarray) -> Tensor:
        scaled = (x.astype(np.float32) / 255 - mean.astype(np.float32)) / std.astype(np.float32)
        return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    train = normalised(x_train), torch.from_numpy(y_train.astype(np.int64))
    test = normalised(x_test), torch.from_numpy(y_test.astype(np.int64))
    return ImageData(name, description, train, test, classes, augment)


def _check_images(name: str, part: str, x: np.ndarray) -> None:
    if len(x) == 0:
        raise ValueError(f"data {name} has an empty {part} part; at least one image is needed")
    if x.ndim != 4 or x.dtype != np.uint8 or x.shape[3] not in (1, 3):
        raise ValueError(
            f"data {name} must hold uint8 images [N, H, W, C] with 1 or 3 channels, "
            f"but its {part} part is {x.dtype} {list(x.shape)}"
        )
    if min(x.shape[1:3]) < SMALLEST_SIDE:
        raise ValueError(
            f"images must be at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels for the stages of the net, "
            f"but those of {name} are {x.shape[1]} x {x.shape[2]}; enlarge them"
        )
