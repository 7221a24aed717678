"""`pathnet doctor`: what of pathnet works on this machine, and what to do about the rest."""

from __future__ import annotations

import argparse

NAME = "doctor"
HELP = "say what is built, which backends work on which device, and what to do about the others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report; always 0, since a missing backend is no error."""
    from pathnet.doctor import doctor

    print(doctor())
    return 0
