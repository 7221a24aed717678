"""Options that `pathnet lesion` and `pathnet gradients` share: weights, images, folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SETTINGS = ("weights", "data", "root", "image_size", "shortcut", "part", "images", "seed")


def add_subject(parser: argparse.ArgumentParser, out: str, part: str, images: str) -> None:
    """Add them; `out`, `part` and `images` are what holds where none is given."""
    parser.add_argument(
        "--weights", required=True, help=".pt, .pth, .th or .safetensors of a residual net; it tells which"
    )
    parser.add_argument(
        "--data", default="digits", help="FILE.npz, folder:PATH, cifar10 (with --root) or digits (default)"
    )
    parser.add_argument("--root", help="for cifar10: folder that holds cifar-10-batches-py, or an .npz with x and y")
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels of the images of a folder (32)")
    parser.add_argument(
        "--part", default=part, choices=("test", "train", "all"), help=f"which images of the data ({part})"
    )
    parser.add_argument("--images", type=int, help=f"how many of them, drawn from the seed ({images})")
    parser.add_argument("--shortcut", default="pad", help="pad (default) or pad_end, where weights do not tell")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (0)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder for journal, results and tables ({out})")


def subject_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the shared options."""
    return {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
