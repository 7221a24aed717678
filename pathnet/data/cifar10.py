"""CIFAR-10 from torchvision's folder layout or from an `.npz` file."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pathnet.data.images import ImageData, build, split

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts, lists, numbers and NumPy arrays; refuses every other name, so that no code runs."""

    _reconstruct = np.zeros(0).__reduce__()[0]
    _allowed = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed") from None


def load_cifar10(root: Path) -> ImageData:
    """Read CIFAR-10 (Krizhevsky 2009): `root` holds `cifar-10-batches-py`, or is an `.npz` file.

    The `.npz` has `x` uint8 `[N, H, W, C]` and `y` `[N]`, and may have `x_test` and `y_test`;
    without them a fifth of the images, drawn by class with a fixed seed, is the test part.
    """
    parts = _read_npz(root) if root.suffix == ".npz" else _read_folder(root)
    return build("cifar10", f"CIFAR-10 images from {root.name}", parts, classes=10, augment=True)


def _read_folder(root: Path) -> tuple[np.ndarray, ...]:
    folder = root if root.name == FOLDER else root / FOLDER
    if not folder.is_dir():
        raise ValueError(f"root must hold the folder {FOLDER} or be an .npz file, but {root} is neither")
    batches = [_read_batch(folder / name) for name in TRAIN_FILES]
    x_test, y_test = _read_batch(folder / TEST_FILE)
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches]), x_test, y_test


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(path, "rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
    except Exception as error:  # a broken pickle may raise anything
        raise ValueError(f"root has a batch of CIFAR-10 that cannot be read, {path}: {error}") from error
    return images, _checked_labels(labels, len(images), path)


def _read_npz(path: Path) -> tuple[np.ndarray, ...]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"images must stand in a readable .npz file, but {path} is none: {error}") from error
    missing = {"x", "y"} - arrays.keys()
    if missing:
        lacks = " and ".join(sorted(missing))
        raise ValueError(f"an .npz file of images must hold the arrays x and y, but {path} lacks {lacks}")
    if arrays["x"].ndim != 4 or len(arrays["x"]) == 0:
        raise ValueError(f"x must be images [N, H, W, C] with N > 0, but {path} has {list(arrays['x'].shape)}")
    y = _checked_labels(arrays["y"], len(arrays["x"]), path)
    if "x_test" not in arrays or "y_test" not in arrays:
        return split(arrays["x"], y, 0.2)
    return arrays["x"], y, arrays["x_test"], _checked_labels(arrays["y_test"], len(arrays["x_test"]), path)


def _checked_labels(labels: np.ndarray, images: int, path: Path) -> np.ndarray:
    if labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be one whole number for each of the {images} images, "
            f"but {path} has {labels.dtype} {list(labels.shape)}"
        )
    if images and (labels.min() < 0 or labels.max() > 9):
        raise ValueError(f"labels of CIFAR-10 lie in 0..9, but {path} has {labels.min()}..{labels.max()}")
    return labels
