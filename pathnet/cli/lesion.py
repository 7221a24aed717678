"""`pathnet lesion`: delete and swap blocks of a trained net, and see what it still knows."""

from __future__ import annotations

import argparse
from pathlib import Path

from pathnet.cli.resumable import is_first, resumable
from pathnet.cli.subject import add_subject, subject_settings

NAME = "lesion"
HELP = "delete and swap blocks of a trained net: errors, losses and agreement, lesion by lesion"
LISTS = {
    "each": "delete_each",
    "pairs": "delete_pairs",
    "starts": "delete_stage_starts",
    "random": "delete_random",
    "swaps": "reorder",
    "list": "listed",
}  # options and the lists that they ask for
MEBIBYTE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the lesions."""
    add_subject(parser, out="lesions", part="test", images="all")
    parser.add_argument(
        "--each", action="store_true", help="delete each block (the default, where no list is asked for)"
    )
    parser.add_argument("--pairs", action="store_true", help="delete every pair of blocks")
    parser.add_argument("--starts", action="store_true", help="delete the blocks that change the shape, single and all")
    parser.add_argument("--random", type=int, nargs="+", metavar="COUNT", help="delete so many random blocks")
    parser.add_argument("--swaps", type=int, nargs="+", metavar="COUNT", help="swap so many random pairs of blocks")
    parser.add_argument("--trials", type=int, default=10, help="draws for each COUNT (10)")
    parser.add_argument(
        "--drop", type=int, default=0, metavar="COUNT", help="find so many blocks to do without, greedily"
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help='JSON: [{"delete": [3, 7]}, {"order": [...]}, ...]')
    parser.add_argument("--memory", type=int, default=1024, help="MiB for activations that lesions share (1024)")
    parser.add_argument("--predictions", action="store_true", help="keep the class predicted for each image")


def run(args: argparse.Namespace) -> int:
    """Measure or resume; 0 when the results stand, 2 on bad input, 130 after Ctrl-C."""
    from pathnet.study.lesion_run import LesionSettings, read_entries, run_lesions  # here, so that others start fast
    from pathnet.study.summary import lesion_summary

    default = () if args.drop else ("delete_each",)
    settings = LesionSettings(
        **subject_settings(args),
        lists=tuple(name for option, name in LISTS.items() if getattr(args, option)) or default,
        deletions=tuple(args.random or ()),
        swaps=tuple(args.swaps or ()),
        trials=args.trials,
        drop=args.drop,
        entries=read_entries(args.list) if args.list else (),
        memory=args.memory * MEBIBYTE,
        predictions=args.predictions,
    )
    with resumable(args.out):
        document = run_lesions(settings, args.out)
    if is_first():
        print(lesion_summary(document))
        print(f"Results: {args.out / 'results.json'}, as a table {args.out / 'lesions.csv'}")
    return 0
