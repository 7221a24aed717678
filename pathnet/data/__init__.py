"""Images to train on and to study: digits, CIFAR-10, `.npz` files and folders of images."""

from __future__ import annotations

from pathlib import Path

from pathnet.data.cifar10 import load_cifar10
from pathnet.data.digits import load_digits
from pathnet.data.folder import load_folder
from pathnet.data.images import ImageData

__all__ = ["ImageData", "load", "load_cifar10", "load_digits", "load_folder"]


def load(name: str = "digits", root: str | Path | None = None, image_size: int = 32) -> ImageData:
    """Load the data called `name`: `"digits"`, `"cifar10"` (needs `root`), an `.npz` file or `"folder:PATH"`.

    `image_size` is the side in pixels that the images of a folder are resized to.
    Raises ValueError, in one sentence, where the data are unknown, unreadable, empty or too small.
    """
    if name == "digits":
        return load_digits()
    if name == "cifar10":
        if root is None:
            raise ValueError(
                "data cifar10 needs root, the folder that holds cifar-10-batches-py or an .npz file; none was given"
            )
        return load_cifar10(Path(root))
    if name.endswith(".npz"):
        return load_cifar10(Path(name))
    if name.startswith("folder:"):
        return load_folder(Path(name.removeprefix("folder:")), image_size)
    raise ValueError(f"data must be digits, cifar10, an .npz file or folder:PATH, not {name!r}")
