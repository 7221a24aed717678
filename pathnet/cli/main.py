"""The `pathnet` command."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pathnet.cli.resumable import is_first

# Modules of pathnet.cli: each has NAME, HELP, add_arguments(parser) and run(args) -> status.
COMMANDS = ("bench", "doctor", "gradients", "kernels", "lesion", "report", "study", "train")
PACKAGE = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="pathnet", description="Residual networks run, trained and studied path by path."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"pathnet.cli.{name}")
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt as interrupt:
        if is_first():
            print(f"\npathnet: {interrupt.args[0] if interrupt.args else 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_answer(error):
            raise
        print(f"pathnet {args.command}: {error}", file=sys.stderr)
        return 2


def is_answer(error: Exception) -> bool:
    """Whether `error` speaks to the user: the system raised it, or a `raise` of this package did.

    What Python or a library raises is a mistake in a program, and its traceback is needed.
    """
    origin = traceback.extract_tb(error.__traceback__)[-1]
    checked = Path(origin.filename).is_relative_to(PACKAGE) and (origin.line or "").startswith("raise ")
    return checked or isinstance(error, OSError)
