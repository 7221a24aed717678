"""`pathnet gradients`: the gradient of a trained net by path length, drawn and exact."""

from __future__ import annotations

import argparse

from pathnet.cli.resumable import is_first, resumable
from pathnet.cli.subject import add_subject, subject_settings

NAME = "gradients"
HELP = "measure the gradient of a trained net by path length: drawn paths, and the exact sum over all of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the gradients."""
    add_subject(parser, out="gradients", part="train", images="32, one batch")
    parser.add_argument("--samples", type=int, default=20, help="paths drawn for each length, up to 1000 (20)")
    parser.add_argument("--at", default="image", help="where the norm is taken: image (default), or stem, its output")
    parser.add_argument("--bn", default="running", help="statistics of the batch norms: running (default) or batch")


def run(args: argparse.Namespace) -> int:
    """Measure or resume; 0 when the results stand, 2 on bad input, 130 after Ctrl-C."""
    from pathnet.study.gradient_run import GradientSettings, run_gradients  # here, so that others start fast
    from pathnet.study.summary import gradient_summary

    settings = GradientSettings(**subject_settings(args), samples=args.samples, at=args.at, bn=args.bn)
    with resumable(args.out):
        document = run_gradients(settings, args.out)
    if is_first():
        print(gradient_summary(document))
        print(f"Results: {args.out / 'results.json'}, as tables {args.out / 'gradients.csv'} and spectrum.csv")
    return 0
