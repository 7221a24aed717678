"""`pathnet train`: train a net on real images, with a sampler if wanted, and save its weights."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from pathnet import samplers
from pathnet.files import writable_folder, write_atomically

NAME = "train"
HELP = "train a net and save its weights"

# What --paths NAME:NUMBER attaches to the net.
SAMPLERS = {
    "keep": (samplers.KeepExactly, int),
    "depth": (samplers.StochasticDepth, float),
    "droppath": (samplers.DropPath, float),
    "backward": (samplers.BackwardOnly, int),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a training."""
    parser.add_argument("--out", type=Path, default=Path("trained"), help="folder for weights and checkpoint (trained)")
    parser.add_argument("--data", default="digits", help="digits (default), cifar10 (with --root) or folder:PATH")
    parser.add_argument("--root", help="for cifar10: folder that holds cifar-10-batches-py, or an .npz with x and y")
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels of the images of a folder (32)")
    parser.add_argument("--net", default="preact110", help="preact or basic and the depth (preact110)")
    parser.add_argument("--shortcut", default="pad", help="pad (default), pad_end or conv")
    parser.add_argument(
        "--paths",
        help="keep:23 (exactly 23 blocks a step), depth:0.5 (stochastic depth, survival of the last block), "
        "droppath:0.1 (per image), backward:11 (gradient through 11 blocks)",
    )
    parser.add_argument("--epochs", type=int, default=12, help="passes over the images (12)")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step (32)")
    parser.add_argument(
        "--peak-lr", type=float, default=0.1, help="highest learning rate of the one-cycle schedule (0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (0)")


def run(args: argparse.Namespace) -> int:
    """Train or resume; 0 when the weights stand, 2 on bad input or a diverged loss, 130 after Ctrl-C."""
    from pathnet.training import Diverged  # here, so that other commands start without scikit-learn

    try:
        weights = _train(args)
    except (ValueError, Diverged) as error:
        print(f"pathnet train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished epochs stand in {args.out}; the same command resumes.", file=sys.stderr)
        return 130
    print(f"Weights: {weights}")
    return 0


def _train(args: argparse.Namespace) -> Path:
    from pathnet import data as images
    from pathnet.study.settings import make_net
    from pathnet.training import Recipe, fit

    out = writable_folder(args.out, "out")
    data = images.load(args.data, args.root, args.image_size)
    net = make_net(args.net, args.shortcut, data, args.seed)
    net.paths = None if args.paths is None else sampler_from(args.paths, args.seed)
    recipe = Recipe(args.epochs, args.batch_size, args.peak_lr, seed=args.seed)
    history = fit(net, data, recipe, checkpoint=out / "checkpoint.pt", title=f"train {args.net}")
    weights = out / "weights.pt"
    write_atomically(weights, lambda beside: torch.save(net.state_dict(), beside))
    text = json.dumps([asdict(epoch) for epoch in history], indent=1) + "\n"
    write_atomically(out / "history.json", lambda beside: beside.write_text(text, encoding="utf-8"))
    print(f"Test accuracy after {len(history)} epochs: {100 * history[-1].test_accuracy:.2f} %")
    return weights


def sampler_from(text: str, seed: int) -> samplers.Sampler:
    """The sampler that `NAME:NUMBER` stands for, as in `keep:23`; ValueError naming those that exist."""
    name, _, value = text.partition(":")
    try:
        kind, number = SAMPLERS[name]
        parsed = number(value)
    except (KeyError, ValueError):
        known = ", ".join(f"{known}:NUMBER" for known in SAMPLERS)
        raise ValueError(f"paths must be one of {known}, as in keep:23, not {text!r}") from None
    return kind(parsed, seed=seed)
