"""A folder of images, one subfolder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pathnet.data.images import SMALLEST_SIDE, ImageData, build, split

SUFFIXES = frozenset(Image.registered_extensions())


def load_folder(root: Path, side: int = 32) -> ImageData:
    """Read colour images resized to `side` x `side` from `root/CLASS/*`, or from `root/train` and `root/test` likewise.

    Without the two parts a fifth of the images, drawn by class with a fixed seed, is the test part.
    """
    if side < SMALLEST_SIDE:
        raise ValueError(f"image_size must be at least {SMALLEST_SIDE} pixels, not {side}")
    if not root.is_dir():
        raise ValueError(f"data folder:PATH needs a folder, but {root} is none")
    if (root / "train").is_dir() and (root / "test").is_dir():
        classes = _classes(root / "train")
        parts: tuple[np.ndarray, ...] = (*_read(root / "train", classes, side), *_read(root / "test", classes, side))
    else:
        classes = _classes(root)
        parts = split(*_read(root, classes, side), 0.2)
    description = f"images of the folder {root.name}, {len(classes)} classes, resized to {side} × {side}"
    return build(f"folder:{root.name}", description, parts, len(classes), augment=True)


def _classes(folder: Path) -> list[str]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(classes) < 2:
        raise ValueError(f"data folder:PATH needs a subfolder for each of at least 2 classes, {folder} has {classes}")
    return classes


def _read(folder: Path, classes: list[str], side: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            if path.suffix.lower() in SUFFIXES:
                images.append(_read_image(path, side))
                labels.append(label)
    if not images:
        raise ValueError(f"data folder:PATH needs images, but no file under {folder} is one")
    return np.stack(images), np.array(labels)


def _read_image(path: Path, side: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"data folder:PATH has an image that cannot be read, {path}: {error}") from error
