"""`pathnet report`: plots and a page of what other commands have measured."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "draw plots and write report.html from finished results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders."""
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        help="those of a study, or of lesions and gradients of the same weights and images, which make one report",
    )
    parser.add_argument("--out", type=Path, help="folder for report.html and plots (the first of the folders)")


def run(args: argparse.Namespace) -> int:
    """Write the report; 0 when it stands, 2 where the results do not serve."""
    from pathnet.study.merge import report_on  # here, so that other commands start without plots

    print(f"Report: {report_on(args.folders, args.out or args.folders[0])}")
    return 0
