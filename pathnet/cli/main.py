"""The `pathnet` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = (
    "bench",
    "doctor",
    "study",
    "train",
)  # modules of pathnet.cli: each has NAME, HELP, add_arguments(parser) and run(args) -> status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="pathnet", description="Residual networks run, trained and studied path by path."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"pathnet.cli.{name}")
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("pathnet: interrupted", file=sys.stderr)
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        print(f"pathnet: {error}", file=sys.stderr)
        return 1
