"""`pathnet study`: the paper's experiments on real images, from training to the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pathnet.cli.resumable import is_first, resumable

NAME = "study"
HELP = "train a net, take it apart path by path, and write a report"
SETTINGS = (
    "data", "root", "image_size", "net", "shortcut", "weights", "epochs", "keep", "survival", "samples", "trials",
    "images", "seed",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the study; what is not given is the preset's."""
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder for report, plots and results (study)")
    parser.add_argument("--quick", action="store_true", help="a shallower net and fewer trials, in about a minute")
    parser.add_argument("--data", help="digits (default), cifar10 (with --root) or folder:PATH, one class a subfolder")
    parser.add_argument("--root", help="for cifar10: folder that holds cifar-10-batches-py, or an .npz with x and y")
    parser.add_argument("--image-size", type=int, help="side in pixels of the images of a folder (32)")
    parser.add_argument("--net", help="preact or basic and the depth, as in preact110 (default) or basic32")
    parser.add_argument("--shortcut", help="pad (default), pad_end or conv")
    parser.add_argument("--weights", help="study these trained weights instead of training")
    parser.add_argument(
        "--epochs", type=int, help="epochs of full training (6); more of trainings that leave blocks out"
    )
    parser.add_argument("--keep", type=int, help="blocks in each step of effective-path training (23 of 54)")
    parser.add_argument("--survival", type=float, help="how often stochastic depth keeps the last block (0.5)")
    parser.add_argument("--samples", type=int, help="paths drawn for each length, up to 1000 (20)")
    parser.add_argument("--trials", type=int, help="draws for each number of deleted blocks and of swaps (10)")
    parser.add_argument("--images", type=int, help="test images that lesions are measured on, at most (1000)")
    parser.add_argument("--seed", type=int, help="seed of everything that is drawn (0)")


def run(args: argparse.Namespace) -> int:
    """Run or resume the study; 0 when the report stands, 2 on bad input, 130 after Ctrl-C."""
    from pathnet.study import run_study, settings_from  # here, so that other commands start without plots
    from pathnet.training import Diverged

    try:
        settings = settings_from(args.quick, **{name: getattr(args, name) for name in SETTINGS})
        with resumable(args.out):
            report = run_study(settings, args.out)
    except (ValueError, Diverged) as error:
        print(f"pathnet study: {error}", file=sys.stderr)
        return 2
    if is_first():
        print(f"Report: {report}")
    return 0
